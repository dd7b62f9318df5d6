"""What AUTOMATIC1111's extension ControlNet writes of its units."""

from danqing.metadata.infotext import infotext, read_infotext
from danqing.request_parts import ControlUnit, Reference
from danqing.requests import ResolvedRequest, TextToImage

TOLD = (
    "a castle\nSteps: 20, Sampler: Euler, CFG scale: 7, Seed: 8, Size: 512x512, "
    'ControlNet 1: "Module: none, Model: depth [cfd03158], Weight: 1, Resize Mode: Just Resize, Guidance Start: 0.1, '
    'Guidance End: 0.9, Pixel Perfect: True, Control Mode: ControlNet is more important", '
    'ControlNet 0: "Module: canny, Model: control_v11p_sd15_canny [d14c016b], Weight: 0.8, Resize Mode: Crop and Resize, '
    'Processor Res: 512, Threshold A: 100, Guidance Start: 0, Guidance End: 1, Control Mode: Balanced", Version: v1.10.1'
)


def test_its_units_are_read() -> None:
    told = read_infotext(TOLD)
    assert told.request.controls == (
        ControlUnit(
            model="control_v11p_sd15_canny [d14c016b]", module="canny", weight=0.8, processor_res=512, threshold_a=100
        ),
        ControlUnit(
            model="depth [cfd03158]", guidance_start=0.1, guidance_end=0.9, resize_mode="just resize",
            control_mode="controlnet is more important",
        ),
    )  # fmt: skip
    assert told.notes == (
        "ControlNet 0: the picture that it was shown is not recorded",
        "ControlNet 1: the picture that it was shown is not recorded",
    )


def test_what_is_no_unit_is_left_out_and_said() -> None:
    told = read_infotext(TOLD.replace("Model: depth [cfd03158]", "Model: None"))
    assert len(told.request.controls) == 1
    assert any(note.startswith("'ControlNet 1: Module: none") for note in told.notes)


def test_units_are_written_for_it_and_read_from_our_own() -> None:
    unit = ControlUnit(
        model="/models/canny, best.safetensors", image=Reference(name="a.png"), module="canny", weight=0.5,
        threshold_b=150,
    )  # fmt: skip
    made = ResolvedRequest(
        request=TextToImage(prompt="a", steps=20, controls=(unit,)),
        family="sd1",
        checkpoint=Reference(name="m"),
        others={"controls.0": Reference(name="canny, best.safetensors", sha256="d14c016b" + "0" * 56)},
    )
    text = infotext(made)
    assert (
        'ControlNet 0: "Module: canny, Model: canny_ best [d14c016b], Weight: 0.5, Resize Mode: Crop and Resize, '
        'Threshold B: 150.0, Guidance Start: 0.0, Guidance End: 1.0, Pixel Perfect: True, Control Mode: Balanced"'
    ) in text
    told = read_infotext(text)
    assert told.request.controls == (unit,)
    assert told.notes == ()


def test_what_its_hidden_sliders_hold_is_no_number_of_the_module() -> None:
    told = read_infotext(
        TOLD.replace("Module: none, ", "Module: openpose, ")
        .replace("Guidance Start: 0.1", "Processor Res: 512, Threshold A: 64, Threshold B: -1, Guidance Start: 0.1")
        .replace("Module: canny", "Module: tile_resample")
        .replace("Threshold A: 100", "Threshold A: 2, Threshold B: 64")
    )
    tile, pose = told.request.controls
    assert (tile.processor_res, tile.threshold_a, tile.threshold_b) == (None, 2, None)
    assert (pose.processor_res, pose.threshold_a, pose.threshold_b) == (None, None, None)  # pixel perfect
    assert len(told.notes) == 2
