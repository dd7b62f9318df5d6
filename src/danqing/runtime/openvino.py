"""Networks by OpenVINO (the extra `[openvino]`): converted from our own modules once, kept on disk, compiled per size.

The network is read on torch's meta device, so what is converted is the plain graph, without what eager mode does for
a CPU's sake. Sizes stay open but for the batch; each size is compiled when it is first asked for.
Eight bits: weights alone are symmetric int8 per channel (NNCF's compress_weights); with activations, NNCF's
post-training quantization (Krishnamoorthi 2018, section 3) with SmoothQuant (Xiao et al. 2023).
"""

from __future__ import annotations

import copy
import json
import os
import shutil
import sys
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from torch import Tensor, nn

from danqing.errors import DanqingError
from danqing.runtime.engines import Inputs, Quantize, Run, Say
from danqing.runtime.numerics import converted

SPATIAL = ("latents",)
"""Inputs (B, C, H, W) whose H and W stay open."""
SEQUENCES = ("context",)
"""Inputs (B, T, C) whose T stays open."""

SMOOTHING = 0.15
"""SmoothQuant's alpha for linear layers."""


@contextmanager
def _telling_nobody() -> Any:
    """OpenVINO and NNCF report their use to their makers as soon as they are imported, unless the package that does so
    is missing: within, it is."""
    before = sys.modules.get("openvino_telemetry")
    sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        del sys.modules["openvino_telemetry"]
        if before is not None:
            sys.modules["openvino_telemetry"] = before


def package(name: str = "openvino") -> Any:
    """`openvino` or `nncf`. Raises DanqingError where it is missing."""
    try:
        with _telling_nobody():
            return import_module(name)
    except ImportError as error:
        raise DanqingError(f"{name} is missing; pip install 'danqing[openvino]' ({error})") from None


def installed() -> bool:
    return find_spec("openvino") is not None


def convert(network: nn.Module, inputs: Inputs, multiple: int) -> Any:
    """The float32 network as an `openvino.Model` that takes `inputs` by name, in float32; their batch is fixed, their sizes are open.

    `multiple`: heights and widths of what is spatial are multiples of this. Raises whatever the conversion meets.
    """
    from torch.export.decomp_utils import CustomDecompTable

    package()
    with _telling_nobody():
        from openvino.frontend import FrontEndManager
        from openvino.frontend.pytorch.fx_decoder import TorchFXPythonDecoder
        from openvino.frontend.pytorch.torchdynamo.export_decompositions import ops_to_not_decompose
    weights = dict(network.named_parameters())
    program = torch.export.export(
        _blank(network),
        (),
        {name: torch.empty_like(tensor, dtype=torch.float32, device="meta") for name, tensor in inputs.items()},
        dynamic_shapes={name: _open(name, tensor, multiple) for name, tensor in inputs.items()},
        strict=False,
    )
    rules: Any = CustomDecompTable()  # type: ignore[no-untyped-call]
    for name in ops_to_not_decompose():
        rules.pop(name, None)
    module = program.run_decompositions(rules).module(check_guards=False)
    for path, _ in list(module.named_parameters()):
        owner, _, leaf = path.rpartition(".")
        module.get_submodule(owner)._parameters[leaf] = nn.Parameter(weights[path].detach(), requires_grad=False)
    decoder = TorchFXPythonDecoder(module, dynamic_shapes=True)  # it must outlive the conversion
    frontend = FrontEndManager().load_by_framework("pytorch")
    model = frontend.convert(frontend.load(decoder))
    passes = package("openvino.passes")
    folding = passes.Manager()
    folding.register_pass(passes.ConstantFolding())  # NNCF knows weights as constants only
    folding.run_passes(model)
    return model


def _blank(network: nn.Module) -> nn.Module:
    """The network without weights, and in training mode, in which nothing is done row by row."""
    memo: dict[int, Any] = {
        id(parameter): nn.Parameter(torch.empty_like(parameter, device="meta"), requires_grad=False)
        for parameter in network.parameters()
    }
    return copy.deepcopy(network, memo).train()


def _open(name: str, tensor: Tensor, multiple: int) -> dict[int, Any] | None:
    dim = torch.export.Dim
    if name in SPATIAL:
        return {2: multiple * dim("rows", min=2, max=512), 3: multiple * dim("columns", min=2, max=512)}
    return {1: dim("tokens", min=32, max=1023)} if name in SEQUENCES else None


