"""A request's image prompts: from files and pictures to a painting, its record and its replay."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw
from safetensors.torch import load_file, save_file

import danqing
from danqing.adapters.identity import Identity
from danqing.adapters.reference import ReferencePicture
from danqing.errors import DanqingError
from danqing.families import Model
from danqing.metadata.infotext import infotext, read_infotext
from danqing.models.controlnet import from_unet
from danqing.pipeline.decode import encode
from danqing.pipeline.image_prompts import load_prompters, with_prompt_loras
from danqing.pipeline.replay import replay
from danqing.pipeline.resolve import resolve
from danqing.pipeline.run import Studio, prepare
from danqing.pipeline.start import Start
from danqing.prompts.encode import conditionings
from danqing.prompts.grammar import understand
from danqing.request_parts import ImagePrompt, Reference
from danqing.requests import ImageToImage, Inpaint, TextToImage, read
from ip_adapter_files import photomaker, save_ip_adapter, save_tower

QUICK: dict[str, Any] = {"steps": 2, "seed": 3, "width": 64, "height": 64, "cfg_scale": 3.0}
POINTS = "20 24 44 24 32 36 24 48 40 48"


def photograph() -> Image.Image:
    x, y = np.meshgrid(np.linspace(0, 255, 80), np.linspace(0, 255, 64))
    image = Image.fromarray(np.stack([x, y, 255 - x], -1).astype(np.uint8))
    ImageDraw.Draw(image).ellipse((10, 12, 40, 44), fill=(220, 40, 30))
    return image


@pytest.fixture(scope="module")
def files(tiny: Model, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("prompters")
    for kind in ("plain", "plus", "face", "instant"):
        save_ip_adapter(folder / f"{kind}.safetensors", kind, tiny.family.denoiser)
    towers = folder / "home" / "models" / "clip_vision"
    towers.mkdir(parents=True)
    save_tower(towers / "tower.safetensors")
    save_file({"vision_model.encoder.layers.0.x": torch.zeros(1)}, towers / "a broken one.safetensors")
    torch.manual_seed(0)
    net = from_unet(tiny.denoiser)  # type: ignore[arg-type]
    save_file(
        {k: v.detach() + 0.08 * torch.randn(v.shape) for k, v in net.state_dict().items()}, folder / "net.safetensors"
    )
    attention = "unet.mid_block.attentions.0.transformer_blocks.0.attn2.to_q"
    lora = {f"{attention}.lora_A.weight": torch.randn(2, 64), f"{attention}.lora_B.weight": torch.randn(64, 2)}
    torch.save({"id_encoder": photomaker(64, False).state_dict(), "lora_weights": lora}, folder / "photomaker.bin")
    np.save(folder / "face.npy", np.random.default_rng(0).normal(size=(1, 512)))
    photograph().save(folder / "photo.png")
    photograph().rotate(90).save(folder / "other.png")
    Image.fromarray(np.pad(np.full((64, 32), 255, np.uint8), ((0, 0), (0, 32)))).save(folder / "mask.png")
    return folder


@pytest.fixture(autouse=True)
def _here(files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(files)
    monkeypatch.setenv("DANQING_HOME", str(files / "home"))
    monkeypatch.setenv("HF_HUB_CACHE", str(files / "hub"))


def painted(model: Model, request: Any, **options: Any) -> danqing.Picture:
    (picture,) = danqing.paint(request, model, say=lambda line: None, **options)
    return picture


def apart(a: danqing.Picture, b: danqing.Picture) -> int:
    return int(np.abs(np.asarray(a.image).astype(int) - np.asarray(b.image).astype(int)).max())


def text(prompts: str, prompt: str = "a cat", **fields: Any) -> TextToImage:
    return read(TextToImage, {"prompt": prompt, "image_prompts": prompts, **QUICK, **fields})


@pytest.mark.parametrize(
    "prompts",
    [
        "plain.safetensors,photo.png,2",
        "plus.safetensors,photo.png|other.png,2,ease in,0,0.9,average",
        "plus.safetensors,photo.png,2,style transfer",
        '[{"model": "face.safetensors", "faces": "face.npy", "weight": 2, "mask": "mask.png"}]',
        f'[{{"model": "instant.safetensors", "faces": "face.npy", "identity_net": "net.safetensors", "keypoints": "{POINTS}"}}]',
        "reference only,photo.png,1",
        "Reference-Only,photo.png|other.png; plain.safetensors,other.png",
    ],
)
def test_pictures_steer_are_recorded_and_replayed(prompts: str, tiny: Model, files: Path) -> None:
    plain, request = painted(tiny, TextToImage(prompt="a cat", **QUICK)), text(prompts)
    steered = painted(tiny, request)
    assert apart(plain, steered) > 2
    record = steered.record
    assert read_infotext(infotext(record)).request.image_prompts == record.request.image_prompts
    for index, asked in enumerate(record.request.image_prompts):
        assert all(len(image.sha256) == 64 for image in asked.images)  # type: ignore[union-attr]
        is_file = "safetensors" in asked.model
        assert (f"image_prompts.{index}.model" in record.others) is is_file
    assert replay(steered.save("out.png"), tiny, say=lambda line: None).identical


def test_a_person_of_photographs(tiny: Model) -> None:
    lines: list[str] = []
    request = text("photomaker.bin,photo.png|other.png", "a man img in snow")
    (whom,) = danqing.paint(request, tiny, say=lines.append)
    plain = painted(tiny, TextToImage(prompt="a man in snow", **QUICK))
    assert apart(plain, whom) > 2
    assert any(line.startswith("photomaker: 1 of 1 layers") for line in lines)
    late = painted(tiny, text("[{\"model\": \"photomaker.bin\", \"images\": [\"photo.png\"], \"guidance_start\": 0.5}]", "a man img in snow"))  # fmt: skip
    assert apart(late, whom) > 0
    assert replay(whom.save("who.png"), tiny, say=lambda line: None).identical
    for prompts, prompt, line in (
        ("photomaker.bin,photo.png", "a man", "trigger word"),
        ("photomaker.bin", "a man img", "no photograph"),
        ("photomaker.bin,photo.png,0.5", "a man img", "weight has no effect with PhotoMaker v1"),
        ("photomaker.bin,photo.png;photomaker.bin,photo.png", "a man img", "one PhotoMaker at a time"),
    ):
        with pytest.raises(DanqingError, match=line):
            painted(tiny, text(prompts, prompt))


def test_over_a_picture_it_is_that_picture(tiny: Model) -> None:
    request = ImageToImage(prompt="a cat", image="photo.png", denoising_strength=0.9, **QUICK)
    own = painted(tiny, request, image_prompts="plain.safetensors,,2")
    assert apart(painted(tiny, request), own) > 2
    assert apart(own, painted(tiny, request, image_prompts="plain.safetensors,photo.png,2")) == 0


def test_a_refiner_sees_no_photographs_nor_their_word(tiny: Model) -> None:
    resolved = resolve(TextToImage(prompt="a man img in snow", **QUICK), tiny.family, Reference(name="m"))
    who = Identity(photomaker(64, False), torch.zeros(1, 64))
    run = prepare(resolved, tiny, print, controls=(who,), refiner=tiny)
    plain = conditionings(tiny, understand("a man in snow", 2))[0].context
    assert run.refiner is not None
    assert torch.equal(run.refiner.positive[0].context, plain)
    assert not torch.equal(run.positive[0].context, plain)


def test_they_go_with_what_acts_inside_the_network(tiny: Model) -> None:
    asked = [
        {"model": "plain.safetensors", "images": ["photo.png"], "weight": 2, "mask": "mask.png"},
        {"model": "reference only", "images": ["other.png"]},
    ]
    inside = {
        "freeu": "yes",
        "pag": "yes",
        "sag": "yes",
        "token_merging": {"ratio": 0.4, "max_downsample": 4},
        "hypertile": "yes",
    }
    request = read(TextToImage, {"prompt": "a cat", **QUICK, **inside})
    assert apart(painted(tiny, request), painted(tiny, request, image_prompts=asked)) > 2


def test_in_half_the_precision(tiny_bf16: Model) -> None:
    asked = [
        {"model": "plus.safetensors", "images": ["photo.png"], "mask": "mask.png"},
        {"model": "instant.safetensors", "faces": "face.npy", "identity_net": "net.safetensors", "keypoints": POINTS},
        {"model": "reference only", "images": ["other.png"], "style_fidelity": 0.2},
        {"model": "photomaker.bin", "images": ["photo.png"]},
    ]
    plain = painted(tiny_bf16, TextToImage(prompt="a man", **QUICK))
    assert apart(plain, painted(tiny_bf16, TextToImage(prompt="a man img", image_prompts=asked, **QUICK))) > 2


def test_one_call_of_the_network_serves_both_sides(tiny: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    rows: list[int] = []
    forward = type(tiny.denoiser).forward

    def counted(network: Any, latents: torch.Tensor, *told: Any, **more: Any) -> torch.Tensor:
        rows.append(len(latents))
        return forward(network, latents, *told, **more)

    monkeypatch.setattr(type(tiny.denoiser), "forward", counted)
    painted(tiny, text("plain.safetensors,photo.png,2"))
    assert rows == [2, 2]


def test_a_picture_painted_over_is_no_picture_of_keypoints(tiny: Model) -> None:
    asked = [{"model": "instant.safetensors", "faces": "face.npy", "identity_net": "net.safetensors"}]
    request = ImageToImage(prompt="a cat", image="photo.png", denoising_strength=0.9, **QUICK)
    with pytest.raises(DanqingError, match="wants the face's keypoints, or one picture of them"):
        painted(tiny, request, image_prompts=asked)
    drawn = painted(tiny, request, image_prompts=[{**asked[0], "images": ["other.png"]}])
    assert apart(drawn, painted(tiny, request, image_prompts=[{**asked[0], "keypoints": POINTS}])) > 0


def test_with_parts_of_the_picture(tiny: Model) -> None:
    prompts = '[{"model": "plain.safetensors", "images": ["photo.png"], "weight": 2, "mask": "mask.png"}, {"model": "reference only", "images": ["other.png"]}]'  # fmt: skip
    mask = Image.new("L", (80, 64))
    ImageDraw.Draw(mask).rectangle((16, 8, 47, 39), fill=255)
    requests: list[Any] = [
        TextToImage(prompt="a", enable_hr=True, hr_scale=1.5, **QUICK),
        TextToImage(prompt="a", tiled_diffusion="8,8,2,2", **{**QUICK, "width": 96}),
        Inpaint(prompt="a", image="photo.png", mask=mask, inpaint_full_res=True, denoising_strength=1.0, **QUICK),
        ImageToImage(prompt="a", image="photo.png", sd_upscale="1.5,16,Lanczos", **QUICK),
    ]
    for request in requests:
        assert apart(painted(tiny, request), painted(tiny, request, image_prompts=prompts)) > 2


def test_where_only_the_masked_part_is_painted_masks_and_points_are_of_the_whole(tiny: Model) -> None:
    mask, beside = Image.new("L", (80, 64)), Image.new("L", (80, 64))
    ImageDraw.Draw(mask).rectangle((16, 8, 47, 39), fill=255)
    ImageDraw.Draw(beside).rectangle((60, 0, 79, 63), fill=255)
    request = Inpaint(
        prompt="a", image="photo.png", mask=mask, mask_blur=0, inpaint_full_res=True, inpaint_full_res_padding=0,
        denoising_strength=1.0, **QUICK,
    )  # fmt: skip
    beside.save("beside.png")
    asked: dict[str, Any] = {"model": "plain.safetensors", "images": ["photo.png"], "weight": 2, "mask": "beside.png"}
    assert apart(painted(tiny, request), painted(tiny, request, image_prompts=[asked])) == 0
    asked["mask"] = "mask.png"
    assert apart(painted(tiny, request), painted(tiny, request, image_prompts=[asked])) > 2
    face = {"model": "instant.safetensors", "faces": "face.npy", "identity_net": "net.safetensors"}
    points = [{**face, "keypoints": f"3 {y} 5 {y} 4 {y + 3} 3 {y + 6} 5 {y + 6}"} for y in (18, 26)]
    beside_it = [painted(tiny, request, image_prompts=[each]) for each in points]
    assert apart(*beside_it) == 0
    shifted = painted(tiny, request, image_prompts=[{**face, "keypoints": "30 20 40 20 35 25 31 30 39 30"}])
    assert apart(shifted, beside_it[0]) > 0


def test_a_files_lora_is_applied_once_and_in_the_second_pass(tiny: Model, files: Path) -> None:
    adapter = load_file(files / "face.safetensors")
    places = {f"ip_adapter.1.to_q_lora.{part}.weight": s for part, s in (("down", (2, 32)), ("up", (32, 2)))}
    width = tiny.denoiser.get_submodule("down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_q").in_features  # type: ignore[operator]
    places = {key: tuple(width if side == 32 else side for side in shape) for key, shape in places.items()}
    lora = {key: torch.ones(shape) for key, shape in places.items()}
    save_file({**adapter, **lora}, files / "faceid.safetensors")
    one = {"model": "faceid.safetensors", "faces": "face.npy", "weight": 2}
    dressed = []
    for asked in ([one], [one, {**one, "mask": "mask.png"}], [{**one, "weight": 0}]):
        request = read(TextToImage, {"prompt": "a", "image_prompts": asked, "enable_hr": True, **QUICK})
        studio = Studio(tiny, print, others={"hr_checkpoint_name": tiny}, prompters=load_prompters(request, tiny))
        dressed.append(with_prompt_loras(studio, request))
    name = "down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_q.weight"
    plain = tiny.denoiser.get_parameter(name)
    once, twice, never = (each.model.denoiser.get_parameter(name) for each in dressed)
    assert not torch.equal(once, plain)
    assert torch.equal(once, twice)
    assert torch.equal(never, plain)
    assert torch.equal(dressed[0].others["hr_checkpoint_name"].denoiser.get_parameter(name), once)


def test_when_photographs_count_goes_by_the_runs_own_steps(tiny: Model) -> None:
    resolved = resolve(TextToImage(prompt="a man img", **{**QUICK, "steps": 10}), tiny.family, Reference(name="m"))
    who = Identity(photomaker(64, False), torch.zeros(1, 64), start=0.5)
    run = prepare(resolved, tiny, print, strength=0.4, controls=(who,))
    first = math.ceil(run.count / 2)
    assert [branch.steps for branch in run.positive] == [(-math.inf, first), (first, math.inf)]
    early = replace(who, start=0.0, end=0.25)
    assert prepare(resolved, tiny, print, strength=0.4, controls=(early,)).positive[0].steps[1] == run.count // 4 + 1


def test_a_reference_is_encoded_once(tiny: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []

    def counted(*told: Any, **more: Any) -> torch.Tensor:
        seen.append(1)
        return encode(*told, **more)

    monkeypatch.setattr("danqing.pipeline.run.encode", counted)
    danqing.paint(text("reference only,photo.png", n_iter=3), tiny, say=lambda line: None)
    assert len(seen) == 1


def test_what_guides_by_a_picture_has_the_controls_on_all_its_sides(
    tiny: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    sides: list[Any] = []
    monkeypatch.setattr("danqing.pipeline.run.guidance.instruct", lambda predict, *told: sides.extend(told))
    family = replace(tiny.family, denoiser=replace(tiny.family.denoiser, in_channels=8))
    request = TextToImage(prompt="a man", **QUICK)
    shown = ReferencePicture(torch.rand(1, 3, 64, 64), fidelity=0.3)
    run = prepare(resolve(request, family, Reference(name="m")), replace(tiny, family=family), print, controls=(shown,))
    run._guided(run.plans[0], Start(torch.zeros(1, 4, 8, 8), channels=torch.ones(1, 4, 8, 8)))
    _, picture, neither, *_ = sides
    assert picture[0].controls == neither[0].controls != ()
    assert not neither[0].channels.any()


def test_a_photomaker_goes_with_a_subprompt(tiny: Model) -> None:
    asked = [{"model": "photomaker.bin", "images": ["photo.png"], "guidance_start": 0.5}]
    request = read(TextToImage, {"prompt": "a man img", "image_prompts": asked, **QUICK})
    mixed = painted(tiny, request, subprompt="a dog", subprompt_strength=0.4)
    assert apart(mixed, painted(tiny, request)) > 0


def test_a_batchs_pictures_are_those_of_their_seeds(tiny: Model) -> None:
    prompts = "plain.safetensors,photo.png,2;reference only,other.png"
    pair = danqing.paint(text(prompts, batch_size=2), tiny, say=lambda line: None)
    assert apart(pair[1], painted(tiny, text(prompts, seed=4))) == 0


def test_a_weight_of_nothing_is_said(tiny: Model) -> None:
    lines: list[str] = []
    danqing.paint(text("plain.safetensors,photo.png,0"), tiny, say=lines.append)
    assert "image_prompts: 'plain.safetensors' changes nothing: its weight is 0" in lines
    plain = painted(tiny, TextToImage(prompt="a cat", **QUICK))
    face = {"model": "instant.safetensors", "faces": "face.npy", "identity_net": "net.safetensors", "keypoints": POINTS}
    for identity_weight, what in ((0, "changes nothing"), (2, "acts by its identity_net alone")):
        asked, said = [{**face, "weight": 0, "identity_weight": identity_weight}], list[str]()
        (picture,) = danqing.paint(read(TextToImage, {"prompt": "a cat", "image_prompts": asked, **QUICK}), tiny, say=said.append)  # fmt: skip
        assert f"image_prompts: 'instant.safetensors' {what}: its weight is 0" in said
        assert (apart(picture, plain) > 0) is (identity_weight > 0)


def test_a_unit_of_photographs_is_checked_as_a_requests(tiny: Model) -> None:
    who = Identity(photomaker(64, False), torch.zeros(1, 64))
    with pytest.raises(DanqingError, match="trigger word"):
        painted(tiny, TextToImage(prompt="a man", **QUICK), units=[who])
    with pytest.raises(DanqingError, match="one PhotoMaker at a time"):
        painted(tiny, text("photomaker.bin,photo.png", "a man img"), units=[who])


def test_how_image_prompts_are_written() -> None:
    one, two = text(
        "a.bin, b.png | c.png ,0.5,Style Transfer,0.1,0.9,Average,tower; reference only,d.png"
    ).image_prompts
    assert one == ImagePrompt(
        model="a.bin", images=("b.png", "c.png"), weight=0.5, weight_type="style transfer", guidance_start=0.1,
        guidance_end=0.9, combine="average", encoder="tower",
    )  # fmt: skip
    assert two == ImagePrompt(model="reference only", images=("d.png",))
    assert ImagePrompt(model="a", images="b.png").images == ("b.png",)
    assert len(ImagePrompt(model="a", keypoints=POINTS).keypoints) == 10
    made = ImagePrompt(model="a", images=(photograph(),))
    assert str(made.images[0]).startswith("data:image/png")


@pytest.mark.parametrize(
    ("prompts", "line"),
    [
        ("plain.safetensors", "'plain.safetensors' is shown no picture; give one by its images"),
        ("reference only", "reference only is shown no picture"),
        ("plain.safetensors,gone.png", r"image_prompts\.0\.images\.0: there is no file 'gone\.png'"),
        ("nowhere.safetensors,photo.png", "nowhere.safetensors"),
        ("net.safetensors,photo.png", "is a ControlNet, not an IP-Adapter"),
        ("plain.safetensors,photo.png,9", "weight"),
        ("plain.safetensors,photo.png,1,sideways", "weight_type"),
        ("plain.safetensors,photo.png,1,linear,0.5,0.4", "should not be above guidance_end"),
        ("plain.safetensors,photo.png,1,linear,0,1,average", "combine has no effect on a single picture"),
        ("reference only,photo.png,1,ease in", "weight_type has no effect with reference only"),
        ("face.safetensors", "512 numbers, and none are given"),
        ('[{"model": "face.safetensors", "faces": "gone.npy"}]', r"gone\.npy: no such file"),
        ('[{"model": "face.safetensors", "faces": "face.npy", "encoder": "tower"}]', "encoder has no effect"),
        ('[{"model": "face.safetensors", "faces": "face.npy", "images": ["photo.png"]}]', "images has no effect with"),
        (
            '[{"model": "plain.safetensors", "images": ["photo.png"], "style_fidelity": 1}]',
            "style_fidelity has no effect",
        ),
        ('[{"model": "plain.safetensors", "images": ["photo.png"], "faces": "face.npy"}]', "faces has no effect with"),
        (
            f'[{{"model": "instant.safetensors", "faces": "face.npy", "identity_net": "net.safetensors", "keypoints": "{POINTS}", "images": ["photo.png"]}}]',
            "images has no effect beside keypoints",
        ),
        (
            '[{"model": "instant.safetensors", "faces": "face.npy", "identity_net": "net.safetensors"}]',
            "wants the face's keypoints",
        ),
        ('[{"model": "instant.safetensors", "faces": "face.npy", "keypoints": "1 2"}]', "ten numbers, X and Y of five"),
    ],
)
def test_what_is_wrong_is_said(prompts: str, line: str, tiny: Model) -> None:
    with pytest.raises(DanqingError, match=line) as caught:
        painted(tiny, text(prompts))
    assert "\n" not in str(caught.value)


def test_the_tower_must_fit(tiny: Model, files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other = files / "wide.safetensors"
    state = {
        "vision_model.embeddings.patch_embedding.weight": torch.zeros(8, 3, 8, 8),
        "vision_model.embeddings.position_embedding.weight": torch.zeros(17, 8),
        "vision_model.encoder.layers.0.mlp.fc1.weight": torch.zeros(4, 8),
        "visual_projection.weight": torch.zeros(1280, 8),
    }
    save_file(state, other)
    with pytest.raises(DanqingError, match=r"wide\.safetensors: is the image tower ViT-bigG/14; 'plain\.safetensors'"):
        painted(tiny, text("plain.safetensors,photo.png,1,linear,0,1,concat,./wide.safetensors"))
    monkeypatch.setenv("DANQING_HOME", str(files / "another home"))
    with pytest.raises(DanqingError, match="give its file by encoder, or put it into the folder clip_vision"):
        painted(tiny, text("plain.safetensors,photo.png"))


def test_what_the_extension_of_automatic1111_writes() -> None:
    told = read_infotext(
        "a castle\nSteps: 20, Sampler: Euler, CFG scale: 7, Seed: 8, Size: 512x512, "
        'ControlNet 0: "Module: ip-adapter-auto, Model: ip-adapter_sd15 [6a3f6166], Weight: 0.6, Resize Mode: Crop and '
        'Resize, Guidance Start: 0.1, Guidance End: 0.8, Pixel Perfect: True, Control Mode: Balanced", '
        'ControlNet 1: "Module: reference_only, Model: None, Weight: 1, Threshold A: 0.7, Guidance Start: 0, Guidance '
        'End: 1", ControlNet 2: "Module: canny, Model: canny, Weight: 1", Version: v1.10.1'
    )
    assert told.request.image_prompts == (
        ImagePrompt(model="ip-adapter_sd15 [6a3f6166]", weight=0.6, guidance_start=0.1, guidance_end=0.8),
        ImagePrompt(model="reference only", style_fidelity=0.7),
    )
    assert [unit.model for unit in told.request.controls] == ["canny"]
    assert all("is not recorded" in note for note in told.notes)


def test_a_references_weight_above_1_is_read_as_1() -> None:
    unit = "Module: reference_only, Model: None, Weight: 1.5, Guidance Start: 0, Guidance End: 1"
    told = read_infotext(
        f'a castle\nSteps: 20, Sampler: Euler, CFG scale: 7, Seed: 8, Size: 512x512, ControlNet 0: "{unit}"'
    )
    assert told.request.image_prompts == (ImagePrompt(model="reference only"),)
    assert "ControlNet 0: reference_only at a weight of 1.5 is as at 1, which is taken" in told.notes


def test_it_is_written_for_that_extension(tiny: Model) -> None:
    line = infotext(painted(tiny, text("plain.safetensors,photo.png,2; reference only,other.png")).record)
    assert 'ControlNet 0: "Module: ip-adapter-auto, Model: plain' in line
    assert 'ControlNet 1: "Module: reference_only, Model: None, Weight: 1.0' in line
