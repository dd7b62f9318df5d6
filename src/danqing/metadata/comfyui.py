"""ComfyUI's pictures: the graph in their `prompt` chunk, walked back from what was saved to a request.

Simple graphs: KSampler and KSamplerAdvanced, text encoders, loaders, LoRAs, empty and encoded latents, latent
upscaling between two samplers. Node and input names are ComfyUI's (nodes.py, comfy_extras).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import PurePosixPath, PureWindowsPath
from typing import Any

from danqing.errors import DanqingError
from danqing.metadata.told import UNRECORDED, Told, build, load_object
from danqing.request_parts import Reference
from danqing.requests import Kind

Node = Mapping[str, Any]
SAMPLERS = ("KSampler", "KSamplerAdvanced")
_DEPTH = 200
"""Nodes on one way back; a graph that is longer runs in a circle."""
_LATENT_UPSCALERS = {
    # LatentUpscale's method -> AUTOMATIC1111's mode
    "nearest-exact": "Latent (nearest-exact)",
    "bilinear": "Latent",
    "area": "Latent",
    "bicubic": "Latent (bicubic)",
    "bislerp": "Latent",
}


class Graph:
    """The nodes of an API-format graph, and what could not be told of them."""

    def __init__(self, nodes: Mapping[str, Node]) -> None:
        self.nodes = nodes
        self.notes: list[str] = []

    def note(self, line: str) -> None:
        if line not in self.notes:
            self.notes.append(line)

    def behind(self, node: Node, name: str) -> Node | None:
        """The node that an input comes from."""
        link = node["inputs"].get(name)
        if not isinstance(link, list) or not link:
            return None
        found = self.nodes.get(str(link[0]))
        if not isinstance(found, dict) or not isinstance(found.get("inputs"), dict):
            raise DanqingError(f"prompt: the graph links to a node '{link[0]}' that is not there")
        return found

    def value(self, node: Node, name: str) -> Any:
        """An input's value; of a primitive's node its own."""
        for _ in range(_DEPTH):
            value = node["inputs"].get(name)
            if not isinstance(value, list):
                return value
            source = self.behind(node, name)
            if source is None:
                return None
            name = next((key for key in ("value", "text", "string", "int", "float", "seed", "noise_seed", name)
                         if key in source["inputs"]), "")  # fmt: skip
            if not name:
                self.note(f"an input comes from the node '{source.get('class_type')}', whose result is not recorded")
                return None
            node = source
        raise DanqingError("prompt: the graph runs in a circle")

    def up(self, node: Node, name: str, wanted: tuple[str, ...], through: tuple[str, ...]) -> Node | None:
        """The first node of a wanted class behind an input, seen through others' inputs of the names `through`."""
        for _ in range(_DEPTH):
            found = self.behind(node, name)
            if found is None or found.get("class_type") in wanted:
                return found
            following = next((key for key in through if isinstance(found["inputs"].get(key), list)), None)
            if following is None:
                self.note(f"the node '{found.get('class_type')}' has no counterpart here")
                return None
            if found.get("class_type") not in _PASSED:
                self.note(f"the node '{found.get('class_type')}' is passed over")
            node, name = found, following
        raise DanqingError("prompt: the graph runs in a circle")


_NETWORK: Mapping[str, tuple[str, tuple[str, ...], Mapping[str, object]]] = {
    # nodes that change the U-Net's work -> the request's field, its settings of the same names, and those that go with it
    "FreeU": ("freeu", ("b1", "b2", "s1", "s2"), {"version": 1}),
    "FreeU_V2": ("freeu", ("b1", "b2", "s1", "s2"), {"version": 2}),
    "PerturbedAttentionGuidance": ("pag", ("scale",), {}),
    "SelfAttentionGuidance": ("sag", ("scale", "blur_sigma"), {}),
    "TomePatchModel": ("token_merging", ("ratio",), {}),
    "HyperTile": ("hypertile", ("tile_size", "swap_size", "max_depth"), {}),
}
_PASSED = (*_NETWORK, "VAEDecode", "VAEDecodeTiled", "LoraLoader", "LoraLoaderModelOnly", "CLIPSetLastLayer", "Reroute")


def read_comfyui(text: str) -> Told:
    """The request of the graph that ends in a saved picture.

    Raises DanqingError where the graph is none, has no sampler that is known, or leads back into itself.
    """
    nodes = load_object(text, "prompt")
    graph = Graph(
        {
            str(key): node
            for key, node in nodes.items()
            if isinstance(node, dict) and isinstance(node.get("inputs"), dict)
        }
    )
    sampler = _last_sampler(graph)
    fields: dict[str, Any] = {"dialect": "comfyui"}
    kind = _sampling(graph, sampler, fields)
    checkpoint = _models(graph, _first(graph, sampler), fields)
    vae = _vae(graph)
    return Told("ComfyUI", build(kind, fields, graph.notes), checkpoint, vae, {}, tuple(graph.notes))


