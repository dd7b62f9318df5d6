"""Other tools' pictures, made by hand as those tools make them: each gives our request, and notes of the rest."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, PngImagePlugin

from danqing.errors import DanqingError
from danqing.metadata.files import read_picture, save
from danqing.metadata.foreign import braces, compel
from danqing.metadata.infotext import infotext
from danqing.metadata.read import as_infotext, tell
from danqing.metadata.told import UNRECORDED, Told
from danqing.request_parts import FreeU, HyperTile, PerturbedAttention, Reference, SelfAttention, TokenMerging
from danqing.requests import ImageToImage, Inpaint, ResolvedRequest, TextToImage


def png(path: Path, **texts: object) -> Path:
    chunks = PngImagePlugin.PngInfo()
    for key, value in texts.items():
        chunks.add_text(key.replace("__", "-"), value if isinstance(value, str) else json.dumps(value))
    Image.new("RGB", (16, 8)).save(path, pnginfo=chunks)
    return path


def told(path: Path, **texts: object) -> Told:
    return tell(read_picture(png(path / "x.png", **texts)))


Graph = dict[str, dict[str, Any]]


def node(title: str, **inputs: object) -> dict[str, Any]:
    return {"class_type": title, "inputs": inputs}


def text_graph() -> Graph:
    """ComfyUI's default workflow with a LoRA, a layer of CLIP and a VAE."""
    return {
        "3": node("KSampler", seed=5, steps=20, cfg=8.0, sampler_name="dpmpp_2m_sde_gpu", scheduler="karras",
                  denoise=1.0, model=["10", 0], positive=["6", 0], negative=["7", 0], latent_image=["5", 0]),
        "4": node("CheckpointLoaderSimple", ckpt_name="sd\\v1-5.safetensors"),
        "5": node("EmptyLatentImage", width=512, height=768, batch_size=1),
        "6": node("CLIPTextEncode", text="a (cat:1.2)", clip=["11", 0]),
        "7": node("CLIPTextEncode", text=["12", 0], clip=["11", 0]),
        "8": node("VAEDecode", samples=["3", 0], vae=["13", 0]),
        "9": node("SaveImage", filename_prefix="ComfyUI", images=["8", 0]),
        "10": node("LoraLoader", lora_name="ink.safetensors", strength_model=0.8, strength_clip=1.0,
                   model=["4", 0], clip=["4", 1]),
        "11": node("CLIPSetLastLayer", stop_at_clip_layer=-2, clip=["10", 1]),
        "12": node("PrimitiveString", value="rain"),
        "13": node("VAELoader", vae_name="vae.safetensors"),
    }  # fmt: skip


def test_comfyui(tmp_path: Path) -> None:
    found = told(tmp_path, prompt=text_graph(), workflow={"nodes": []})
    assert (found.tool, found.notes) == ("ComfyUI", ())
    assert found.request == TextToImage(
        prompt="a (cat:1.2) <lora:ink:1.0:0.8>", negative_prompt="rain", seed=5, steps=20, cfg_scale=8,
        sampler_name="dpmpp_2m_sde", scheduler="Karras", width=512, height=768, clip_skip=2, dialect="comfyui",
    )  # fmt: skip
    assert found.checkpoint == Reference(name="sd/v1-5.safetensors")
    assert found.vae == Reference(name="vae.safetensors")


def test_comfyui_from_a_picture(tmp_path: Path) -> None:
    graph = text_graph()
    graph["3"]["inputs"] |= {"denoise": 0.6, "latent_image": ["20", 0]}
    graph["20"] = node("VAEEncode", pixels=["21", 0], vae=["4", 2])
    graph["21"] = node("LoadImage", image="cat.png")
    request = told(tmp_path, prompt=graph).request
    assert isinstance(request, ImageToImage)
    assert (request.image, request.denoising_strength, request.exact_steps) == (Reference(name="cat.png"), 0.6, True)
    graph["3"]["inputs"]["latent_image"] = ["22", 0]
    graph["22"] = node("SetLatentNoiseMask", samples=["20", 0], mask=["23", 0])
    graph["23"] = node("LoadImageMask", image="mask.png", channel="red")
    request = told(tmp_path, prompt=graph).request
    assert isinstance(request, Inpaint)
    assert (request.image, request.mask) == (Reference(name="cat.png"), Reference(name="mask.png"))


