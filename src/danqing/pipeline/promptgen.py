"""Prompts that a small language model writes on (GPT-2; Radford et al. 2019); the extra [caption] brings its library."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, Literal

import torch

from danqing.errors import DanqingError


@dataclass(frozen=True)
class Writing:
    """How freely it writes. Names and defaults are those of AUTOMATIC1111's extension promptgen."""

    count: int = 10
    least: int = 20
    """Tokens of a prompt, with those it begins with."""
    most: int = 150
    beams: int = 1
    temperature: float = 1.0
    repetition_penalty: float = 1.0
    length_preference: float = 1.0
    mode: Literal["Top K", "Top P"] = "Top K"
    top_k: int = 12
    top_p: float = 0.15


Writer = Callable[[str, Writing], list[str]]
"""(beginning, how) -> prompts that begin with it."""


def load_writer(folder: Path) -> Writer:
    """The GPT-2 of a folder with safetensors weights.

    Raises DanqingError where the folder holds none, or transformers is missing.
    """
    try:
        transformers: Any = import_module("transformers")
    except ImportError:
        raise DanqingError("promptgen: needs the extra [caption]; install danqing[caption]") from None
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)
        model = transformers.GPT2LMHeadModel.from_pretrained(folder, local_files_only=True, use_safetensors=True).eval()
    except (OSError, ValueError, KeyError) as error:
        raise DanqingError(f"{folder}: holds no GPT-2: {str(error).splitlines()[0]}") from None
    end = model.config.eos_token_id
    longest = int(model.config.n_positions)

    def write(text: str, how: Writing) -> list[str]:
        tokens = tokenizer(text).input_ids or [end]
        if len(tokens) >= longest:
            raise DanqingError(f"text: has {len(tokens)} tokens, and the model reads {longest - 1}")
        most = min(max(how.most, len(tokens) + 1), longest)
        begun = torch.tensor([tokens]).expand(how.count, -1)
        drawn = {"top_k": how.top_k} if how.mode == "Top K" else {"top_k": 0, "top_p": how.top_p}
        with torch.no_grad():
            written = model.generate(
                begun,
                attention_mask=torch.ones_like(begun),
                do_sample=True,
                temperature=max(how.temperature, 1e-6),
                repetition_penalty=how.repetition_penalty,
                length_penalty=how.length_preference,
                num_beams=how.beams,
                min_length=min(how.least, most),
                max_length=most,
                pad_token_id=end,
                **drawn,
            )
        return [str(prompt) for prompt in tokenizer.batch_decode(written, skip_special_tokens=True)]

    return write
