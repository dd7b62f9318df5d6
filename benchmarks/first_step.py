"""From `load()` of a checkpoint to the end of the first denoising step, beside diffusers' `from_single_file`.

    python benchmarks/random_checkpoint.py sd1 /tmp/sd15.safetensors
    python benchmarks/first_step.py /tmp/sd15.safetensors --dtype bfloat16 --runs 3

    danqing convert --dtype bfloat16 /tmp/sdxl.safetensors /tmp/sdxlbf.safetensors
    python benchmarks/first_step.py /tmp/sdxlbf.safetensors --size 1024 --runs 3 --no-peer
    python benchmarks/first_step.py /tmp/sd15.safetensors --switch /tmp/sdxl.safetensors

Each measurement is a process of its own; the file's pages are in memory. Ours and the peer's alternate.
A first one of each is not counted: in it a virtual machine may still be given its memory by the host.
Prints load, first step, steady step, and load + first - steady: what beginning costs. `--switch` has the studio's cache
load both checkpoints and go back to the first.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import itertools
import mmap
import statistics
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

from danqing.runtime.allocator import keep_memory

PROMPT = "a castle on a hill"


def ours(path: Path, dtype: str, size: int) -> tuple[float, list[float]]:
    import danqing
    import danqing.pipeline.paint  # what importing costs is printed by `python -X importtime`

    begin = time.perf_counter()
    model = danqing.load(path, device="cpu", dtype=dtype)
    marks = [time.perf_counter()]
    fields = {"steps": 5, "width": size, "height": size, "seed": 1, "sampler_name": "Euler", "scheduler": "Uniform"}
    events = danqing.stream(PROMPT, model, say=lambda line: None, negative_prompt="blurry", **fields)
    for _ in range(4):  # in the third the weights are put in order
        next(events)
        marks.append(time.perf_counter())
    events.close()
    return marks[0] - begin, [b - a for a, b in itertools.pairwise(marks)]


def warm(path: Path) -> mmap.mmap:
    """The file's pages are read, and stay in memory as long as what is returned, if the system lets this program.

    Without that some systems drop pages of a file that nobody has asked for in a while: here gigabytes within minutes.
    """
    with path.open("rb") as file:
        pages = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    touched = np.frombuffer(pages, dtype=np.uint8)
    lock = getattr(ctypes.CDLL(None), "mlock", None)
    if lock is None or lock(ctypes.c_void_p(touched.ctypes.data), ctypes.c_size_t(len(pages))):
        print(f"note: {path.name} cannot be kept in memory; it is read once, and may be read from the disk again")
    touched[:: mmap.PAGESIZE].max()
    return pages


def switch(path: Path, other: Path, dtype: str) -> None:
    from danqing.serve.cache import ModelCache

    cache = ModelCache(dtype=dtype, device="cpu")
    for name in (path, other, path):
        begin = time.perf_counter()
        model = cache.get(str(name)).model
        print(f"{model.name:20} there after {time.perf_counter() - begin:6.3f} s")


def diffusers(path: Path, dtype: str, size: int) -> tuple[float, list[float]]:
    import torch
    from diffusers import AutoencoderKL, EulerDiscreteScheduler, StableDiffusionPipeline, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    from danqing.checkpoints.save import write_tokenizer
    from danqing.checkpoints.sidecars import unet_json, vae_json
    from danqing.families import SD1

    precision = getattr(torch, dtype)
    begin = time.perf_counter()
    import json
    import tempfile

    with tempfile.TemporaryDirectory() as scratch:
        # from_single_file asks the Hub for configurations unless it is given them
        root = Path(scratch)
        for name, config in (("unet", unet_json(SD1.denoiser, 64)), ("vae", vae_json(SD1.autoencoder, 512))):
            (root / name).mkdir()
            (root / name / "config.json").write_text(json.dumps(config))
        unet = UNet2DConditionModel.from_single_file(str(path), config=str(root / "unet"), torch_dtype=precision)
        vae = AutoencoderKL.from_single_file(str(path), config=str(root / "vae"), torch_dtype=precision)
        from safetensors import safe_open

        with safe_open(path, "pt") as file:
            keys = [key for key in file.keys() if key.startswith("cond_stage_model.transformer.")]  # noqa: SIM118
            state = {key.removeprefix("cond_stage_model.transformer."): file.get_tensor(key) for key in keys}
        with torch.device("meta"):
            text = CLIPTextModel(CLIPTextConfig(hidden_size=768, intermediate_size=3072, num_attention_heads=12))
        named = {
            key if key in text.state_dict() else key.removeprefix("text_model."): value for key, value in state.items()
        }
        text.load_state_dict({key: value.to(precision) for key, value in named.items()}, strict=False, assign=True)
        write_tokenizer(root / "tokenizer", SD1.text_encoders[0])
        from transformers import CLIPTokenizer

        tokenizer = CLIPTokenizer.from_pretrained(root / "tokenizer")
    scheduler = EulerDiscreteScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
    pipeline = StableDiffusionPipeline(
        vae,
        text,
        tokenizer,
        unet,
        scheduler,
        None,
        None,
        requires_safety_checker=False,  # type: ignore[arg-type]
    )
    pipeline.set_progress_bar_config(disable=True)
    marks = [time.perf_counter()]

    class Enough(Exception):
        pass

    def after(pipe: object, index: int, timestep: object, values: dict) -> dict:
        marks.append(time.perf_counter())
        if index == 1:
            raise Enough
        return values

    with contextlib.suppress(Enough):
        pipeline(
            PROMPT, negative_prompt="blurry", num_inference_steps=3, width=size, height=size, callback_on_step_end=after
        )
    return marks[0] - begin, [b - a for a, b in itertools.pairwise(marks)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("path", type=Path, help="an SD 1.x .safetensors file")
    parser.add_argument("--dtype", default="bfloat16", choices=["float32", "bfloat16"])
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--no-peer", action="store_true", help="ours alone")
    parser.add_argument("--switch", type=Path, metavar="FILE", help="another checkpoint")
    parser.add_argument("--one", choices=["danqing", "diffusers"], help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        if args.one == "danqing":
            keep_memory()  # as the command line does
        load, steps = (ours if args.one == "danqing" else diffusers)(args.path, args.dtype, args.size)
        print("RESULT", load, *steps)
        return
    _kept = [warm(path) for path in (args.path, args.switch) if path]
    if args.switch:
        keep_memory()
        switch(args.path, args.switch, args.dtype)
        return
    figures: dict[str, list[list[float]]] = {"danqing": []} | ({} if args.no_peer else {"diffusers": []})
    for _ in range(args.runs + 1):
        for name, rows in figures.items():
            command = [sys.executable, __file__, str(args.path), "--dtype", args.dtype, "--size", str(args.size)]
            done = subprocess.run([*command, "--one", name], capture_output=True, text=True, check=True)
            line = next(line for line in done.stdout.splitlines() if line.startswith("RESULT"))
            rows.append([float(word) for word in line.split()[1:]])
    totals = {}
    for name, (_, *rows) in figures.items():
        load, first, *_, steady = (statistics.median(column) for column in zip(*rows))
        over = [row[0] + row[1] - row[-1] for row in rows]
        totals[name] = statistics.median(row[0] + row[1] for row in rows)
        print(
            f"{name:10} load {load:6.2f} s   first step {first:6.2f} s   steady step {steady:6.2f} s   "
            f"load + first - steady {statistics.median(over):6.2f} s ({min(over):.2f} to {max(over):.2f})"
        )
    if not args.no_peer:
        print(f"load to the end of the first step, danqing / diffusers: {totals['danqing'] / totals['diffusers']:.2f}")


if __name__ == "__main__":
    main()
