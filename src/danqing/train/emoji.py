"""The emoji drawings that the bundled model is trained on, as a training folder: `danqing dataset emoji`.

Drawings come as npm packages by name, captions in English and Chinese from emojibase-data. A concept is an emoji
without its skin tones; a picture is a concept in a style.
"""

from __future__ import annotations

import hashlib
import io
import json
import re
import shutil
import subprocess
import tarfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from danqing.checkpoints.write import beside
from danqing.errors import DanqingError
from danqing.train.dataset import METADATA


@dataclass(frozen=True)
class Style:
    """A set of drawings in one hand."""

    name: str
    package: str
    """npm package and version."""
    licence: str
    author: str
    words: tuple[str, str]
    """What captions call it in English: after a comma, and before the concept."""
    words_zh: tuple[str, str]
    alphabet: str | None = None
    """The package whose table of characters names this one's drawings too, if it has none of its own."""


_FLAT = "@iconify-json/fluent-emoji-flat@1.2.6"
STYLES = (
    Style(
        "3d", "@iconify-json/fluent-emoji@1.2.7", "MIT", "Microsoft Corporation",
        ("3d style", "3d"), ("立体风格", "立体"), _FLAT,
    ),
    Style("flat", _FLAT, "MIT", "Microsoft Corporation", ("flat style", "flat"), ("扁平风格", "扁平")),
    Style(
        "noto", "@iconify-json/noto@1.2.9", "Apache-2.0", "Google Inc",
        ("noto style", "noto"), ("诺托风格", "诺托"),
    ),
    Style(
        "twemoji", "@iconify-json/twemoji@1.2.5", "CC-BY-4.0", "Twitter, jdecked and contributors",
        ("twemoji style", "twemoji"), ("推特风格", "推特"),
    ),
)  # fmt: skip
"""What the bundled model is trained on."""
UNSEEN = Style(
    "openmoji", "@iconify-json/openmoji@1.2.29", "CC-BY-SA-4.0", "OpenMoji, HfG Schwäbisch Gmünd",
    ("openmoji style", "openmoji"), ("线描风格", "线描"),
)  # fmt: skip
"""Never in the base model: for fine-tuning to a new style."""
CAPTIONS = "emojibase-data@17.0.0"
HELD_OUT_SHARE = 0.05
LICENCES = "LICENCES.txt"

_SYMBOLS, _FLAGS = 8, 9  # emojibase's groups whose drawings are letters, digits, arrows, flags
_ONE_WAY = re.compile(
    r"left|right|arrow|clock|thirty|calendar|flag|sign|letter|input|newspaper|medal|keycap|abc|text|scroll|mirror"
    r"|receipt|ticket|button|label|place|8 ball|hourglass|guitar|saxophone|trumpet|violin|writing"
)
"""Labels of drawings that a mirror would make wrong."""


@dataclass(frozen=True)
class Concept:
    """One emoji."""

    code: str
    """Its code points, lower-case hexadecimal, joined by dashes, without variation selectors."""
    name: str
    """A file's name: `red-apple`."""
    label: str
    tags: tuple[str, ...]
    label_zh: str
    tags_zh: tuple[str, ...]
    flips: bool
    """Whether a mirror keeps its meaning."""


def is_held_out(concept: str, style: str) -> bool:
    """Whether the hash of the pair is among the lowest 5%."""
    return int(hashlib.sha256(f"{concept}/{style}".encode()).hexdigest()[:8], 16) < HELD_OUT_SHARE * 2**32


def held_out(pairs: Sequence[tuple[str, str]]) -> set[tuple[str, str]]:
    """The (concept, style) pairs that are never trained on; of each concept one style at least remains."""
    styles: dict[str, list[str]] = {}
    for concept, style in pairs:
        styles.setdefault(concept, []).append(style)
    chosen = set()
    for concept, drawn in styles.items():
        out = [style for style in drawn if is_held_out(concept, style)]
        chosen |= {(concept, style) for style in (out if len(out) < len(drawn) else out[1:])}
    return chosen