def _last_sampler(graph: Graph) -> Node:
    """The sampler behind a saved picture; else the only one."""
    for node in graph.nodes.values():
        if re.search(r"Save.*Image|Image.*Save|PreviewImage", str(node.get("class_type"))) and isinstance(
            node["inputs"].get("images"), list
        ):
            found = graph.up(node, "images", SAMPLERS, ("samples", "images", "image", "pixels"))
            if found is not None:
                return found
    samplers = [node for node in graph.nodes.values() if node.get("class_type") in SAMPLERS]
    if len(samplers) != 1:
        raise DanqingError(f"prompt: the graph has {len(samplers)} samplers of the known kinds; which one painted it?")
    return samplers[0]


def _first(graph: Graph, sampler: Node) -> Node:
    """The sampler that began: of a refiner's or a second pass's chain the first."""
    for _ in range(_DEPTH):
        before = _before(graph, sampler)
        if before is None:
            return sampler
        sampler = before
    raise DanqingError("prompt: the graph runs in a circle")


def _before(graph: Graph, sampler: Node) -> Node | None:
    """The sampler whose latents this one goes on from."""
    source = graph.behind(sampler, "latent_image")
    while source is not None and source.get("class_type") in ("LatentUpscale", "LatentUpscaleBy", "Reroute"):
        source = graph.behind(source, "samples" if "samples" in source["inputs"] else next(iter(source["inputs"]), ""))
    return source if source is not None and source.get("class_type") in SAMPLERS else None


def _sampling(graph: Graph, last: Node, fields: dict[str, Any]) -> Kind:
    """Fill in what the samplers say; the kind follows from the latents that the first begins with."""
    first = _first(graph, last)
    value = graph.value
    fields |= {
        "seed": value(first, "seed" if "seed" in first["inputs"] else "noise_seed"),
        "steps": value(first, "steps"),
        "cfg_scale": value(first, "cfg"),
        "sampler_name": _sampler_name(value(first, "sampler_name")),
        "scheduler": value(first, "scheduler"),
        "prompt": _prompt(graph, first, "positive", fields),
        "negative_prompt": _prompt(graph, first, "negative", fields),
    }
    if last is not first:
        _second(graph, first, last, fields)
    strength = value(first, "denoise")
    source = graph.behind(first, "latent_image")
    title = source.get("class_type") if source else None
    if title in ("VAEEncode", "VAEEncodeTiled", "SetLatentNoiseMask", "VAEEncodeForInpaint"):
        fields |= {"denoising_strength": 1.0 if strength is None else strength, "exact_steps": True}
        return _from_picture(graph, source or {}, fields)
    if title is None or source is None or not str(title).startswith("Empty"):
        graph.note(f"the latents come from the node '{title}', which has no counterpart here; painted from noise")
        return "txt2img"
    fields |= {side: value(source, side) for side in ("width", "height")}
    batch = value(source, "batch_size")
    if isinstance(batch, int) and batch > 1:
        fields["batch_size"] = batch
        graph.note(f"it is one of a batch of {batch}; which one is not recorded")
    return "txt2img"


def _second(graph: Graph, first: Node, last: Node, fields: dict[str, Any]) -> None:
    """A second sampler: behind a latent upscaler the hires pass, else a refiner that takes over."""
    between = graph.behind(last, "latent_image")
    title = between.get("class_type") if between else None
    if between is not None and title in ("LatentUpscale", "LatentUpscaleBy"):
        method = graph.value(between, "upscale_method")
        fields |= {
            "enable_hr": True,
            "hr_upscaler": _LATENT_UPSCALERS.get(str(method), "Latent"),
            "hr_second_pass_steps": graph.value(last, "steps"),
            "hr_sampler_name": _sampler_name(graph.value(last, "sampler_name")),
            "hr_scheduler": graph.value(last, "scheduler"),
            "hr_cfg": graph.value(last, "cfg"),
            "denoising_strength": graph.value(last, "denoise"),
        }
        if title == "LatentUpscale":
            fields |= {"hr_resize_x": graph.value(between, "width"), "hr_resize_y": graph.value(between, "height")}
        else:
            fields["hr_scale"] = graph.value(between, "scale_by")
        graph.note("the second pass draws its noise otherwise here")
        return
    steps, switch = graph.value(first, "steps"), graph.value(last, "start_at_step")
    refiner = graph.up(last, "model", ("CheckpointLoaderSimple", "CheckpointLoader"), ("model",))
    if isinstance(steps, int) and isinstance(switch, int) and 0 < switch < steps and refiner is not None:
        fields["refiner_checkpoint"] = _file_name(graph.value(refiner, "ckpt_name"))
        fields["refiner_switch_at"] = switch / steps
        return
    graph.note("the graph samples several times; only the first is told")


