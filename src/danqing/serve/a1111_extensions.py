"""Routes of two more of AUTOMATIC1111's extensions that its clients call: promptgen and instruct-pix2pix.

What comes with torch is imported when it is needed: the studio is there before.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Annotated, Any, Literal

from fastapi import APIRouter, HTTPException
from pydantic import Field

from danqing.serve.a1111_bodies import Body, Encoded, Img2Img, Number
from danqing.serve.a1111_options import Fields
from danqing.serve.a1111_studio import Studio
from danqing.vocabulary import quoted


class Promptgen(Body):
    """What promptgen is sent; its defaults are the extension's."""

    model_name: str = "AUTOMATIC/promptgen-lexart"
    batch_count: Annotated[int, Field(ge=1, le=16)] = 1
    batch_size: Annotated[int, Field(ge=1, le=64)] = 10
    text: Annotated[str, Field(max_length=10_000)] = ""
    min_length: Annotated[int, Field(ge=0, le=1024)] = 20
    max_length: Annotated[int, Field(ge=1, le=1024)] = 150
    num_beams: Annotated[int, Field(ge=1, le=16)] = 1
    temperature: Annotated[float, Field(gt=0, le=100)] = 1.0
    repetition_penalty: Annotated[float, Field(gt=0, le=100)] = 1.0
    length_preference: Annotated[float, Field(ge=-100, le=100)] = 1.0
    sampling_mode: Literal["Top K", "Top P"] = "Top K"
    top_k: Annotated[float, Field(ge=1, le=1000)] = 12
    top_p: Annotated[float, Field(gt=0, le=1)] = 0.15


class Pix2Pix(Body):
    """What instruct-pix2pix is sent."""

    init_images: list[Encoded] = Field(default_factory=list)
    prompt: str = ""
    negative_prompt: str = ""
    output_batches: int = 1
    sampler: str = "Euler a"
    steps: int = 20
    seed: int = 0
    randomize_seed: bool = True
    text_cfg: Number = 7.5
    image_cfg: Number = 1.5
    randomize_cfg: bool = False
    output_image_width: Annotated[int, Field(ge=64, le=16384)] = 512


def add_extensions(routes: APIRouter, studio: Studio, waited: Callable[..., Coroutine[Any, Any, Any]]) -> None:
    """Put their routes onto `routes`; `waited` runs what takes long beside the event loop."""

    @routes.get("/promptgen/list_models")
    def list_models() -> Fields:
        from danqing.pipeline.caption import language_models

        found = language_models(studio.engine.models.settings, "gpt2")
        return {"available_models": [entry.name for entry in found]}

    @routes.post("/promptgen/generate")
    async def generate(body: Promptgen) -> Fields:
        answer: Fields = await waited(_written, studio, body)
        return answer

    @routes.post("/instruct-pix2pix/img2img")
    async def pix2pix(body: Pix2Pix) -> Fields:
        answer: Fields = await waited(_instructed, studio, body)
        return answer


def _written(studio: Studio, body: Promptgen) -> Fields:
    from danqing.pipeline.caption import language_models
    from danqing.pipeline.promptgen import Writing, load_writer

    found = {entry.name: entry.path for entry in language_models(studio.engine.models.settings, "gpt2")}
    if body.model_name not in found:
        there = ", ".join(found) or "none"
        raise HTTPException(404, f"Model not found: {quoted(body.model_name)}; in the library there is {there}")
    how = Writing(
        body.batch_size, body.min_length, body.max_length, body.num_beams, body.temperature, body.repetition_penalty,
        body.length_preference, body.sampling_mode, int(body.top_k), body.top_p,
    )  # fmt: skip
    write = load_writer(found[body.model_name])
    return {"prompts": [prompt for _ in range(body.batch_count) for prompt in write(body.text, how)]}


def _instructed(studio: Studio, body: Pix2Pix) -> Fields:
    """The picture painted anew from noise, as wide as asked, in its proportions."""
    from danqing.serve.a1111_paint import opened_picture, paint

    if not body.init_images:
        raise HTTPException(404, "Init image not found")
    picture = opened_picture(studio, studio.opened(body.init_images[0]))
    height = round(body.output_image_width * picture.height / picture.width / 8) * 8
    asked = Img2Img(
        init_images=body.init_images,
        prompt=body.prompt,
        negative_prompt=body.negative_prompt,
        n_iter=body.output_batches,
        sampler_name=body.sampler,
        steps=body.steps,
        seed=-1 if body.randomize_seed else body.seed,
        cfg_scale=body.text_cfg,
        image_cfg_scale=body.image_cfg,
        denoising_strength=1.0,
        width=body.output_image_width,
        height=min(max(height, 64), 16384),
    )
    return paint(studio, asked)