def quantized(model: Any, quantize: Quantize, samples: Callable[[], Sequence[Inputs]]) -> Any:
    """The model in eight bits; `samples` are inputs to it as they come in use, for the ranges of activations."""
    if quantize == "none":
        return model
    nncf = package("nncf")
    if quantize == "int8-weights":
        return nncf.compress_weights(model, mode=nncf.CompressWeightsMode.INT8_SYM)
    shown = list(samples())
    dataset = nncf.Dataset(shown, lambda inputs: {name: tensor.float().numpy() for name, tensor in inputs.items()})
    return nncf.quantize(
        model,
        dataset,
        subset_size=len(shown),
        preset=nncf.QuantizationPreset.MIXED,
        model_type=nncf.ModelType.TRANSFORMER,
        ignored_scope=nncf.IgnoredScope(names=_sensitive(model)),
        advanced_parameters=nncf.AdvancedQuantizationParameters(
            smooth_quant_alphas=nncf.AdvancedSmoothQuantParameters(matmul=SMOOTHING)
        ),
    )


def _sensitive(model: Any) -> list[str]:
    """What stays as precise as it is: the first convolution and those after the last doubling of the size, which see the
    noise itself, linear layers of vectors, such as the step's embedding, and of those that end a gated feed-forward the
    narrowest, where the picture is largest: among the products that they are given a few are far above the rest."""
    nodes = model.get_ordered_ops()
    kinds = [node.get_type_name() for node in nodes]
    doubled = max((i for i, kind in enumerate(kinds) if kind == "Interpolate"), default=len(nodes))
    convolutions = [i for i, kind in enumerate(kinds) if kind == "Convolution"]
    edges = [nodes[i] for i in convolutions if i == convolutions[0] or i > doubled]
    linear = [(n, n.get_output_partial_shape(0).rank.get_length()) for n, kind in zip(nodes, kinds) if kind == "MatMul"]
    vectors = [node for node, rank in linear if rank == 2]
    ends = [(node, width) for node, rank in linear if rank > 2 and (width := _narrowed(node))]
    narrowest = [node for node, width in ends if width == min(width for _, width in ends)]
    return [node.get_friendly_name() for node in (*edges, *vectors, *narrowest)]


def _narrowed(node: Any) -> int | None:
    """How wide a linear layer's vectors come out, where that is a quarter as wide as they were, as at a feed-forward's end."""
    wide, narrow = (port.get_partial_shape()[-1] for port in (node.input(0), node.output(0)))
    fits = wide.is_static and narrow.is_static and wide.get_length() == 4 * narrow.get_length()
    return narrow.get_length() if fits else None


def build(
    network: nn.Module,
    folder: Path,
    quantize: Quantize,
    multiple: int,
    samples: Callable[[], Sequence[Inputs]],
    inputs: Inputs,
    say: Say,
) -> Run:
    """What `engines.Runner.build` is for OpenVINO. `folder` is where this network's conversions are kept.

    Raises DanqingError where openvino is missing, or where the size is no multiple of what the network halves.
    """
    for name in SPATIAL:
        if any(size % multiple for size in inputs[name].shape[2:]):
            raise DanqingError(f"sides must be multiples of {multiple} latent cells")
    kept = folder / "-".join([quantize, *(f"{name}{len(tensor)}" for name, tensor in inputs.items())])
    if not kept.exists():
        say(f"openvino: the network is converted and kept in {kept}, which takes minutes once")
        plain = converted(network, lambda tensor: tensor.float())
        model = quantized(
            convert(plain, inputs, multiple), quantize, lambda: [_alike(each, inputs) for each in samples()]
        )
        # half precision's weights are exact in float16 but for the tiniest of bfloat16
        keep(kept, model, halved=quantize == "none" and next(network.parameters()).dtype != torch.float32)
        del plain, model  # each as large as the weights in float32
        _measure(network, kept, inputs)
    return compile_for(kept / "model.xml", inputs, next(network.parameters()).dtype)


TIMES = "seconds.json"
"""Beside a kept model: the seconds of its compilation, and of a call of it and of the plain network on this machine."""


