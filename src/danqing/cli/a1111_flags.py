"""AUTOMATIC1111's command-line flags as data: which of them say what to `danqing serve`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from danqing.errors import DanqingError
from danqing.vocabulary import nearest

Act = Literal["set", "folder", "auth", "nothing", "refused"]


@dataclass(frozen=True)
class Flag:
    """What a flag does."""

    act: Act
    """`set` an option of ours, add a model `folder`, add to `auth`, have no effect, or be refused."""
    value: bool = False
    """Whether something follows it."""
    target: str = ""
    """Our option."""
    const: Any = None
    """What a flag without a value sets."""
    why: str = ""
    """Told of one that has no effect, or is refused."""


_CHOSEN = "Danqing chooses by the machine"
_PAGE = "Danqing has a page of its own"


def _nothing(why: str, value: bool = False) -> Flag:
    return Flag("nothing", value, why=why)


FLAGS: Mapping[str, Flag] = {
    "--ckpt": Flag("set", True, "model"),
    "--gradio-auth": Flag("auth", True),
    "--api-auth": Flag("auth", True),
    "--server-name": Flag("set", True, "host"),
    "--nowebui": Flag("set", False, "page", False),
    "--api": _nothing("the APIs are always there"),
    "--medvram": Flag("set", False, "memory", "6GB"),
    "--medvram-sdxl": Flag("set", False, "memory", "6GB"),
    "--lowvram": Flag("set", False, "memory", "1MB"),
    "--lowram": Flag("set", False, "memory", "1MB"),
    "--no-half": Flag("set", False, "dtype", "float32"),
    "--use-cpu": Flag("set", True, "device", "cpu"),
    "--device-id": Flag("set", True, "device"),
    "--ckpt-dir": Flag("folder", True),
    "--ckpt-dirs": Flag("folder", True),
    "--vae-dir": Flag("folder", True),
    "--lora-dir": Flag("folder", True),
    "--lyco-dir": Flag("folder", True),
    "--embeddings-dir": Flag("folder", True),
    "--hypernetwork-dir": Flag("folder", True),
    "--textual-inversion-templates-dir": _nothing("training takes recipes", True),
    "--esrgan-models-path": Flag("folder", True),
    "--realesrgan-models-path": Flag("folder", True),
    "--bsrgan-models-path": Flag("folder", True),
    "--swinir-models-path": Flag("folder", True),
    "--ldsr-models-path": Flag("folder", True),
    "--dat-models-path": Flag("folder", True),
    "--gfpgan-models-path": Flag("folder", True),
    "--codeformer-models-path": Flag("folder", True),
    "--controlnet-dir": Flag("folder", True),
    "--models-dir": Flag("folder", True),
    "--tls-certfile": Flag("set", True, "certificate"),
    "--tls-keyfile": Flag("set", True, "key"),
    "--cors-allow-origins": Flag("set", True, "cors_allow_origins"),
    "--theme": _nothing("the page has light and dark by the browser", True),
    "--xformers": _nothing(_CHOSEN),
    "--opt-sdp-attention": _nothing(_CHOSEN),
    "--opt-sdp-no-mem-attention": _nothing(_CHOSEN),
    "--opt-split-attention": _nothing(_CHOSEN),
    "--opt-split-attention-v1": _nothing(_CHOSEN),
    "--opt-split-attention-invokeai": _nothing(_CHOSEN),
    "--opt-sub-quad-attention": _nothing(_CHOSEN),
    "--opt-channelslast": _nothing(_CHOSEN),
    "--disable-opt-split-attention": _nothing(_CHOSEN),
    "--no-half-vae": _nothing("an overflow in the autoencoder is found and mended"),
    "--upcast-sampling": _nothing("an overflow is found and mended"),
    "--disable-nan-check": _nothing("an overflow is found and mended"),
    "--precision": _nothing("see --dtype", True),
    "--always-batch-cond-uncond": _nothing(_CHOSEN),
    "--skip-torch-cuda-test": _nothing("the machine's device is found out"),
    "--skip-version-check": _nothing("nothing is checked at the start"),
    "--skip-python-version-check": _nothing("nothing is checked at the start"),
    "--skip-install": _nothing("nothing is installed at the start"),
    "--skip-prepare-environment": _nothing("nothing is installed at the start"),
    "--no-download-sd-model": _nothing("nothing is downloaded unless asked for"),
    "--no-hashing": _nothing("hashes are computed beside the work"),
    "--no-gradio-queue": _nothing(_PAGE),
    "--gradio-queue": _nothing(_PAGE),
    "--gradio-debug": _nothing(_PAGE),
    "--hide-ui-dir-config": _nothing("the page never changes folders"),
    "--freeze-settings": _nothing(_PAGE),
    "--freeze-settings-in-sections": _nothing(_PAGE, True),
    "--ui-config-file": _nothing(_PAGE, True),
    "--ui-settings-file": _nothing("settings are in danqing's own file; see danqing config", True),
    "--styles-file": _nothing("styles*.csv is read from the data and model folders", True),
    "--localizations-dir": _nothing(_PAGE, True),
    "--disable-console-progressbars": _nothing("the server shows none"),
    "--enable-console-prompts": _nothing("prompts are in the gallery, not in the log"),
    "--api-log": _nothing("every request is logged"),
    "--loglevel": _nothing("see --log-json", True),
    "--log-startup": _nothing("starting takes seconds"),
    "--disable-safe-unpickle": Flag("refused", why="files are never unpickled; leave it out"),
    "--enable-insecure-extension-access": Flag("refused", why="nothing is installed over HTTP; leave it out"),
    "--allow-code": Flag("refused", why="no code is run from a request; leave it out"),
    "--share": Flag(
        "refused", why="there is no tunnel to the internet; use --listen with --auth behind your own proxy"
    ),
    "--ngrok": Flag("refused", True, why="there is no tunnel to the internet; use --listen with --auth"),
    "--gradio-allowed-path": Flag("refused", True, why="no path of a request is read; see --import-dir"),
    "--api-server-stop": Flag("refused", why="a server is ended by who started it; leave it out"),
    "--gradio-auth-path": Flag("refused", True, why="it holds plain passwords; give --auth once, which keeps hashes"),
    "--subpath": Flag("refused", True, why="a proxy has to strip it before it asks; leave it out"),
}
"""What AUTOMATIC1111 1.10 has in modules/cmd_args.py and its extensions, but for what `danqing serve` has by that name."""


@dataclass(frozen=True)
class Understood:
    """What the flags come to."""

    values: Mapping[str, Any]
    folders: tuple[str, ...]
    auth: tuple[str, ...]
    notes: tuple[str, ...]


def understand(arguments: Sequence[str], own: Sequence[str]) -> Understood:
    """What is left over of the command line, read as AUTOMATIC1111's flags. `own` are our options, for near misses.

    Raises DanqingError for a flag that neither knows, one whose value is missing, and one that would be unsafe.
    """
    values: dict[str, Any] = {}
    folders: list[str] = []
    auth: list[str] = []
    notes: list[str] = []
    rest = list(arguments)
    while rest:
        name, equals, value = rest.pop(0).partition("=")
        flag = FLAGS.get(name)
        if flag is None:
            like = nearest(name, (*own, *FLAGS))
            raise DanqingError(f"{name}: no such option" + (f"; did you mean {' or '.join(like)}?" if like else ""))
        if flag.act == "refused":
            raise DanqingError(f"{name}: {flag.why}")
        if flag.value and not equals:
            if not rest or rest[0].startswith("--"):
                raise DanqingError(f"{name}: needs a value")
            value = rest.pop(0)
        if flag.act == "set":
            values[flag.target] = flag.const if flag.const is not None else value
        elif flag.act == "folder":
            folders.append(value)
        elif flag.act == "auth":
            auth += [part for part in value.split(",") if part]
        else:
            notes.append(f"{name} has no effect: {flag.why}")
    if "device" in values and str(values["device"]).isdecimal():
        values["device"] = f"cuda:{values['device']}"
    return Understood(values, tuple(folders), tuple(auth), tuple(notes))