def captions(concept: Concept, style: Style) -> tuple[str, ...]:
    """What the picture may be called: six in English, then six in Chinese; each half begins with `label, style`."""
    article = "an" if concept.label[0].lower() in "aeiou" else "a"
    english = _forms(
        concept.label, concept.tags, style, style.words, ", ",
        ("{label}, {style}", article + " {label}, {style}", "{short} {label}"),
    )  # fmt: skip
    chinese = _forms(
        concept.label_zh, concept.tags_zh, style, style.words_zh, "，",
        ("{label}，{style}", "一个{label}，{style}", "{style}的{label}"),
    )  # fmt: skip
    return (*english, *chinese)


def _forms(
    label: str, tags: Sequence[str], style: Style, words: tuple[str, str], comma: str, forms: Sequence[str]
) -> Iterator[str]:
    yield from (form.format(label=label, style=words[0], short=words[1]) for form in forms)
    rest = [tag for tag in tags if tag.lower() != label.lower()]
    first = int(hashlib.sha256(f"{label}/{style.name}".encode()).hexdigest()[:8], 16) % max(1, len(rest))
    turned = [*rest[first:], *rest[:first]]  # other tags for each style
    yield comma.join([label, *turned[:2], words[0]])
    yield comma.join([label, *turned[2:5], words[0]] if turned[2:] else [words[0], label])
    yield label


