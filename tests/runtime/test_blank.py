import subprocess
import sys

import torch
from torch import nn

from danqing.models.unet import UNet, UNetConfig
from danqing.runtime.blank import without_weights


def test_a_network_without_weights_has_its_shapes_and_no_memory() -> None:
    with without_weights():
        network = UNet(UNetConfig())
    assert all(parameter.is_meta for parameter in network.parameters())
    assert network.conv_in.weight.shape == (320, 4, 3, 3)


def test_initialisation_is_back_afterwards() -> None:
    with without_weights():
        nn.Linear(2, 2)
    assert nn.Linear(64, 64).weight.std() > 0.01


def test_building_does_not_import_torchs_compiler() -> None:
    code = (
        "import sys; from danqing.runtime.blank import without_weights\n"
        "from danqing.models.clip import CLIPText, CLIPTextConfig\n"
        "with without_weights(): CLIPText(CLIPTextConfig())\n"
        "assert 'torch._dynamo' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_importing_danqing_changes_nothing_global() -> None:
    code = (  # OpenCV's own import sets LD_LIBRARY_PATH
        "import os, cv2, torch; before = dict(os.environ), torch.get_num_threads(), torch.is_grad_enabled()\n"
        "import danqing, danqing.pipeline.paint, danqing.cli\n"
        "assert before == (dict(os.environ), torch.get_num_threads(), torch.is_grad_enabled())"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_meta_tensors_are_still_made_inside() -> None:
    with without_weights():
        assert torch.empty(3).is_meta
