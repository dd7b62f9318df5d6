"""The one settings file: TOML, flat, strict, written atomically. Everything that outlives a command is in it."""

from __future__ import annotations

import json
import os
import re
import tomllib
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

import platformdirs
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from danqing.errors import DanqingError
from danqing.paths import path_of
from danqing.runtime.amounts import parse_memory
from danqing.vocabulary import nearest

FILE_NAME = "config.toml"
_SECRETS = ("hub_token", "civitai_token")


class Settings(BaseModel):
    """What the settings file says, with defaults for what it leaves out."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    path: Path = Field(exclude=True)
    """The file that was read; it need not exist."""
    data_dir: Path = Field(description="where downloads, hashes and galleries go")
    folders: tuple[Path, ...] = Field((), description="model folders of any tool, read in place; single files too")
    hub_cache: Path | None = Field(None, description="the Hugging Face cache; unset is the Hub's own choice")
    hub_token: str | None = Field(None, description="Hugging Face token, or $NAME of an environment variable")
    civitai_token: str | None = Field(None, description="Civitai API key, or $NAME of an environment variable")
    default_model: str | None = Field(
        None, description="checkpoint where a command names none; unset is the bundled model"
    )
    output_folder: Path = Field(Path("outputs"), description="where pictures go that no command places")
    output_pattern: str = Field(
        "[seed]", description="names of these pictures, with folders: [date]/[seed]-[prompt_words]"
    )
    output_format: Literal["png", "jpg", "webp", "avif", "jxl"] = Field("png", description="format of these pictures")
    picture_quality: int = Field(95, ge=1, le=100, description="of JPEG and AVIF, and of WebP and JPEG XL with loss")
    picture_lossless: bool = Field(True, description="whether WebP and JPEG XL are written without loss")
    device: str = Field("auto", description="where networks run")
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field("auto", description="precision of networks")
    memory: str | None = Field(None, description="the most that painting takes, as 6GB; less is slower, not worse")
    engine: Literal["eager", "auto", "compile", "openvino"] = Field("eager", description="what runs the denoiser")
    quantize: Literal["none", "int8-weights", "int8", "fp8"] = Field("none", description="its eight bits")
    write_metadata: bool = Field(True, description="whether pictures say how they were made")

    @field_validator("device")
    @classmethod
    def _device(cls, value: str) -> str:
        if not re.fullmatch(r"auto|cpu|mps|cuda(:\d+)?", value):
            raise ValueError("choose auto, cpu, cuda, cuda:1 (the second one) or mps")
        return value

    @field_validator("memory")
    @classmethod
    def _memory(cls, value: str | None) -> str | None:
        try:
            if value is not None:
                parse_memory(value)
        except DanqingError as error:
            raise ValueError(str(error).removeprefix("memory: ")) from None
        return value

    @property
    def models_dir(self) -> Path:
        """Danqing's own model folder."""
        return self.data_dir / "models"


KEYS: tuple[str, ...] = tuple(name for name in Settings.model_fields if name != "path")


def settings_file(data_dir: Path | None = None) -> Path:
    """Where the settings are: in `data_dir`, else in $DANQING_HOME, else where the platform keeps settings."""
    home = data_dir or os.environ.get("DANQING_HOME")
    if home:
        return path_of(home).absolute() / FILE_NAME
    return platformdirs.user_config_path("danqing", appauthor=False) / FILE_NAME


def load_settings(path: Path | None = None, data_dir: Path | None = None) -> Settings:
    """Read the settings; a file that is not there is all defaults.

    `path` names the file itself; `data_dir` (the command line's `--data-dir`) is a folder for settings and data both.
    The environment's DANQING_FOLDERS adds model folders, written as PATH is.
    Relative folders in the file are relative to the file, and `~` is the home folder.
    Raises DanqingError: unreadable or malformed file, unknown key (with the nearest names), wrong value.
    """
    file = Path(path) if path else settings_file(data_dir)
    try:
        text = file.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        text = ""
    except (OSError, UnicodeDecodeError) as error:
        raise DanqingError(f"{file}: cannot be read: {error}") from None
    settings = _parse(text, file, data_dir)
    return settings.model_copy(update={"folders": (*settings.folders, *_more_folders())})


def set_value(path: Path, key: str, value: str | None) -> Settings:
    """Set one key in the file, leaving its other lines and comments as they are; None or "" takes the key out.

    Lists are TOML arrays, or one item. Raises DanqingError as `load_settings` does, and leaves the file alone then.
    """
    _check_keys([key], path)
    load_settings(path)
    return _write_key(path, key, _typed(path, key, value) if value else None)


def add_folder(settings: Settings, folder: Path) -> Settings:
    """Add a model folder (or a single file) to the settings file, unless it is there. Returns the new settings."""
    folder = folder.absolute()
    if folder in settings.folders:
        return settings
    kept = [str(item) for item in settings.folders if item not in _more_folders()]
    changed = _write_key(settings.path, "folders", [*kept, str(folder)])
    return changed.model_copy(update={"data_dir": settings.data_dir, "folders": (*changed.folders, *_more_folders())})


def show(settings: Settings) -> list[tuple[str, str, str]]:
    """(key, value, what it is for) of every setting; tokens are masked unless they name an environment variable."""
    rows = []
    for key in KEYS:
        value = getattr(settings, key)
        if value is None:
            text = ""
        elif key in _SECRETS:
            text = value if value.startswith("$") else "(set)"
        elif isinstance(value, tuple):
            text = ", ".join(str(item) for item in value)
        else:
            text = str(value).lower() if isinstance(value, bool) else str(value)
        rows.append((key, text, Settings.model_fields[key].description or ""))
    return rows


