"""Jobs painted by the pipeline, with tiny random networks: the same bits whenever and however often they are begun."""

from __future__ import annotations

from contextlib import closing
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from danqing.families import At, Model
from danqing.library.settings import load_settings
from danqing.metadata.files import read_picture
from danqing.metadata.pixels import pixels_sha256
from danqing.metadata.read import tell
from danqing.models.autoencoder import Autoencoder, AutoencoderConfig
from danqing.pipeline.paint import paint
from danqing.requests import ImageToImage, Inpaint, Outpaint, Painting, TextToImage
from danqing.sampling.types import Prediction
from danqing.serve.cache import ModelCache
from danqing.serve.engine import Engine
from danqing.serve.memo import Memo
from danqing.serve.painter import missing, painter, sharing
from danqing.serve.preview import FACTORS, SIDE, colours, look_of, preview
from danqing.serve.store import Job, Store
from danqing.serve.work import Enlarge, Tick
from tiny_model import tiny_model


@pytest.fixture(scope="module")
def tiny() -> Model:
    return tiny_model(torch.device("cpu"), torch.float32)


def studio(folder: Path, model: Model) -> Engine:
    models = ModelCache(settings=load_settings(data_dir=folder), load=lambda name, vae: model)
    return Engine(Store(f"sqlite:///{folder / 'studio.db'}"), folder, models)


BASE: dict[str, Any] = {"prompt": "a cat", "seed": 3, "steps": 3, "width": 64, "height": 64}
SOURCE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8))
MASK = Image.fromarray(np.eye(2, dtype=np.uint8).repeat(32, 0).repeat(32, 1) * 255)
REQUESTS: tuple[Painting, ...] = (
    TextToImage(**BASE, batch_size=2, n_iter=2),
    TextToImage(**BASE, sampler_name="DPM++ 2M SDE", enable_hr=True, hr_scale=1.5, hr_upscaler="Latent"),
    TextToImage(**BASE, n_iter=2, dialect="comfyui", batch_size=2, sampler_name="Euler a"),
    TextToImage(**BASE, n_iter=2, sampler_name="DPM adaptive", subseed=5, subseed_strength=0.3),
    ImageToImage(**BASE, image=SOURCE, denoising_strength=0.9, sampler_name="Heun"),
    Inpaint(**BASE, image=SOURCE, mask=MASK, n_iter=2),
    Outpaint(prompt="a", seed=1, steps=3, image=SOURCE, right=64),
)