def _measure(network: nn.Module, kept: Path, inputs: Inputs) -> None:
    start = perf_counter()
    run = compile_for(kept / "model.xml", inputs, next(network.parameters()).dtype)
    seconds = {"compile": perf_counter() - start}
    calls: dict[str, Callable[[], Tensor]] = {"openvino": lambda: run(inputs), "eager": lambda: network(**inputs)}
    for name, call in calls.items():
        call()  # the first is slower
        start = perf_counter()
        call()
        seconds[name] = perf_counter() - start
    (kept / TIMES).write_text(json.dumps(seconds))


def pays(folder: Path, quantize: Quantize, calls: int) -> bool:
    """Whether the network in `folder` has been converted, and so many calls gain more than compiling it costs, by what
    was measured when it was converted."""
    for file in folder.glob(f"{quantize}-{SPATIAL[0]}*/{TIMES}"):
        told = json.loads(file.read_text())
        if calls * (told["eager"] - told["openvino"]) > told["compile"]:
            return True
    return False


def _alike(sample: Inputs, inputs: Inputs) -> Inputs:
    """A sample with as many rows as `inputs` have, its own again and again."""
    return {
        name: torch.cat([tensor] * -(-len(inputs[name]) // len(tensor)))[: len(inputs[name])]
        for name, tensor in sample.items()
    }


def compile_for(path: Path, inputs: Inputs, dtype: torch.dtype) -> Run:
    """The model at `path`, compiled for `inputs`' shapes, to compute in `dtype` where that is bfloat16 or float32."""
    ov = package()
    core = ov.Core()
    model = core.read_model(path)
    model.reshape({name: list(tensor.shape) for name, tensor in inputs.items()})
    options = {"INFERENCE_NUM_THREADS": torch.get_num_threads()}
    waves = _waves(model)
    head = ov.Model([wave.output(0) for wave in waves], model.get_parameters())
    angles = core.compile_model(head, "CPU", {**options, "INFERENCE_PRECISION_HINT": "f32"}) if waves else None
    body = _without(model, waves)
    precision = "bf16" if dtype == torch.bfloat16 else "f32"
    request = core.compile_model(body, "CPU", {**options, "INFERENCE_PRECISION_HINT": precision}).create_infer_request()

    def run(inputs: Inputs) -> Tensor:
        given = {name: tensor.float().contiguous() for name, tensor in inputs.items()}
        shown = {name: tensor.numpy() for name, tensor in given.items()}
        if angles is not None:
            shown |= {f"wave_{i}": value for i, value in enumerate(angles(shown).values())}
        for name, array in shown.items():
            request.set_tensor(name, ov.Tensor(array, shared_memory=True))
        request.infer()
        answer = torch.from_numpy(request.get_output_tensor(0).data.copy())
        return answer.to(inputs["latents"].dtype)

    return run


def _waves(model: Any) -> list[Any]:
    """The sinusoidal embeddings of timesteps and sizes. In bfloat16 the step 601 would be 600: they stay in float32."""

    def kinds(node: Any) -> set[str]:
        return {port.get_source_output().get_node().get_type_name() for port in node.inputs()}

    return [
        node for node in model.get_ordered_ops() if node.get_type_name() == "Concat" and kinds(node) == {"Sin", "Cos"}
    ]


def _without(model: Any, waves: Sequence[Any]) -> Any:
    """The model with an input `wave_0`, `wave_1` ... in the place of each of `waves`."""
    ov = package()
    given = []
    for i, wave in enumerate(waves):
        port = wave.output(0)
        parameter = package("openvino.opset13").parameter(port.get_partial_shape(), port.get_element_type())
        parameter.output(0).get_tensor().set_names({f"wave_{i}"})
        for target in port.get_target_inputs():
            target.replace_source_output(parameter.output(0))
        given.append(parameter)
    return ov.Model(model.get_results(), [*model.get_parameters(), *given])


def keep(folder: Path, model: Any, halved: bool = False) -> None:
    """Write the model, its weights in float16 where they are `halved`: beside, then rename. A full disk leaves nothing behind."""
    beside = folder.with_name(f"{folder.name}.{os.getpid()}.part")
    beside.mkdir(parents=True, exist_ok=True)
    try:
        package().save_model(model, beside / "model.xml", compress_to_fp16=halved)
        os.replace(beside, folder)
    finally:
        shutil.rmtree(beside, ignore_errors=True)
