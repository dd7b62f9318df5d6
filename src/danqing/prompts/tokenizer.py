"""CLIP's byte-level BPE tokenizer: the bundled vocabulary, or a checkpoint's own."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterable, Mapping
from functools import lru_cache
from importlib.resources import files
from pathlib import Path

import tokenizers
from tokenizers import Regex, models, normalizers, pre_tokenizers

from danqing.errors import DanqingError

START, END = "<|startoftext|>", "<|endoftext|>"
_WORDS = r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"


class Tokenizer:
    """Text to token ids and back. Raises DanqingError if `backend` lacks CLIP's start and end tokens."""

    def __init__(self, backend: tokenizers.Tokenizer, source: str = "tokenizer") -> None:
        self._backend = backend
        start, end = backend.token_to_id(START), backend.token_to_id(END)
        if start is None or end is None:
            raise DanqingError(f"{source}: no {START} and {END} among its words; this is not a CLIP tokenizer")
        self.start: int = start
        self.end: int = end
        self.comma: int | None = backend.token_to_id(",</w>")

    def encode(self, text: str) -> list[int]:
        """The ids of `text`, as many as there are, without start and end."""
        # Half of a surrogate pair, as a command line's undecodable byte makes it, is no text.
        clean = text.encode("utf-8", "replace").decode("utf-8")
        return list(self._backend.encode(clean, add_special_tokens=False).ids)

    def text(self, tokens: Iterable[int]) -> str:
        """What the tokens look like in a text; bytes that make no whole character show as �."""
        return b"".join(self._bytes(token) for token in tokens).decode("utf-8", "replace").strip()

    def _bytes(self, token: int) -> bytes:
        word = self._backend.id_to_token(token)
        if word is None:
            return f"<{token}> ".encode()
        letters = byte_letters()
        body = word.removesuffix("</w>")
        if token in (self.start, self.end) or any(letter not in letters for letter in body):
            return f"{word} ".encode()
        return bytes(letters[letter] for letter in body) + (b" " if body != word else b"")


@lru_cache(maxsize=1)
def clip() -> Tokenizer:
    """The vocabulary that all CLIP text towers of Stable Diffusion share (49408 words); bundled.

    The merges are OpenAI CLIP's first 48,894 (Radford et al. 2021). Ids count the 256 bytes, the bytes that end a
    word, the merges in their order, then start and end of text.
    """
    packed = files("danqing.assets").joinpath("clip_bpe.txt.gz").read_bytes()
    halves = gzip.decompress(packed).decode("utf-8").split()  # no merge holds a blank
    merges = list(zip(halves[::2], halves[1::2]))
    letters = list(byte_letters())
    words = [*letters, *(letter + "</w>" for letter in letters), *("".join(pair) for pair in merges), START, END]
    return Tokenizer(build({word: index for index, word in enumerate(words)}, merges))


def from_folder(folder: str | Path) -> Tokenizer:
    """A checkpoint's own tokenizer: `tokenizer.json`, or `vocab.json` with `merges.txt` (diffusers layout).

    Raises DanqingError that names the file which is missing or damaged.
    """
    folder = Path(folder)
    names = ["tokenizer.json"] if (folder / "tokenizer.json").is_file() else ["vocab.json", "merges.txt"]
    missing = [name for name in names if not (folder / name).is_file()]
    if missing:
        raise DanqingError(f"{folder}: no tokenizer.json, and no {' and '.join(missing)}; this is no tokenizer folder")
    try:
        texts = {name: (folder / name).read_text("utf-8") for name in names}
    except (OSError, ValueError) as error:
        raise DanqingError(f"{folder}: the tokenizer cannot be read ({error}); fetch its files again") from None
    return from_texts(texts, str(folder))


def from_texts(texts: Mapping[str, str], source: str) -> Tokenizer:
    """`from_folder`, of the files' texts by their names. Raises DanqingError that names `source`."""
    return _read(tuple(texts.items()), source)


@lru_cache(maxsize=4)  # reading takes as long as a step of a small model
def _read(named: tuple[tuple[str, str], ...], source: str) -> Tokenizer:
    texts = dict(named)
    try:
        if "tokenizer.json" in texts:
            backend = tokenizers.Tokenizer.from_str(texts["tokenizer.json"])
            backend.no_truncation()
            backend.no_padding()
        else:
            lines = [line.split() for line in texts["merges.txt"].split("\n") if not line.startswith("#version")]
            backend = build(json.loads(texts["vocab.json"]), [(line[0], line[1]) for line in lines if line])
    except Exception as error:  # the tokenizers library raises bare Exceptions
        raise DanqingError(f"{source}: the tokenizer cannot be read ({error}); fetch its files again") from None
    return Tokenizer(backend, source)


def build(words: dict[str, int], merges: list[tuple[str, str]]) -> tokenizers.Tokenizer:
    """CLIP's pipeline: NFC, runs of blanks to one, lower case, words, bytes, merges."""
    model = models.BPE(
        vocab=words, merges=merges, continuing_subword_prefix="", end_of_word_suffix="</w>", unk_token=END
    )
    backend = tokenizers.Tokenizer(model)
    backend.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
    )
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_WORDS), behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    special = [word for word in (START, END) if word in words]
    backend.add_special_tokens([tokenizers.AddedToken(word, normalized=False, special=True) for word in special])
    return backend


@lru_cache(maxsize=1)
def byte_letters() -> dict[str, int]:
    """GPT-2's printable stand-in for each byte, in the vocabulary's order (Radford et al. 2019)."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    rest = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + index): byte for index, byte in enumerate(rest)}