def make(
    folder: Path,
    *,
    size: int = 128,
    styles: Sequence[Style] = STYLES,
    packages: Path | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> dict[str, int]:
    """Write `folder`: a PNG per picture, `metadata.jsonl`, and the licences. Returns the pictures per style.

    size: pixels along an edge. packages: a folder that has or gets npm's archives; None fetches them into a cache
    beside `folder`. The folder appears whole or not at all.
    Raises DanqingError: npm or resvg-py is missing, a package cannot be fetched, the folder is not empty.
    """
    if not 16 <= size <= 2048:
        raise DanqingError(f"size {size}: give 16 to 2048 pixels")
    if folder.is_dir() and any(folder.iterdir()):
        raise DanqingError(f"{folder}: exists and is not empty; choose another name or remove it")
    try:
        import resvg_py  # noqa: F401
    except ImportError:
        raise DanqingError("dataset emoji needs resvg-py: pip install 'danqing[train]'") from None
    packages = packages or folder.absolute().parent / f"{folder.name}-packages"
    concepts = read_concepts(_open(CAPTIONS, packages, say))
    drawings = {style.name: _drawings(style, concepts, packages, say) for style in styles}
    pairs = [(concept.name, style) for style, bodies in drawings.items() for concept, _ in bodies]
    out = held_out(pairs)
    # roughly two bytes for every three pixels, measured; asked of the disk beforehand
    with beside(folder, len(pairs) * size * size * 2 // 3) as beginning:
        rows = []
        for style in styles:
            (beginning / style.name).mkdir(parents=True)
            for concept, _ in drawings[style.name]:
                rows.append(
                    {
                        "file_name": f"{style.name}/{concept.name}.png",
                        "text": captions(concept, style),
                        "concept": concept.name,
                        "style": style.name,
                        "held_out": (concept.name, style.name) in out,
                        "flip": concept.flips,
                    }
                )
            say(f"{style.name}: drawing {len(drawings[style.name])} pictures")
            jobs = [(str(beginning / style.name / f"{c.name}.png"), svg, size) for c, svg in drawings[style.name]]
            with ProcessPoolExecutor() as pool:
                list(pool.map(_draw, jobs, chunksize=64))
        lines = (json.dumps(row, ensure_ascii=False) for row in rows)
        (beginning / METADATA).write_text("\n".join(lines) + "\n", "utf-8")
        (beginning / LICENCES).write_text(licences(styles), "utf-8")
    return {style: len(bodies) for style, bodies in drawings.items()}


def licences(styles: Sequence[Style] = STYLES) -> str:
    """Who drew what, and under which licence."""
    lines = [f"{s.name}: {s.package} (npm), {s.author}, {s.licence}" for s in styles]
    return "\n".join([*lines, f"captions: {CAPTIONS} (npm), Miles Johnson, MIT"]) + "\n"


def _draw(job: tuple[str, str, int]) -> None:
    """Rasterise onto white."""
    import resvg_py
    from PIL import Image

    path, svg, size = job
    data = resvg_py.svg_to_bytes(svg_string=svg, width=size, height=size, background="white")
    Image.open(io.BytesIO(bytes(data))).convert("RGB").save(path)


def read_concepts(files: Mapping[str, bytes]) -> list[Concept]:
    """The emoji of emojibase-data: label and tags in both languages, in Unicode's order."""
    english, chinese = (json.loads(files[f"package/{language}/data.json"]) for language in ("en", "zh"))
    by_code = {row["hexcode"]: row for row in chinese}
    concepts, seen = [], set()
    for row in english:
        group = row.get("group")
        if group is None:  # regional indicators: halves of flags
            continue
        other = by_code[row["hexcode"]]
        name = re.sub(r"[^a-z0-9]+", "-", row["label"].lower().replace("*", "asterisk").replace("#", "hash")).strip("-")
        name = name if name and name not in seen else f"{name or 'emoji'}-{row['hexcode'].lower()}"
        seen.add(name)
        concepts.append(
            Concept(
                code=_plain(row["hexcode"]),
                name=name,
                label=row["label"],
                tags=tuple(row.get("tags", ())),
                label_zh=other["label"],
                tags_zh=tuple(other.get("tags", ())),
                flips=group not in (_SYMBOLS, _FLAGS) and not _ONE_WAY.search(row["label"].lower()),
            )
        )
    return concepts


def _plain(code: str) -> str:
    return "-".join(part for part in code.lower().split("-") if part != "fe0f")


def _drawings(
    style: Style, concepts: Sequence[Concept], packages: Path, say: Callable[[str], None]
) -> list[tuple[Concept, str]]:
    """(concept, SVG) for all that the style has drawn."""
    files = _open(style.package, packages, say)
    alphabet = files if style.alphabet is None else _open(style.alphabet, packages, say)
    names = {_plain(code): name for code, name in json.loads(alphabet["package/chars.json"]).items()}
    icons = json.loads(files["package/icons.json"])
    drawn = ((concept, svg(icons, names[concept.code])) for concept in concepts if concept.code in names)
    return [(concept, picture) for concept, picture in drawn if picture is not None]


def svg(icons: Mapping[str, Any], name: str) -> str | None:
    """The icon of that name in iconify's JSON, by way of its alias if it is one; None where there is none."""
    mirror = False
    alias = icons.get("aliases", {}).get(name)
    if alias is not None:
        mirror, name = bool(alias.get("hFlip")), alias["parent"]
    icon = icons["icons"].get(name)
    if icon is None:
        return None
    width, height = (icon.get(side, icons.get(side, 16)) for side in ("width", "height"))
    left, top = icon.get("left", 0), icon.get("top", 0)
    body = icon["body"]
    if mirror:
        body = f'<g transform="translate({2 * left + width} 0) scale(-1 1)">{body}</g>'
    side = max(width, height)  # square, the drawing in its middle
    left, top = left - (side - width) / 2, top - (side - height) / 2
    return (
        '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
        f'viewBox="{left} {top} {side} {side}">{body}</svg>'
    )


def _open(package: str, packages: Path, say: Callable[[str], None]) -> dict[str, bytes]:
    """The JSON files of an npm package, by their names in the archive; fetched unless it is in `packages`."""
    name, version = package.rsplit("@", 1)
    archive = packages / f"{name.removeprefix('@').replace('/', '-')}-{version}.tgz"
    if not archive.is_file():
        say(f"fetching {package}")
        _fetch(package, packages)
    try:
        with tarfile.open(archive) as tar:
            wanted = [member for member in tar.getmembers() if member.name.endswith(".json")]
            return {member.name: tar.extractfile(member).read() for member in wanted}  # type: ignore[union-attr]
    except (OSError, tarfile.TarError, EOFError) as error:
        raise DanqingError(f"{archive}: is no npm package ({error}); delete it and try again") from None


def _fetch(package: str, packages: Path) -> None:
    npm = shutil.which("npm")
    if npm is None:
        raise DanqingError(f"npm was not found, and {package} comes from its registry; install Node.js first")
    packages.mkdir(parents=True, exist_ok=True)
    command = [npm, "pack", package, "--silent", "--pack-destination", str(packages.absolute())]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        reason = (done.stderr.strip() or done.stdout.strip() or "no reason given").splitlines()[-1]
        raise DanqingError(f"npm pack {package} failed: {reason}")
