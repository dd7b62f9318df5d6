"""Which engine runs a loaded model, and what its eight bits are measured on."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import get_args

import platformdirs
import torch
from torch import Tensor, nn

from danqing.errors import DanqingError
from danqing.families import Model
from danqing.requests import TextToImage
from danqing.runtime import compiled, openvino
from danqing.runtime.eight_bits import round_linears
from danqing.runtime.engines import Engine, Inputs, Quantize, Runner, Say

PROMPTS = (
    "a red apple on a wooden table",
    "a portrait of an old man with a white beard",
    "a castle on a hill at sunset, oil painting",
    "a small house in the snow",
    "two blue fish in the sea",
    "a yellow flower, watercolour",
    "a city street at night in the rain",
    "a cat and a dog",
)
"""What a network paints while its ranges are measured."""
STEPS = 8
"""Of these pictures: from pure noise to none."""


def with_engine(model: Model, engine: str, quantize: str, say: Say) -> Model:
    """The model, run by `engine` (auto, eager, compile or openvino), in eight bits where `quantize` says so.

    A missing extra or a machine that the engine does not serve is told to `say`, and torch's eager mode runs.
    Raises DanqingError for an unknown name, or eight bits where the engine has none.
    """
    if engine not in get_args(Engine):
        raise DanqingError(f"engine: '{engine}' is unknown; choose {', '.join(get_args(Engine))}")
    if quantize not in get_args(Quantize):
        raise DanqingError(f"quantize: '{quantize}' is unknown; choose {', '.join(get_args(Quantize))}")
    on_cpu = model.device.type == "cpu"
    if engine == "auto" and not on_cpu:
        engine = "eager"
    rounded = "" if quantize == "none" else f" {quantize}"
    if rounded and engine in ("eager", "compile"):
        if model.memory is not None:
            raise DanqingError(
                f"quantize: {quantize} holds all weights, which a limit of memory may not; leave out one"
            )
        round_linears(model.denoiser, quantize)
    elif quantize == "fp8":
        raise DanqingError(f"quantize: engine {engine} has no fp8 on a CPU; choose int8")
    if engine == "eager":
        return replace(model, engine=Runner(f"eager{rounded}", model.denoiser, None)) if rounded else model
    if model.memory is not None:
        say(f"{engine}: holds all weights, which a limit of memory may not; torch's eager mode runs")
        return model
    if engine == "compile":
        build = partial(compiled.build, model.denoiser, _folder() / "compile", model.device)
        return replace(model, engine=Runner(f"compile{rounded}", model.denoiser, build))
    if not on_cpu or not openvino.installed():
        if engine == "openvino":
            why = "is for CPUs" if not on_cpu else "is missing; pip install 'danqing[openvino]'"
            say(f"openvino: {why}; torch's eager mode runs")
        return model
    bits = next(each for each in get_args(Quantize) if each == quantize)
    return replace(model, engine=_openvino(model, bits, engine == "auto"))


def recorded(name: str) -> tuple[str, str]:
    """(engine, quantize) of what a picture's record names, without its version; what is unknown here is eager."""
    engine, *rest = name.split() or ["eager"]
    bits = next((word for word in rest if word in get_args(Quantize)), "none")
    return (engine, bits) if engine in get_args(Engine) else ("eager", "none")


def for_calls(model: Model, calls: int) -> Model:
    """The model without an engine that so many calls of the network do not pay."""
    return model if model.engine is None or model.engine.pays(calls) else replace(model, engine=None)


def _openvino(model: Model, quantize: Quantize, auto: bool) -> Runner:
    folder = _folder() / "openvino" / _identity(model)
    multiple = 2 ** (len(model.family.denoiser.channels) - 1)
    shown = partial(samples, model)
    build = partial(openvino.build, model.denoiser, folder, quantize, multiple, shown)
    name = " ".join(["openvino", version("openvino"), *[quantize] * (quantize != "none")])

    def pays(calls: int) -> bool:
        return not auto or openvino.pays(folder, quantize, calls)

    return Runner(name, model.denoiser, build, pays)


def _identity(model: Model) -> str:
    """Names the network's weights without reading them: by their files, as they are now, and what was loaded of them."""
    found = [Path(model.path)] if model.path else []
    files = [file for path in found for file in ([path] if path.is_file() else sorted(path.rglob("*")))]
    stamps = [(str(file), (stat := file.stat()).st_size, stat.st_mtime_ns) for file in files]
    shapes = [(name, list(p.shape)) for name, p in model.denoiser.named_parameters()]
    # sampled, as a file may hold EMA weights besides
    some = [float(p[(0,) * p.dim()]) for p in model.denoiser.parameters()]
    told = json.dumps([stamps, shapes, some, str(model.dtype), torch.__version__, version("openvino")])
    return hashlib.sha256(told.encode()).hexdigest()[:16]


def _folder() -> Path:
    return platformdirs.user_cache_path("danqing", appauthor=False)


class _Listener(Runner):
    """Notes what the network is asked, and lets it answer itself."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__("eager", network, build=None)
        self.asked: list[Inputs] = []

    def answer(self, network: nn.Module, inputs: Inputs, say: Say, patched: bool = False) -> Tensor | None:
        if not patched:
            self.asked.append({name: tensor.clone() for name, tensor in inputs.items()})
        return None


def samples(model: Model) -> Sequence[Inputs]:
    """What `model`'s network is asked while it paints `PROMPTS` in few steps, at the size that it was made for."""
    from danqing.pipeline.paint import paint  # which loads models, too

    listener = _Listener(model.denoiser)
    seen = replace(model, engine=listener)
    for seed, prompt in enumerate(PROMPTS):
        paint(TextToImage(prompt=prompt, seed=seed, steps=STEPS), seen, say=lambda line: None)
    return listener.asked