def read_token(value: str | None, variables: Iterable[str]) -> str | None:
    """The token itself: the setting, the environment variable that it names (`$NAME`), or the first of `variables`.

    Raises DanqingError where the setting names a variable that is not set.
    """
    if value and value.startswith("$"):
        found = os.environ.get(value[1:])
        if not found:
            raise DanqingError(f"the settings take a token from {value}, but that environment variable is not set")
        return found
    return value or next((os.environ[name] for name in variables if os.environ.get(name)), None)


def write_atomically(path: Path, text: str, mode: int = 0o600) -> None:
    """Write beside, then rename. Raises DanqingError where the folder cannot be written or the disk is full."""
    path = Path(os.path.realpath(path))  # a link, to a repository of dotfiles for one, stays a link
    beside = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # Tokens may be inside: nobody else reads it, not even for the moment before a chmod.
        handle = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode)
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
        os.replace(beside, path)
    except OSError as error:
        with suppress(OSError):
            beside.unlink()
        raise DanqingError(f"{path}: cannot be written: {error.strerror or error}") from None


_SWITCH = {"true": True, "yes": True, "on": True, "1": True, "false": False, "no": False, "off": False, "0": False}


def _typed(file: Path, key: str, text: str) -> str | bool | list[str]:
    """What a setting given as text spells."""
    if Settings.model_fields[key].annotation is bool:
        if text.lower() not in _SWITCH:
            raise DanqingError(f"{file}: {key} is true or false, but it is {text!r}")
        return _SWITCH[text.lower()]
    if key != "folders":
        return text
    if not text.lstrip().startswith("["):
        return [text]
    try:
        return [str(item) for item in tomllib.loads(f"folders = {text}")["folders"]]
    except tomllib.TOMLDecodeError as error:
        raise DanqingError(f"{file}: {key}: {text!r} is no list: {error}") from None


def _check_keys(keys: Iterable[str], file: Path) -> None:
    for key in keys:
        if key not in KEYS:
            like = nearest(key, KEYS)
            hint = f"did you mean {' or '.join(like)}?" if like else f"the keys are {', '.join(KEYS)}"
            raise DanqingError(f"{file}: no such setting '{key}'; {hint}")


def _parse(text: str, file: Path, data_dir: Path | None = None) -> Settings:
    try:
        values: dict[str, Any] = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise DanqingError(f"{file}: not valid TOML: {error}") from None
    _check_keys(values, file)
    if data_dir:
        values["data_dir"] = str(path_of(data_dir).absolute())
    elif "data_dir" not in values:
        # Beside a settings file that lives in a home of its own; else where the platform keeps data.
        own = file != platformdirs.user_config_path("danqing", appauthor=False) / FILE_NAME
        values["data_dir"] = str(
            file.absolute().parent if own else platformdirs.user_data_path("danqing", appauthor=False)
        )
    try:
        settings = Settings(path=file, **values)
    except ValidationError as error:
        problems = "; ".join(
            f"{'.'.join(map(str, p['loc']))}: {p['msg'].removeprefix('Input ').removeprefix('Value error, ')}, but it is {p['input']!r}"
            for p in error.errors()
        )
        raise DanqingError(f"{file}: {problems}") from None
    base = file.absolute().parent

    def place(path: Path) -> Path:
        return base / path_of(path)

    return settings.model_copy(
        update={
            "data_dir": place(settings.data_dir),
            "folders": tuple(place(folder) for folder in settings.folders),
            "hub_cache": settings.hub_cache and place(settings.hub_cache),
            # unset, it is below the folder that the command runs in
            "output_folder": place(settings.output_folder) if "output_folder" in values else settings.output_folder,
        }
    )


def _more_folders() -> tuple[Path, ...]:
    named = os.environ.get("DANQING_FOLDERS", "").split(os.pathsep)
    return tuple(path_of(folder).absolute() for folder in named if folder)


def _write_key(file: Path, key: str, value: str | bool | list[str] | None) -> Settings:
    try:
        lines = file.read_text(encoding="utf-8-sig").splitlines() if file.exists() else []
    except OSError as error:
        raise DanqingError(f"{file}: cannot be read: {error}") from None
    start, end = _extent(lines, key)
    lines[start:end] = [] if value is None else [f"{key} = {_toml(value)}"]
    text = "\n".join(lines) + "\n" if lines else ""
    changed = _parse(text, file)
    write_atomically(file, text)
    return changed


def _extent(lines: list[str], key: str) -> tuple[int, int]:
    """The lines [start, end) that hold `key`; both are the file's end where it is not there. Keys are never in tables."""
    for start, line in enumerate(lines):
        if re.match(rf"\s*([\"']?){key}\1\s*=", line):
            for end in range(start + 1, len(lines) + 1):
                with suppress(tomllib.TOMLDecodeError):
                    tomllib.loads("\n".join(lines[start:end]))
                    return start, end
    return len(lines), len(lines)


def _toml(value: str | bool | list[str]) -> str:
    if isinstance(value, list):
        return "[" + ", ".join(_toml(item) for item in value) + "]"
    # JSON's strings and booleans are TOML's, but for DEL, which TOML wants escaped.
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
