"""Plots and matrices: which requests they make, in what order, and what is left when something goes wrong."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from danqing.checkpoints.save import save
from danqing.errors import DanqingError
from danqing.families import Model
from danqing.pipeline import series
from danqing.pipeline.paint import paint
from danqing.pipeline.plot import Plot, matrix, paint_plot, sheet, sheet_infotext, split_matrix, xyz
from danqing.requests import ImageToImage, TextToImage

QUICK = {"width": 64, "height": 64, "steps": 1, "sampler_name": "Euler"}


def asked(**fields: object) -> TextToImage:
    return TextToImage(**{"prompt": "a red cat", **QUICK, **fields})  # type: ignore[arg-type]


def table(plot: Plot, *fields: str) -> dict[tuple[int, int, int], tuple[object, ...]]:
    return {cell.place: tuple(getattr(cell.requests[0], field) for field in fields) for cell in plot.cells}


def test_axes_are_columns_rows_and_sheets() -> None:
    plot = xyz(asked(seed=5), "Steps=1-3", "Prompt S/R=cat,fox", "CFG=4,7")
    assert (len(plot.columns), len(plot.rows), len(plot.sheets)) == (3, 2, 2)
    cells = table(plot, "steps", "prompt", "cfg_scale", "seed")
    assert cells[2, 1, 0] == (3, "a red fox", 4.0, 5)
    assert cells[0, 0, 1] == (1, "a red cat", 7.0, 5)
    assert len(cells) == 12 == plot.count
    assert plot.columns == ("Steps: 1", "Steps: 2", "Steps: 3")
    assert plot.rows == ("cat", "fox")


def test_all_cells_have_one_seed_unless_told_otherwise() -> None:
    assert len({cell.requests[0].seed for cell in xyz(asked(), "Steps=1-4").cells}) == 1
    assert {cell.requests[0].seed for cell in xyz(asked(), "Steps=1-4", fixed_seeds=False).cells} == {None}
    varied = table(xyz(asked(seed=5), "Steps=1-3", "CFG=4,7", vary_seeds="xy"), "seed")
    assert [varied[x, y, 0][0] for y in (0, 1) for x in (0, 1, 2)] == [5, 6, 7, 8, 9, 10]
    seeds = xyz(asked(), "Seed=-1,7")
    assert seeds.script is not None
    first = seeds.cells[0].requests[0].seed
    assert first not in (None, -1)
    assert seeds.script["Fixed X Values"] == f"{first}, 7"


def test_the_dearest_axis_is_the_outermost(tiny: Model, tmp_path: Path) -> None:
    for name in ("one", "two"):
        save(tiny, tmp_path / f"{name}.safetensors", layout="ldm")
    files = [str(tmp_path / f"{name}.safetensors") for name in ("one", "two")]
    plot = xyz(asked(seed=1), f"Checkpoint name={','.join(files)}", "Seed=1,2")
    order = [cell.requests[0].model for cell in plot.cells]
    assert order == [files[0]] * 2 + [files[1]] * 2
    loads: list[str | None] = []

    def load(name: str | None) -> Model:
        loads.append(name)
        return tiny

    pictures = {event.cell.place for event in paint_plot(plot, load=load) if event.progress}
    assert loads == files
    assert len(pictures) == 4
    assert plot.columns == ("one.safetensors", "two.safetensors")


@pytest.mark.parametrize(
    ("axis", "message"),
    [
        ("Stps=1", "unknown; did you mean"),
        ("Steps=0", "axis Steps: steps: should be greater"),
        ("Steps=", "axis Steps: it has no values"),
        ("Steps=x", "axis Steps: steps: should be a valid integer"),
        ("Sampler=Eulr", "sampler 'Eulr' is unknown; did you mean Euler"),
        ("Prompt S/R=dog,fox", "'dog' is in neither prompt"),
        ("Prompt order=red,dog", "'dog' is not in the prompt"),
        ("Prompt order=", "no values"),
        ("Size=64", "is no size"),
        ("Checkpoint name=nowhere.safetensors", "no such file"),
        ("VAE=nowhere.safetensors", "no such file"),
        ("Hires upscaler=Latent,Lanzos", "or is it Lanczos"),
        ("controls=nowhere.safetensors", "nowhere.safetensors: no such file"),
        ("image_prompts=nowhere.safetensors", "nowhere.safetensors: no such file"),
        ("detailers=face.onnx", "detector: there is no file 'face.onnx'"),
        ("aesthetic=flowers.pt", "flowers.pt: no such file"),
        ("Styles=oil", "style 'oil' is unknown"),
        ("Steps=5-1", "stands for no values"),
        ("LoRA weight=1", "has no <lora:"),
        ("Steps", "write it as TITLE=VALUES"),
    ],
)
def test_what_is_wrong_is_told_before_painting(
    axis: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DANQING_HOME", str(tmp_path))
    with pytest.raises(DanqingError, match=message) as error:
        xyz(asked(enable_hr=True), "Steps=1,2", axis)
    assert "\n" not in str(error.value)


def test_axes_work_on_any_kind_of_request(tmp_path: Path) -> None:
    Image.new("RGB", (64, 64)).save(tmp_path / "a.png")
    request = ImageToImage(image=str(tmp_path / "a.png"), seed=1)
    plot = xyz(request, "Denoising=0.25-0.75 (+0.25)", "Image CFG Scale=1,2")
    assert table(plot, "denoising_strength", "image_cfg_scale")[1, 1, 0] == (0.5, 2.0)
    with pytest.raises(DanqingError, match="unknown"):
        xyz(request, "Hires steps=1,2")


def test_cells_are_the_pictures_that_stand_alone(tiny: Model) -> None:
    plot = xyz(asked(seed=3, cfg_scale=4), "Steps=1,2", "Seed=3,9")
    for event in paint_plot(plot, tiny, say=lambda line: None):
        assert event.progress is not None
        for picture in event.progress.pictures:
            (alone,) = paint(event.cell.requests[0], tiny, say=lambda line: None)
            assert picture.image.tobytes() == alone.image.tobytes()


def test_a_cell_that_fails_stops_no_other(tiny: Model) -> None:
    plot = xyz(asked(seed=3), "Clip skip=1,9,2")  # the tiny tower has fewer layers than nine
    events = list(paint_plot(plot, tiny, say=lambda line: None))
    ended = [(event.cell.place[0], event.error is None) for event in events]
    assert ended == [(0, True), (1, False), (2, True)]
    pictures = {e.cell.place: [p.image for p in e.progress.pictures] for e in events if e.progress}
    grid = sheet(plot, pictures, note=lambda line: None)
    box = (64, grid.height - 64, 128, grid.height)
    assert grid.crop(box).getcolors() == [(64 * 64, (255, 255, 255))]
    assert grid.crop((0, grid.height - 64, 64, grid.height)).tobytes() == pictures[0, 0, 0][0].tobytes()


def test_prompts_are_encoded_once(tiny: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    tower = type(tiny.text_encoders["text_encoder"])
    forward = tower.forward
    monkeypatch.setattr(tower, "forward", lambda self, ids, **more: calls.append(1) or forward(self, ids, **more))
    list(paint_plot(xyz(asked(seed=1), "Steps=1,2", "CFG=2,3"), tiny, say=lambda line: None))
    assert len(calls) == 2  # the prompt and the empty negative one


def test_an_autoencoder_is_read_once(tiny: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(tiny, tmp_path / "vae", layout="diffusers")
    path = str(tmp_path / "vae" / "vae" / "diffusion_pytorch_model.safetensors")
    reads = []
    real = series.with_autoencoder
    monkeypatch.setattr(series, "with_autoencoder", lambda model, path: reads.append(path) or real(model, path))
    plot = xyz(asked(seed=1), "Steps=1,2", f"VAE=None,{path}")
    assert len([event for event in paint_plot(plot, tiny, say=lambda line: None) if event.progress]) >= 4
    assert reads == [path]


def test_the_grids_infotext_names_the_axes(tiny: Model) -> None:
    plot = xyz(asked(seed=3), "Steps=1, 2", "Prompt S/R=cat,fox")
    events = list(paint_plot(plot, tiny, say=lambda line: None))
    assert events[0].progress is not None
    text = sheet_infotext(plot, events[0].progress.pictures[0])
    assert 'Script: X/Y/Z plot, X Type: Steps, X Values: "1, 2", Y Type: Prompt S/R, Y Values: "cat,fox"' in text


def test_a_matrix_is_every_subset() -> None:
    plot = matrix(asked(prompt="a castle | night | snow, | [red|blue] roof", seed=4))
    prompts = {place: fields[0] for place, fields in table(plot, "prompt").items()}
    assert len(prompts) == 8
    assert prompts[0, 0, 0] == "a castle"
    assert prompts[3, 0, 0] == "a castle, night, snow"
    assert prompts[1, 1, 0] == "a castle, night, [red|blue] roof"
    assert {fields[0] for fields in table(plot, "seed").values()} == {4}
    assert plot.columns[2] == (("night", False), ("snow", True))
    assert plot.rows == ((("[red|blue] roof", False),), (("[red|blue] roof", True),))


def test_a_matrix_by_its_options() -> None:
    request = asked(negative_prompt="x|y", seed=4)
    plot = matrix(request, negative=True, at_start=True, delimiter=" ", different_seeds=True)
    assert [c.requests[0].negative_prompt for c in plot.cells] == ["x", "y x"]
    assert [c.requests[0].seed for c in plot.cells] == [4, 5]
    with pytest.raises(DanqingError, match="from 1 to 13 parts"):
        matrix(request)


def test_matrix_parts() -> None:
    assert split_matrix("a|b [c|d] | e") == ["a", "b [c|d] ", " e"]
    assert split_matrix("a [b | c") == ["a [b ", " c"]
    assert split_matrix(r"a \[b | c]") == [r"a \[b ", " c]"]