def test_comfyui_in_two_passes(tmp_path: Path) -> None:
    graph = text_graph()
    graph["30"] = node("LatentUpscaleBy", upscale_method="bicubic", scale_by=1.5, samples=["3", 0])
    graph["31"] = {**graph["3"], "inputs": {**graph["3"]["inputs"], "denoise": 0.5, "latent_image": ["30", 0]}}
    graph["8"]["inputs"]["samples"] = ["31", 0]
    request = told(tmp_path, prompt=graph).request
    assert isinstance(request, TextToImage)
    assert (request.enable_hr, request.hr_scale, request.denoising_strength) == (True, 1.5, 0.5)
    assert request.hr_upscaler == "Latent (bicubic)"


def test_comfyui_with_a_refiner(tmp_path: Path) -> None:
    graph = text_graph()
    base = graph["3"]["inputs"]
    base |= {"noise_seed": base.pop("seed"), "start_at_step": 0, "end_at_step": 16}
    graph["3"]["class_type"] = "KSamplerAdvanced"
    graph["31"] = node(
        "KSamplerAdvanced", **{**base, "start_at_step": 16, "model": ["40", 0], "latent_image": ["3", 0]}
    )
    graph["40"] = node("CheckpointLoaderSimple", ckpt_name="refiner.safetensors")
    graph["8"]["inputs"]["samples"] = ["31", 0]
    found = told(tmp_path, prompt=graph)
    assert (found.request.refiner_checkpoint, found.request.refiner_switch_at) == ("refiner.safetensors", 0.8)
    assert (found.request.seed, found.checkpoint) == (5, Reference(name="sd/v1-5.safetensors"))


def test_comfyui_what_acts_inside_the_network(tmp_path: Path) -> None:
    graph = text_graph()
    graph["3"]["inputs"]["model"] = ["53", 0]
    graph["50"] = node("FreeU_V2", b1=1.1, b2=1.2, s1=0.6, s2=0.4, model=["10", 0])
    graph["51"] = node("PerturbedAttentionGuidance", scale=2.5, model=["50", 0])
    graph["52"] = node("SelfAttentionGuidance", scale=0.5, blur_sigma=2.0, model=["51", 0])
    graph["53"] = node("TomePatchModel", ratio=0.3, model=["54", 0])
    graph["54"] = node("HyperTile", tile_size=256, swap_size=2, max_depth=0, scale_depth=False, model=["52", 0])
    found = told(tmp_path, prompt=graph)
    assert found.request.freeu == FreeU(b1=1.1, b2=1.2, s1=0.6, s2=0.4)
    assert found.request.pag == PerturbedAttention(scale=2.5)
    assert found.request.sag == SelfAttention(scale=0.5, blur_sigma=2)
    assert found.request.token_merging == TokenMerging(ratio=0.3)
    assert found.request.hypertile == HyperTile(swap_size=2, max_depth=0)
    assert found.request.prompt.endswith("<lora:ink:1.0:0.8>")
    assert len(found.notes) == 2
    assert all("in a way of its own" in note for note in found.notes)


def test_comfyui_what_has_no_counterpart_is_said(tmp_path: Path) -> None:
    graph = text_graph()
    graph["5"]["inputs"]["batch_size"] = 4
    graph["50"] = node("RescaleCFG", multiplier=0.7, model=["10", 0])
    graph["3"]["inputs"] |= {"model": ["50", 0], "sampler_name": "magic"}
    found = told(tmp_path, prompt=graph)
    assert found.request.batch_size == 4
    assert found.request.sampler_name is None
    for word in ("batch of 4", "'RescaleCFG' is passed over", "sampler 'magic' is unknown"):
        assert any(word in note for note in found.notes), word