def _from_picture(graph: Graph, source: Node, fields: dict[str, Any]) -> Kind:
    """img2img or inpainting, and the pictures it began with."""
    title = source.get("class_type")
    encode = source
    masked: Node | None = None
    if title == "SetLatentNoiseMask":
        masked = source
        encode = graph.up(source, "samples", ("VAEEncode", "VAEEncodeTiled"), ("samples",)) or source
    elif title == "VAEEncodeForInpaint":
        masked = source
        fields["inpainting_fill"] = "fill"
        graph.note("VAEEncodeForInpaint greys the masked part; here it is filled from around it")
    loader = graph.up(encode, "pixels", ("LoadImage",), ("image", "pixels", "images"))
    fields["image"] = _picture(graph, loader)
    if masked is None:
        return "img2img"
    mask = graph.behind(masked, "mask")
    if mask is not None and mask.get("class_type") == "LoadImageMask":
        fields["mask"] = _picture(graph, mask)
    elif mask is None or mask is not loader:
        fields["mask"] = UNRECORDED
    if mask is not None and mask is loader:
        graph.note("the mask is the picture's transparency")
    return "inpaint"


def _picture(graph: Graph, loader: Node | None) -> Reference:
    name = graph.value(loader, "image") if loader else None
    return Reference(name=_file_name(name) or "")


def _prompt(graph: Graph, node: Node, side: str, fields: dict[str, Any]) -> str:
    """The text behind `positive` or `negative`; combined conditionings joined as the prompt language does."""
    found = graph.behind(node, side)
    for _ in range(_DEPTH):
        if found is None:
            return ""
        title, inputs = str(found.get("class_type")), found["inputs"]
        if title == "ConditioningCombine":
            return f"{_prompt(graph, found, 'conditioning_1', fields)} AND {_prompt(graph, found, 'conditioning_2', fields)}"
        if title == "ConditioningConcat":
            parts = [_prompt(graph, found, name, fields) for name in ("conditioning_to", "conditioning_from")]
            return " BREAK ".join(parts)
        if title == "ConditioningZeroOut":
            graph.note("ConditioningZeroOut has no counterpart here; the prompt is left empty")
            return ""
        for key in ("text", "text_g", "text_l", "prompt"):
            if key in inputs:
                if "text_g" in inputs and inputs.get("text_g") != inputs.get("text_l"):
                    graph.note("the two text encoders were given different prompts; text_g is taken")
                _layer(graph, found, fields)
                return str(graph.value(found, key) or "")
        graph.note(f"the node '{title}' is passed over")
        following = next(
            (name for name in ("conditioning", "positive", "cond") if isinstance(inputs.get(name), list)), ""
        )
        found = graph.behind(found, following)
    raise DanqingError("prompt: the graph runs in a circle")


def _layer(graph: Graph, encoder: Node, fields: dict[str, Any]) -> None:
    source = graph.behind(encoder, "clip")
    if source is not None and source.get("class_type") == "CLIPSetLastLayer":
        layer = graph.value(source, "stop_at_clip_layer")
        if isinstance(layer, int) and layer < 0:
            fields["clip_skip"] = -layer


def _models(graph: Graph, sampler: Node, fields: dict[str, Any]) -> Reference | None:
    """The checkpoint; its LoRAs go into the prompt, as AUTOMATIC1111 writes them (text encoder's weight first)."""
    tags: list[str] = []
    node: Node = sampler
    for _ in range(_DEPTH):
        found = graph.behind(node, "model")
        if found is None:
            return None
        title = str(found.get("class_type"))
        if title in ("LoraLoader", "LoraLoaderModelOnly"):
            weight = graph.value(found, "strength_model")
            clip = graph.value(found, "strength_clip") if title == "LoraLoader" else 0
            name = PureWindowsPath(str(graph.value(found, "lora_name"))).stem
            tags.insert(0, f"<lora:{name}:{weight}>" if clip == weight else f"<lora:{name}:{clip}:{weight}>")
        elif "ckpt_name" in found["inputs"]:
            if tags:
                fields["prompt"] = " ".join([fields["prompt"], *tags])
            return Reference(name=_file_name(graph.value(found, "ckpt_name")) or "")
        elif title in _NETWORK:
            field, names, more = _NETWORK[title]
            given = {name: graph.value(found, name) for name in names}
            fields[field] = {**{name: value for name, value in given.items() if value is not None}, **more}
            if field in ("token_merging", "hypertile"):
                graph.note(f"the node '{title}' draws which tokens stay and how tiles are cut in a way of its own")
        elif "model" in found["inputs"]:
            graph.note(f"the node '{title}' is passed over")
        else:
            graph.note(f"the model comes from the node '{title}', which has no counterpart here")
            return None
        node = found
    raise DanqingError("prompt: the graph runs in a circle")


def _vae(graph: Graph) -> Reference | None:
    for node in graph.nodes.values():
        if node.get("class_type") in ("VAEDecode", "VAEDecodeTiled"):
            source = graph.behind(node, "vae")
            if source is not None and source.get("class_type") == "VAELoader":
                return Reference(name=_file_name(graph.value(source, "vae_name")) or "")
    return None


def _sampler_name(name: object) -> str | None:
    """A sampler's `_gpu` twin differs only in where noise is drawn."""
    return str(name).removesuffix("_gpu") if isinstance(name, str) else None


def _file_name(value: object) -> str | None:
    """A file's path as ComfyUI lists it, on any system, with /."""
    return str(PurePosixPath(*PureWindowsPath(value).parts)) if isinstance(value, str) and value else None