@pytest.mark.parametrize("asked", REQUESTS, ids=lambda r: f"{type(r).__name__} {r.sampler_name} {r.dialect}")
def test_a_job_that_is_cut_off_after_every_step_has_the_same_pictures(
    tmp_path: Path, tiny: Model, asked: Painting, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And the network is asked no oftener than where it is painted at once."""
    monkeypatch.setattr(Memo.__init__, "__defaults__", (0.0,))
    calls = [0]

    def count(*_: object) -> None:
        calls[0] += 1

    hook = tiny.denoiser.register_forward_hook(count)
    try:
        wanted = [np.asarray(picture.image) for picture in paint(asked, tiny, say=lambda line: None)]
        at_once, calls[0] = calls[0], 0
        engine = studio(tmp_path, tiny)
        job = engine.submit(asked)
        found: dict[int, np.ndarray] = {}
        for cut in range(1, 400):
            if len(found) == job.total:
                break
            begin = painter(engine.models, tmp_path)  # nothing is kept in memory
            with closing(begin(job, frozenset(found), lambda line: None)) as ticks:  # type: ignore[type-var]
                for number, tick in enumerate(ticks, 1):
                    found |= {each.index: np.asarray(each.image) for each in tick.finished}
                    if number == cut:
                        break
        engine.close()
    finally:
        hook.remove()
    assert sorted(found) == list(range(len(wanted)))
    assert all(np.array_equal(found[index], picture) for index, picture in enumerate(wanted))
    assert calls[0] == at_once


def test_the_engine_paints_what_paint_paints(tmp_path: Path, tiny: Model) -> None:
    engine = studio(tmp_path, tiny)
    engine.start()
    job = engine.wait(engine.submit(REQUESTS[0]).id, 30)
    assert job.state == "done", job.error
    stored = engine.pictures(job.id)
    with Image.open(engine.path(stored[3])) as image:
        (alone,) = paint(TextToImage(**{**BASE, "seed": 6}), tiny)
        assert np.array_equal(np.asarray(image), np.asarray(alone.image))
        assert image.info["parameters"] == stored[3].infotext
    assert stored[3].seed == 6
    assert stored[3].model == "tiny-random"
    large = engine.wait(engine.submit(Enlarge(images=(f"picture:{stored[0].id}",), scale=2)).id, 30)
    assert large.state == "done", large.error
    (enlarged,) = engine.pictures(large.id)
    assert (enlarged.width, enlarged.height) == (128, 128)
    assert enlarged.infotext.endswith("Postprocess upscale by: 2, Postprocess upscaler: Lanczos")
    # it keeps its record, by which it is painted and enlarged again
    record = tell(read_picture(engine.path(enlarged))).resolved
    assert record is not None
    assert enlarged.record == record.model_dump_json(exclude_none=True)
    assert [(step.before, step.after, step.request.upscaler) for step in record.enlarged] == [
        ((64, 64), (128, 128), "Lanczos")
    ]
    assert (enlarged.kind, enlarged.prompt, enlarged.seed) == ("upscale", "a cat", 3)
    with Image.open(engine.path(enlarged)) as image:
        assert record.pixels == pixels_sha256(image)
    engine.close()
    assert not (tmp_path / "resume").exists() or not list((tmp_path / "resume").iterdir())


@pytest.mark.parametrize(
    ("size", "batches", "have", "runs"),
    [
        (2, 3, set(), [(0, 2, 3)]),
        (2, 3, {0, 1}, [(2, 2, 2)]),
        (2, 3, {2, 3}, [(0, 2, 1), (4, 2, 1)]),
        (4, 2, {0}, [(1, 1, 3), (4, 4, 1)]),
        (4, 1, {1}, [(0, 1, 1), (2, 1, 2)]),
        (1, 2, {0, 1}, []),
    ],
)
def test_what_is_missing_of_a_job(size: int, batches: int, have: set[int], runs: list[tuple[int, int, int]]) -> None:
    assert list(missing(size, batches, frozenset(have))) == runs


def test_a_memo_with_a_torn_or_damaged_end_is_used_as_far_as_it_goes(tmp_path: Path) -> None:
    path = tmp_path / "memo"
    asked = [(torch.full((1, 4, 2, 2), float(n)), At(float(n), float(n))) for n in range(3)]

    def denoise(latents: torch.Tensor, at: At) -> Prediction:
        return Prediction(latents + 1, latents if at.step == 1 else None)

    first = Memo(path, "salt", 0.0)
    wanted = [first.wrap(denoise)(*each) for each in asked]
    whole = path.read_bytes()
    for data, known in ((whole, 3), (whole[:-1], 2), (whole[: len(whole) // 2] + b"\0" * 50, 1), (b"", 0)):
        path.write_bytes(data)
        memo = Memo(path, "salt", 0.0)
        for prediction, each in zip(wanted, asked):
            again = memo.wrap(denoise)(*each)
            assert torch.equal(again.clean, prediction.clean)
            assert (again.unconditional is None) == (prediction.unconditional is None)
        assert memo.replayed == known
        healed = Memo(path, "salt", 0.0)
        for each in asked:
            healed.wrap(denoise)(*each)
        assert healed.replayed == 3
    path.write_bytes(whole)
    other = Memo(path, "another request", 0.0)
    other.wrap(denoise)(*asked[0])
    assert other.replayed == 0
    kept = other.set_aside()
    assert not path.exists()
    still = Memo(path, "salt", 0.0)  # the server was killed before the picture was in the gallery
    still.wrap(denoise)(*asked[0])
    assert still.replayed == 1
    kept()
    gone = Memo(path, "salt", 0.0)
    gone.wrap(denoise)(*asked[0])
    assert gone.replayed == 0


def test_a_short_painting_writes_nothing(tmp_path: Path) -> None:
    memo = Memo(tmp_path / "memo", "salt")
    memo.wrap(lambda latents, at: Prediction(latents))(torch.zeros(1, 4, 2, 2), At(1.0, 0.0))
    assert not memo.path.exists()


def test_previews_are_fitted_to_the_autoencoder(tiny: Model) -> None:
    """An autoencoder whose latents are a known mixture of colours gives back the colours."""
    mixing = torch.tensor([[0.5, 0.1, -0.3, 0.2], [0.0, 0.7, 0.2, -0.4], [0.3, -0.2, 0.6, 0.1]])

    class Mixture(Autoencoder):
        def encode(self, pixels: torch.Tensor) -> Any:
            cells = torch.nn.functional.avg_pool2d(pixels, self.config.downscale)
            latents = torch.einsum("bchw,cl->blhw", cells, mixing) + 0.25

            class Known:
                def mode(self) -> torch.Tensor:
                    return latents

            return Known()

    mixture = Mixture(replace(tiny.family.autoencoder, scale=1.0))
    factors = colours(mixture)
    assert factors.shape == (5, 3)
    colour = torch.tensor([0.5, -0.5, 0.25])
    latents = (colour @ mixing + 0.25).view(1, 4, 1, 1).expand(2, 4, 4, 4)
    image = preview(latents, factors)
    assert max(image.size) == SIDE
    wanted = (colour / 2 + 0.5) * 255
    assert np.abs(np.asarray(image)[SIDE // 4, SIDE // 4] - wanted.numpy()).max() < 3


def test_stable_diffusion_has_the_published_factors(tiny: Model) -> None:
    assert torch.equal(colours(tiny.autoencoder), torch.tensor(FACTORS["sd1"]))
    sdxl = Autoencoder(replace(tiny.family.autoencoder, scale=0.13025))
    assert torch.equal(colours(sdxl), torch.tensor(FACTORS["sdxl"]))
    assert colours(Autoencoder(AutoencoderConfig(channels=(32, 32), layers=1, latent_channels=8, scale=1.0))).shape == (
        9,
        3,
    )


@pytest.mark.parametrize(
    "asked",
    [
        TextToImage(**{**BASE, "steps": 8}, n_iter=2, batch_size=2),
        TextToImage(**{**BASE, "steps": 8}, sampler_name="DPM++ 2M SDE"),
        TextToImage(**{**BASE, "steps": 8}, enable_hr=True, hr_scale=1.5, hr_upscaler="Latent"),
        Inpaint(**{**BASE, "steps": 8}, image=SOURCE, mask=MASK, denoising_strength=1.0),
    ],
    ids=["batch", "noisy", "hires", "inpaint"],
)
def test_an_interrupted_batch_is_kept_as_it_is_by_then(tmp_path: Path, tiny: Model, asked: Painting) -> None:
    engine = studio(tmp_path, tiny)
    calls = [0]

    def count(*_: object) -> None:
        calls[0] += 1
        if calls[0] == 3 * asked.batch_size:
            engine.interrupt()

    hook = tiny.denoiser.register_forward_hook(count)
    try:
        job = engine.submit(asked)
        engine.start()
        over = engine.wait(job.id, 30)
    finally:
        hook.remove()
    assert over.state == "interrupted"
    pictures = engine.pictures(job.id)
    assert [picture.index for picture in pictures] == list(range(asked.batch_size))
    assert calls[0] < 8 * asked.batch_size
    (whole,) = paint(asked.model_copy(update={"n_iter": 1, "batch_size": 1}), tiny, say=lambda line: None)
    with Image.open(engine.path(pictures[0])) as image:
        assert image.size == whole.image.size
        assert not np.array_equal(np.asarray(image), np.asarray(whole.image))
        assert "interrupted after step" in image.info["danqing"]
    engine.close()


ALIKE = tuple(TextToImage(**{**BASE, "prompt": prompt, "steps": 4}) for prompt in ("a cat", "a dog", "a house"))


def test_a_shared_run_that_is_cut_off_goes_on_together_or_alone(
    tmp_path: Path, tiny: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the pictures that each has alone, and the network is asked no oftener than where it is painted at once."""
    monkeypatch.setattr(Memo.__init__, "__defaults__", (0.0,))
    calls = [0]

    def count(*_: object) -> None:
        calls[0] += 1

    wanted = [np.asarray(paint(asked, tiny, say=lambda line: None)[0].image) for asked in ALIKE]
    engine = studio(tmp_path, tiny)
    jobs = [engine.submit(asked) for asked in ALIKE]
    hook = tiny.denoiser.register_forward_hook(count)

    def begun(some: list[Job], steps: int) -> list[Tick]:
        paint_some = sharing(engine.models, tmp_path, 3).paint  # nothing is kept in memory
        with closing(paint_some(some, lambda number, line: None)) as ticks:  # type: ignore[type-var]
            return list(islice(ticks, steps))

    try:
        begun(jobs, 2)
        begun([jobs[1], jobs[0]], 3)
        last = begun(jobs[:2], 9)[-1]
        with closing(painter(engine.models, tmp_path)(jobs[2], frozenset(), lambda line: None)) as ticks:  # type: ignore[type-var]
            *_, alone = ticks
    finally:
        hook.remove()
    found = [*last.finished, *alone.finished]
    assert all(np.array_equal(np.asarray(each.image), picture) for each, picture in zip(found, wanted, strict=True))
    assert calls[0] == len(ALIKE) * 4
    engine.close()


def test_one_of_a_shared_run_is_interrupted_and_kept_as_it_is_by_then(tmp_path: Path, tiny: Model) -> None:
    models = ModelCache(settings=load_settings(data_dir=tmp_path), load=lambda name, vae: tiny)
    engine = Engine(Store(f"sqlite:///{tmp_path / 'studio.db'}"), tmp_path, models, batch=3)
    jobs = [engine.submit(asked).id for asked in ALIKE]
    calls = [0]

    def count(*_: object) -> None:
        calls[0] += 1
        if calls[0] == 3:
            engine.interrupt(jobs[1])

    hook = tiny.denoiser.register_forward_hook(count)
    try:
        engine.start()
        states = [engine.wait(job, 30).state for job in jobs]
    finally:
        hook.remove()
    assert states == ["done", "interrupted", "done"]
    for asked, job in zip(ALIKE, jobs):
        (whole,) = paint(asked, tiny, say=lambda line: None)
        (kept,) = engine.pictures(job)
        with Image.open(engine.path(kept)) as image:
            same = np.array_equal(np.asarray(image), np.asarray(whole.image))
            assert same == (job != jobs[1])
            assert ("interrupted after step 1 of 4" in image.info["danqing"]) == (job == jobs[1])
    assert not list((tmp_path / "resume").glob("*"))
    engine.close()


def test_small_decoders_paint_previews_as_diffusers_has_them(tmp_path: Path, tiny: Model) -> None:
    from diffusers import AutoencoderTiny
    from safetensors.torch import save_file

    torch.manual_seed(0)
    theirs = AutoencoderTiny().eval()
    state = {name: value for name, value in theirs.state_dict().items() if name.startswith("decoder.")}
    authors = {
        f"{int(name.split('.')[2]) + 1}.{name.split('.', 3)[3]}": value for name, value in state.items()
    }  # its first layer, which clamps, has no weights
    latents = torch.randn(1, 4, 6, 8)
    with torch.no_grad():
        wanted = ((theirs.decode(latents).sample[0].permute(1, 2, 0) / 2 + 0.5).clamp(0, 1) * 255).round()
    settings = load_settings(data_dir=tmp_path)
    folder = settings.models_dir / "vae_approx"
    folder.mkdir(parents=True)
    forms = (authors, {f"taesd_decoder.{key}": value for key, value in authors.items()}, dict(theirs.state_dict()))
    for form in forms:
        save_file({key: value.contiguous() for key, value in form.items()}, folder / "taesd_decoder.safetensors")
        image = np.asarray(look_of(tiny, settings, pytest.fail)(latents), np.int32)
        small = np.asarray(Image.fromarray(wanted.to(torch.uint8).numpy()).resize(image.shape[1::-1], 3), np.int32)
        assert np.abs(image - small).max() <= 1
    large = look_of(tiny, settings, pytest.fail)(torch.randn(2, 4, 96, 64))
    assert max(large.size) == SIDE
    (folder / "taesd_decoder.safetensors").unlink()
    save_file({"1.weight": torch.zeros(64, 4, 3, 3)}, folder / "taesd_decoder.safetensors")
    told: list[str] = []
    look_of(tiny, settings, told.append)(latents)
    assert "no whole TAESD decoder" in told[0]
