"""How good the bundled model's edited pictures are: inpainted halves and their seams, and hires fix, by the judge.

    python benchmarks/edits.py --data data/emoji --pairs 80 --sheet edits.png

Each drawing is painted, then its right half is painted anew under a mask whose edge crosses the object, then the whole
is painted with hires fix at twice the size, each in a few ways. Printed: the step between the seam's two columns over
that between columns around it, and the largest such step near the seam, in the edited and the uncut pictures (the goal
is at most 1.2); how often the judge names the concept within five, over how often it does for the uncut ones (the goal
is at least 0.9 for inpainting). In brackets: 95% of bootstrap resamples of the pictures.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

INPAINTED: dict[str, dict[str, Any]] = {
    "inpainted": {},
    "inpainted at 1": {"denoising_strength": 1.0},
    "inpainted softly at 1": {"denoising_strength": 1.0, "soft_inpainting": "yes", "mask_blur": 16},
}
HIRES: dict[str, dict[str, Any]] = {
    "hires, Latent": {},
    "hires, Lanczos at 0.4": {"hr_upscaler": "Lanczos", "denoising_strength": 0.4},
}
NEAR, WIDE = 2, 24
"""Columns beside the seam in which its edge may lie (the mask is blurred), and around them for comparison."""


def gradients(pixels: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Mean absolute steps between neighbours of (N, 3, H, W): (N, 2 NEAR + 1) about the middle, (N,) around those."""
    steps = pixels.float().diff(dim=-1).abs().mean((1, 2)).numpy()
    middle = pixels.shape[-1] // 2 - 1
    near = np.arange(middle - NEAR, middle + NEAR + 1)
    around = [x for x in range(middle - WIDE, middle + WIDE + 1) if x not in near]
    return steps[:, near], steps[:, around].mean(1)


def ratio_of(top: np.ndarray, bottom: np.ndarray) -> str:
    """sum(top) / sum(bottom), and what holds 95% of 2,000 resamples of the pictures."""
    rows = np.random.default_rng(0).integers(len(top), size=(2000, len(top)))
    low, high = np.quantile(top[rows].sum(1) / np.maximum(bottom[rows].sum(1), 1e-9), (0.025, 0.975))
    return f"{top.sum() / bottom.sum():.3f} [{low:.3f}, {high:.3f}]"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="made by danqing dataset emoji")
    parser.add_argument("--pairs", type=int, default=80)
    parser.add_argument("--sheet", type=Path, help="write uncut, inpainted and enlarged pictures side by side")
    args = parser.parse_args()
    import danqing
    from danqing.evaluate.bundled import HELD_OUT, JUDGE, chosen, read_held_out
    from danqing.evaluate.judge import judged, load_judge, look
    from danqing.pipeline.picture import grid
    from danqing.runtime.allocator import keep_memory
    from danqing.train.held_out import drawings

    keep_memory()
    model, judge = danqing.load(), load_judge(JUDGE)
    size = model.family.defaults.width
    training, _ = drawings(args.data, read_held_out(HELD_OUT), size)
    asked = chosen(training, args.pairs)
    mask = Image.new("L", (size, size))
    mask.paste(255, (size // 2, 0, size, size))
    pictures: dict[str, list[Image.Image]] = {name: [] for name in ("uncut", *INPAINTED, *HIRES)}
    for seed, pair in enumerate(asked.pairs):
        text = danqing.TextToImage(prompt=pair.english, seed=seed)
        first = danqing.paint(text, model)[0].image
        pictures["uncut"].append(first)
        for name, fields in INPAINTED.items():
            again = danqing.Inpaint(prompt=pair.english, seed=seed + 10_000, image=first, mask=mask, **fields)
            pictures[name].append(danqing.paint(again, model)[0].image)
        for name, fields in HIRES.items():
            pictures[name].append(danqing.paint(text, model, enable_hr=True, **fields)[0].image)

    def seen(pictures: list[Image.Image]) -> Tensor:
        small = [
            np.asarray(picture.convert("RGB").resize((size, size), Image.Resampling.LANCZOS)) for picture in pictures
        ]
        return torch.from_numpy(np.stack(small)).permute(0, 3, 1, 2)

    pixels = {name: seen(painted) for name, painted in pictures.items()}
    hits = {
        name: judged(judge.config, look(judge, one), asked.labels).within(5).float().numpy()
        for name, one in pixels.items()
    }
    for name in ("uncut", *INPAINTED):
        near, around = gradients(pixels[name])
        largest = near[:, near.sum(0).argmax()]
        print(
            f"{name}: gradient across the seam over that around it {ratio_of(near[:, NEAR], around)}, "
            f"the largest within {NEAR} columns {ratio_of(largest, around)}"
        )
    for name, found in hits.items():
        beside = "" if name == "uncut" else f", over uncut {ratio_of(found, hits['uncut'])}"
        print(f"{name}: concept within five {found.mean():.3f}{beside}")
    if args.sheet:
        rows = [Image.fromarray(one.permute(1, 2, 0).numpy()) for each in zip(*pixels.values()) for one in each]
        grid(rows[: 10 * len(pixels)], columns=2 * len(pixels)).save(args.sheet)


if __name__ == "__main__":
    main()