@pytest.mark.parametrize(
    "graph",
    ["{", "[]", "{}", '{"1": {"class_type": "Note", "inputs": {}}}', "[" * 100_000, '{"a":' * 50_000, "9" * 5000],
)
def test_comfyui_broken_graphs(tmp_path: Path, graph: str) -> None:
    with pytest.raises(DanqingError, match=r"x\.png: its metadata cannot be read: ComfyUI: prompt") as caught:
        told(tmp_path, prompt=graph)
    assert "\n" not in str(caught.value)


def test_comfyui_a_circle(tmp_path: Path) -> None:
    graph = text_graph()
    graph["3"]["inputs"]["latent_image"] = ["3", 0]
    with pytest.raises(DanqingError, match="circle"):
        told(tmp_path, prompt=graph)


@given(st.recursive(st.none() | st.integers() | st.text(max_size=5) | st.sampled_from(["3", "KSampler", "text"]),
                    lambda inner: st.lists(inner, max_size=3)
                    | st.dictionaries(st.sampled_from(["1", "3", "class_type", "inputs", "model", "text"]), inner)))  # fmt: skip
def test_comfyui_any_graph_is_told_or_refused(graph: object) -> None:
    from danqing.metadata.comfyui import read_comfyui

    fields = {"3": node("KSampler", positive=["1", 0], model=["1", 0], latent_image=["1", 0]), "1": graph}
    try:
        outcome = read_comfyui(json.dumps(fields)).tool
    except DanqingError as error:
        outcome = str(error)
    assert outcome == "ComfyUI" or "prompt" in outcome or "image" in outcome


def test_fooocus(tmp_path: Path) -> None:
    parameters = {
        "prompt": "a cat", "negative_prompt": "", "full_prompt": ["cinematic a cat", "sharp"],
        "full_negative_prompt": ["ugly"], "styles": "['Fooocus V2']", "performance": "Speed", "steps": 30,
        "resolution": "(1152, 896)", "guidance_scale": 4.0, "sharpness": 2.0, "adm_guidance": "(1.5, 0.8, 0.3)",
        "base_model": "juggernautXL_v8", "base_model_hash": "aeb7e9e689", "refiner_model": "None", "clip_skip": 2,
        "sampler": "dpmpp_2m_sde_gpu", "scheduler": "karras", "vae": "Default (model)", "seed": "12",
        "loras": [["offset", 0.1, "0123456789"]], "version": "Fooocus v2.5.0", "metadata_scheme": "fooocus",
    }  # fmt: skip
    found = told(tmp_path, parameters=parameters, fooocus_scheme="fooocus")
    assert found.tool == "Fooocus"
    assert found.request == TextToImage(
        prompt="cinematic a cat BREAK sharp <lora:offset:0.1>", negative_prompt="ugly", steps=30, width=1152,
        height=896, cfg_scale=4, seed=12, sampler_name="dpmpp_2m_sde", scheduler="Karras", clip_skip=2,
        dialect="comfyui", emphasis="original",
    )  # fmt: skip
    assert found.checkpoint == Reference(name="juggernautXL_v8", sha256="aeb7e9e689")
    assert found.others["lora:offset"].autov3 == "0123456789"
    assert any("sharpness" in note for note in found.notes)


