"""A real picture back to the noise that it could have been painted from (DDIM inversion), and between two of them."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from danqing.families import At
from danqing.pipeline.run import Aside, Run, prepare, unseen
from danqing.requests import ImageToImage
from danqing.sampling.types import Denoise

REFINEMENTS = 10
"""At most so many network calls a step: each solves the step's equation more nearly (a fixed point)."""
TOLERANCE = 1e-3
"""A call that moves the latents by less than this share of their length is a step's last."""


@dataclass(frozen=True, eq=False)
class Inverted:
    """A picture as the noise it could have been painted from."""

    noised: Tensor
    """(1, C, h, w) float32, at the first noise level, in the samplers' coordinates."""
    error: float
    """Painted again from it, the picture is this far from the original: root mean square, of 255 levels."""


def invert(run: Run, latents: Tensor, image: Image.Image, aside: Aside = unseen) -> Inverted:
    """The noise at the first level of `run` that DDIM, with the run's prompt and no guidance, makes `image` of.

    `latents` (1, C, h, w) are the picture's. DDIM without fresh noise is Euler's method on the probability flow (Song
    et al. 2021, equation 13): each step x_low = x + (low - sigma) * e(x, sigma) is solved for x, from the picture up.
    """
    denoise = run.denoiser(run.plans[0])
    sigmas = run.sigmas.tolist()
    x = latents.float()
    for index in range(len(sigmas) - 2, -1, -1):
        sigma, low = sigmas[index], sigmas[index + 1]
        below = x
        for _ in range(REFINEMENTS):
            noise = (x - denoise(x, At(sigma, index)).clean.to(x)) / sigma
            x, before = below + (sigma - low) * noise, x
            if float((x - before).norm()) < TOLERANCE * float(x.norm()):
                break
        aside("inversion", len(sigmas) - 1 - index, len(sigmas) - 1)
    back = _walk(denoise, x, sigmas)
    shown = np.asarray(run.picture(back), dtype=np.float64)
    error = float(np.sqrt(np.mean((shown - np.asarray(image, dtype=np.float64)) ** 2)))
    return Inverted(x, error)


def _walk(denoise: Denoise, x: Tensor, sigmas: list[float]) -> Tensor:
    for index, (sigma, low) in enumerate(pairwise(sigmas)):
        x = x + (low - sigma) * (x - denoise(x, At(sigma, index)).clean.to(x)) / sigma
    return x


def inverted(run: Run, latents: Tensor, request: ImageToImage, image: Image.Image, aside: Aside) -> Tensor:
    """(1, C, h, w): what an ImageToImage with `inversion` begins with; what its pictures lose on the way is said."""
    plain = request.model_copy(
        update={"prompt": request.inversion_prompt, "negative_prompt": "", "cfg_scale": 1.0, "regions": ()}
        | {"pag": None, "sag": None, "step_cache": None, "tgate": 1.0}
    )
    back = prepare(run.resolved.model_copy(update={"request": plain}), run.model, run.note)
    back = replace(back, sigmas=run.sigmas, refiner=None)
    result = invert(back, latents, image, aside)
    run.note(f"inversion: the picture comes back from its noise to within {result.error:.1f} of 255 levels")
    return result.noised


def between(first: Tensor, second: Tensor, part: float) -> Tensor:
    """`part` of the way from one noised picture (1, C, h, w) to another along the great circle (Shoemake 1985)."""
    a, b = first.flatten(), second.to(first).flatten()
    angle = float((a @ b / (a.norm() * b.norm())).clamp(-1, 1).acos())
    if math.sin(angle) < 1e-6:
        return torch.lerp(first, second.to(first), part)
    shares = math.sin((1 - part) * angle) / math.sin(angle), math.sin(part * angle) / math.sin(angle)
    return first * shares[0] + second.to(first) * shares[1]