def test_invokeai(tmp_path: Path) -> None:
    data = {
        "app_version": "5.0", "generation_mode": "sdxl_txt2img", "positive_prompt": "a cat++ (in snow)0.8",
        "negative_prompt": "", "width": 1024, "height": 768, "seed": 3, "rand_device": "cpu", "cfg_scale": 7.5,
        "steps": 30, "scheduler": "dpmpp_2m_k", "clip_skip": 0, "seamless_x": True,
        "model": {"key": "k", "hash": "blake3:00", "name": "xl-base", "base": "sdxl"},
        "loras": [{"model": {"name": "ink"}, "weight": 0.75}], "controlnets": [{"x": 1}],
    }  # fmt: skip
    found = told(tmp_path, invokeai_metadata=data)
    assert found.tool == "InvokeAI"
    assert found.request == TextToImage(
        prompt="a (cat:1.21) (in snow:0.8) <lora:ink:0.75>", width=1024, height=768, seed=3, cfg_scale=7.5, steps=30,
        sampler_name="DPM++ 2M", scheduler="Karras", clip_skip=1, tiling="x", dialect="diffusers", emphasis="original",
    )  # fmt: skip
    assert found.checkpoint == Reference(name="xl-base")
    assert any("controlnets" in note for note in found.notes)


def test_invokeai_2(tmp_path: Path) -> None:
    image = {"prompt": [{"prompt": "a cat [dog]", "weight": 1.0}], "steps": 50, "cfg_scale": 7.5, "seed": 1,
             "width": 512, "height": 512, "sampler": "k_euler_a", "type": "txt2img"}  # fmt: skip
    found = told(tmp_path, sd__metadata={"model_weights": "v1", "model_hash": "ab" * 32, "image": image})
    assert (found.request.prompt, found.request.negative_prompt) == ("a cat", "dog")
    assert (found.request.sampler_name, found.checkpoint) == ("Euler a", Reference(name="v1", sha256="ab" * 32))


NOVEL = {
    "Title": "AI generated image", "Software": "NovelAI", "Source": "Stable Diffusion 1D44365E",
    "Description": "{{cat}}, (hat), [dim] 2::red::",
    "Comment": {"steps": 28, "sampler": "k_euler_ancestral", "seed": 9, "strength": 0.7, "noise": 0.2, "scale": 11.0,
                "uc": "bad", "width": 512, "height": 768, "noise_schedule": "native", "sm": True},
}  # fmt: skip
NOVEL_REQUEST = TextToImage(
    prompt="(cat:1.103), \\(hat\\), (dim:0.9524) (red:2)", negative_prompt="bad", steps=28, width=512, height=768,
    sampler_name="k_euler_ancestral", seed=9, cfg_scale=11, clip_skip=2, eta_noise_seed_delta=31337, dialect="a1111",
)  # fmt: skip


def test_novelai(tmp_path: Path) -> None:
    found = told(tmp_path, **NOVEL)
    assert (found.tool, found.request) == ("NovelAI", NOVEL_REQUEST)
    assert found.checkpoint == Reference(name="Stable Diffusion", sha256="1d44365e")
    assert found.notes == ("SMEA has no counterpart here",)


def hide(text: str, mark: bytes, size: tuple[int, int]) -> Image.Image:
    """Text in the alpha channel's lowest bits, column by column."""
    data = gzip.compress(text.encode()) if mark.endswith(b"comp") else text.encode()
    bits = np.unpackbits(np.frombuffer(mark + (len(data) * 8).to_bytes(4, "big") + data, np.uint8))
    pixels = np.full((size[1], size[0], 4), 255, np.uint8)
    alpha = np.full(size[0] * size[1], 254, np.uint8)
    alpha[: len(bits)] |= bits
    pixels[..., 3] = alpha.reshape(size).T
    return Image.fromarray(pixels)


@pytest.mark.parametrize("mark", [b"stealth_pngcomp", b"stealth_pnginfo"])
def test_hidden_metadata(tmp_path: Path, mark: bytes) -> None:
    hide(json.dumps({**NOVEL, "Comment": json.dumps(NOVEL["Comment"])}), mark, (96, 61)).save(tmp_path / "x.png")
    assert tell(read_picture(tmp_path / "x.png")).request == NOVEL_REQUEST
    hide("cat\nSteps: 5, Sampler: Euler, Seed: 2", mark, (96, 61)).save(tmp_path / "y.png")
    assert tell(read_picture(tmp_path / "y.png")).request.seed == 2


def test_hidden_bombs(tmp_path: Path) -> None:
    hide("0" * (20 << 20), b"stealth_pngcomp", (512, 512)).save(tmp_path / "x.png")
    with pytest.raises(DanqingError, match="does not say"):
        tell(read_picture(tmp_path / "x.png"))


def test_automatic1111_in_every_format(tmp_path: Path) -> None:
    text = "a cat\nSteps: 20, Sampler: Euler a, CFG scale: 7, Seed: 5, Size: 512x512, Version: v1.10.1"
    for name in ("x.png", "x.jpg", "x.webp", "x.avif"):
        save(Image.new("RGB", (16, 8)), tmp_path / name, text, None)
        assert tell(read_picture(tmp_path / name)).request.seed == 5
    (tmp_path / "x.png").write_bytes((tmp_path / "x.png").read_bytes())
    exif = Image.Exif()
    exif.get_ifd(0x8769)[0x9286] = b"UNICODE\0" + text.encode("utf-16-le")  # Civitai's
    Image.new("RGB", (16, 8)).save(tmp_path / "y.jpg", exif=exif)
    assert tell(read_picture(tmp_path / "y.jpg")).request.prompt == "a cat"


def test_comfyui_in_webp(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0110] = "prompt:" + json.dumps(text_graph())
    Image.new("RGB", (16, 8)).save(tmp_path / "x.webp", exif=exif)
    assert tell(read_picture(tmp_path / "x.webp")).tool == "ComfyUI"


def test_our_record_decides(tmp_path: Path) -> None:
    """A prompt that AUTOMATIC1111's grammar cannot tell from a negative one."""
    request = TextToImage(prompt=" a\nNegative prompt: b \n\n", seed=1, width=64, height=64, steps=1)
    made = ResolvedRequest(request=request, family="sd1", checkpoint=Reference(name="m"))
    for name in ("x.png", "x.jpg", "x.webp", "x.avif"):
        save(Image.new("RGB", (16, 8)), tmp_path / name, infotext(made), made.model_dump_json(exclude_none=True))
        found = tell(read_picture(tmp_path / name))
        assert (found.request, found.resolved) == (request, made)
        assert as_infotext(found) == infotext(made)


def test_sd_parsers_reads_ours(tmp_path: Path) -> None:
    parsers = pytest.importorskip("sd_parsers")
    request = TextToImage(prompt="a cat, 猫", negative_prompt="rain", seed=1, width=64, height=64, steps=1, cfg_scale=7,
                          sampler_name="Euler a", scheduler="Karras")  # fmt: skip
    made = ResolvedRequest(request=request, family="sd1", checkpoint=Reference(name="m", sha256="0123456789abcdef"))
    for name in ("x.png", "x.jpg", "x.webp"):
        save(Image.new("RGB", (16, 8)), tmp_path / name, infotext(made), made.model_dump_json(exclude_none=True))
        found = parsers.ParserManager().parse(tmp_path / name)
        assert found is not None
        (sampler,) = found.samplers
        assert (sampler.name, sampler.parameters["seed"], sampler.parameters["scheduler"]) == ("Euler a", "1", "Karras")
        assert (sampler.model.name, sampler.model.hash) == ("m", "0123456789")
        assert [str(prompt) for prompt in (*found.prompts, *found.negative_prompts)] == ["a cat, 猫", "rain"]


@given(st.text())
def test_weights_of_any_prompt(text: str) -> None:
    assert isinstance(braces(text), str)
    assert isinstance(compel(text), str)
    if not set(text) & set("{}[]():"):
        assert braces(text) == text


def test_what_began_the_picture_may_be_unknown(tmp_path: Path) -> None:
    data = {"generation_mode": "inpaint", "positive_prompt": "x", "strength": 0.5}
    request = told(tmp_path, invokeai_metadata=data).request
    assert isinstance(request, Inpaint)
    assert (request.image, request.mask) == (UNRECORDED, UNRECORDED)
