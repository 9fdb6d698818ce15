"""`tunalab drawings`: from packages that anybody may use to a folder of art. Nothing of them comes with tunalab.

Shapes: S styles; N things; F fonts; G characters; H, W rows and columns; C colour channels and opacity.
"""

import io
import json
import re
import shutil
import subprocess
import tarfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from hashlib import blake2b
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from tunalab.data.drawings.art import CAPITAL, CHARACTERS, FILE, GLYPH, KINDS, SIDE, Named, save_art
from tunalab.errors import UserError
from tunalab.files import sha256, write_atomically
from tunalab.terminal import progress_bar


class Package(NamedTuple):
    """A package of npm. ``what``: names, a style or styles, or a font."""

    name: str
    version: str
    sha256: str
    licence: str
    what: str

    @property
    def file(self) -> str:
        """What `npm pack` calls it."""
        return f"{self.name.removeprefix('@').replace('/', '-')}-{self.version}.tgz"


NAMES = Package(
    "emojibase-data", "17.0.0", "d01d0e2ca4e22cb402679532155342c71e2e871f25c32223c013b8b166ebdf5a", "MIT", "names and groups"
)
FLUENT = Package(
    "fluentui-emoji",
    "1.3.0",
    "ec892e607e854859b812c7d827801756adc19955b0ef56d4ae8afcddd19492c5",
    "MIT",
    "styles flat, modern and high-contrast (Fluent Emoji, Microsoft)",
)
TWEMOJI = Package(
    "@iconify-json/twemoji",
    "1.2.5",
    "19046dff7d8707ce96212ec86468b36ac5f8e60409629dd13f809265c6d0ebb7",
    "CC-BY-4.0",
    "style twemoji (Twemoji, Twitter and other contributors)",
)
NOTO = Package(
    "@iconify-json/noto",
    "1.2.9",
    "3e918d88fc945c0bb3d468dbace6f88caef67f01c9f0e7bcae0915a042e8f1ad",
    "Apache-2.0",
    "style noto (Noto Emoji, Google)",
)
FONTS = {  # name in captions -> package
    name: Package(f"@fontsource/{name}", "5.3.0", digest, "OFL-1.1", f"font {name}")
    for name, digest in {
        "inter": "02034af8d41dcc67ac8eab88f642e129bb8a2e8922abf30229c32725f54d8fd6",
        "lora": "3f2e66b0934b8652bb1a37645a9fc3e77e83b5841a09e97174e7bb11e11063c9",
        "oswald": "27bf46420288bb65bd186638cde54686aa8f9d5dc975b1d597dfe81a7dd472cb",
        "roboto-mono": "9825f59e72dab7ef3f96e6af79407d97844ba50927ae57f2c9c60199daa9ef62",
        "bitter": "f907568dce71e70601cc2ef3ecd4f72d7721a12dad358d8fb4b58ffb55a72efb",
        "comic-neue": "0d242660fa8a3e31deb4ba0005b830904db4533ae3366f9c41724ff452662fa6",
    }.items()
}
PACKAGES = (NAMES, FLUENT, TWEMOJI, NOTO, *FONTS.values())

# Never shown in training: a hand of its own, drawings in black lines; a slab serif, a handwriting; a fifth of the things.
STYLES = {"flat": False, "modern": False, "twemoji": False, "noto": True, "high-contrast": True}
FONTS_HELD = ("bitter", "comic-neue")
HELD_SHARE = 0.2

GROUPS = {  # groups of the names' package -> kind
    **dict.fromkeys(
        ("animal-mammal", "animal-bird", "animal-amphibian", "animal-reptile", "animal-marine", "animal-bug"), "animal"
    ),
    **dict.fromkeys(("food-fruit", "food-vegetable", "food-prepared", "food-asian", "food-sweet"), "food"),
    **dict.fromkeys(("transport-ground", "transport-water", "transport-air"), "vehicle"),
    **dict.fromkeys(("place-building", "place-religious"), "building"),
    **dict.fromkeys(("plant-flower", "plant-other"), "plant"),
    **dict.fromkeys(("face-smiling", "face-affection", "face-tongue", "face-neutral-skeptical", "face-sleepy"), "face"),
    **dict.fromkeys(("face-unwell", "face-hat", "face-glasses", "face-concerned", "face-negative"), "face"),
    "clothing": "clothes",
    "tool": "tool",
}
# In these groups, but not what the kind says, or of two kinds.
UNCLEAR = """
    paw-prints feather wing pig-nose spider-web microbe coral spiral-shell turkey hatching-chick station bus-stop motorway
    railway-track oil-drum fuel-pump wheel police-car-light stop-sign construction anchor ring-buoy manual-wheelchair
    motorized-wheelchair parachute seat mountain-railway suspension-railway mountain-cableway satellite roller-skate
    building-construction brick rock wood bouquet rosette empty-nest nest-with-eggs mushroom brown-mushroom folding-hand-fan
    shopping-bags hair-pick prayer-beads lipstick ring gem-stone skull melting-face face-in-clouds bomb crossed-swords shield
    white-cane bow-and-arrow dagger boomerang hammer-and-pick hammer-and-wrench
"""
COMMON = "face with and the of on in up down small large old new front facing red green white black light"
LONGEST = 2  # words of a name


def make(out: Path, packages: Path | None = None) -> dict[str, int]:
    """Write the art of the packages into ``out``; returns how much there is.

    ``packages``: the folder where they lie; None: npm brings them, into a folder of ``out``.

    Raises UserError, one line: npm, a package or the renderer is missing, there is no network, a file is not the one expected.
    """
    render = _renderer()
    where = packages or out / "packages"
    if packages is None:
        where.mkdir(parents=True, exist_ok=True)
        for package in PACKAGES:
            if not (where / package.file).is_file():
                npm_pack(package, where)
    for package in PACKAGES:
        _check(package, where / package.file)
    kind_of = read_names(where / NAMES.file)
    svg_of = {
        **read_fluent(where / FLUENT.file),
        "twemoji": read_icons(where / TWEMOJI.file),
        "noto": read_icons(where / NOTO.file),
    }
    fonts = {name: read_font(where / package.file) for name, package in FONTS.items()}
    counts = write(out, kind_of, svg_of, fonts, render)
    lines = [f"{one.name} {one.version}, {one.licence}: {one.what}\n" for one in PACKAGES]
    write_atomically(out / "LICENCES.txt", f"{FILE} was made from these packages of npm:\n\n{''.join(lines)}")
    return counts


def npm_pack(package: Package, folder: Path) -> None:
    """Raises UserError: there is no npm, or it cannot bring the package."""
    npm = shutil.which("npm")
    if npm is None:
        needed = ", ".join(one.file for one in PACKAGES)
        raise UserError(f"npm is not here: install Node.js, or get {needed} elsewhere and name their folder with --from")
    command = [npm, "pack", "--silent", f"{package.name}@{package.version}"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, encoding="utf-8", errors="replace")
    if done.returncode:
        reason = next((line for line in done.stderr.splitlines() if line.strip()), "it says nothing")
        raise UserError(f"npm cannot bring {package.name}@{package.version} (is there a network?): {reason}")


def _check(package: Package, path: Path) -> None:
    if not path.is_file():
        raise UserError(f"{path} is not here: npm pack {package.name}@{package.version}")
    if sha256(path) != package.sha256:
        raise UserError(f"{path} is not the {package.name} {package.version} that is expected (its sha256 differs): remove it")


def _renderer() -> Callable[[str, int], np.ndarray]:
    """SVG and side -> (side, side, C) uint8. Raises UserError: resvg-py is not installed."""
    try:
        import resvg_py
    except ImportError as error:
        raise UserError("resvg-py, which draws SVG, is not installed: pip install 'tunalab[drawings]'") from error

    def render(svg: str, side: int) -> np.ndarray:
        png = bytes(resvg_py.svg_to_bytes(svg_string=svg, width=side, height=side))
        return np.asarray(Image.open(io.BytesIO(png)).convert("RGBA"))

    return render


def _members(path: Path, wanted: str) -> Iterator[tuple[re.Match[str], bytes]]:
    """Files of a package whose path within it fits, with what they hold."""
    with tarfile.open(path) as archive:
        for member in archive:
            found = re.fullmatch(wanted, member.name.partition("/")[2])
            content = archive.extractfile(member) if found else None
            if found and content is not None:
                yield found, content.read()


def read_names(path: Path) -> dict[str, str]:
    """Name of each thing, as the sets of art spell it, -> kind."""
    files: dict[str, Any] = {found[1]: json.loads(text) for found, text in _members(path, r"en/(data|messages)\.json")}
    groups = {one["order"]: one["key"] for one in files["messages"]["subgroups"]}
    named = {re.sub(r"[^a-z0-9]+", "-", one["label"].lower()).strip("-"): groups.get(one.get("subgroup")) for one in files["data"]}
    return {
        name: GROUPS[group]
        for name, group in named.items()
        if group in GROUPS and name not in UNCLEAR.split() and name.count("-") < LONGEST
    }


def read_fluent(path: Path) -> dict[str, dict[str, str]]:
    """Style -> name -> SVG."""
    found: dict[str, dict[str, str]] = {}
    for match, svg in _members(path, r"icons/([\w-]+)/([\w-]+?)(?:-default)?\.svg"):
        found.setdefault(match[1], {})[match[2]] = svg.decode()
    return {style: icons for style, icons in found.items() if style in STYLES}


def read_icons(path: Path) -> dict[str, str]:
    """Name -> SVG, of one set of the form of Iconify."""
    ((_, text),) = _members(path, r"icons\.json")
    whole = json.loads(text)
    found = {}
    for name, icon in whole["icons"].items():
        box = " ".join(str(icon.get(key, whole.get(key, default))) for key, default in SIZES.items())
        found[name] = f'<svg xmlns="http://www.w3.org/2000/svg" {XLINK} viewBox="{box}">{icon["body"]}</svg>'
    return found


SIZES = {"left": 0, "top": 0, "width": 16, "height": 16}  # keys of an icon, or of its set -> what they are without
XLINK = 'xmlns:xlink="http://www.w3.org/1999/xlink"'


def read_font(path: Path) -> bytes:
    """The bold Latin letters."""
    ((_, content),) = _members(path, r"files/[\w-]+?-latin-700-normal\.woff")
    return content


def write(
    out: Path,
    kind_of: Mapping[str, str],
    svg_of: Mapping[str, Mapping[str, str]],
    fonts: Mapping[str, bytes],
    render: Callable[[str, int], np.ndarray],
) -> dict[str, int]:
    """Draw the things that every style has, and write them. Returns how much there is of everything."""
    every = sorted(name for name in kind_of if all(name in svg_of[style] for style in STYLES))
    held = {name for kind in KINDS for name in held_out([one for one in every if kind_of[one] == kind])}
    drawn = progress_bar([(style, name) for style in STYLES for name in every], desc="drawings", delay=3)
    drawings = [_cropped(partial(render, svg_of[style][name])) for style, name in drawn]
    drawings_SNHWC = np.stack(drawings).reshape(len(STYLES), len(every), SIDE, SIDE, 4)
    glyphs, widths = zip(*(_glyphs(content) for content in fonts.values()), strict=True)
    things = [Named(name.replace("-", " "), name in held, kind_of[name]) for name in every]
    styles = [Named(name, is_held) for name, is_held in STYLES.items()]
    arrays = {"drawings": drawings_SNHWC, "glyphs": np.stack(glyphs), "widths": np.stack(widths)}
    save_art(out, things, styles, [Named(name, name in FONTS_HELD) for name in fonts], arrays)
    return {"things": len(things), "held out": len(held), "styles": len(styles), "fonts": len(fonts)}


def held_out(names: Sequence[str]) -> list[str]:
    """A fifth of the names of a kind. Names that share a word are held out together: a cat is no news to who knows a cat's face."""
    families: list[tuple[set[str], list[str]]] = []
    for name in names:
        words, members = set(name.split("-")).difference(COMMON.split()) or {name}, [name]
        for one in [one for one in families if one[0] & words]:
            families.remove(one)
            words, members = words | one[0], members + one[1]
        families.append((words, members))
    found: list[str] = []
    room = round(HELD_SHARE * len(names))
    for _, members in sorted(families, key=lambda one: blake2b(min(one[1]).encode()).digest()):
        if len(found) + len(members) <= room:
            found += members
    return found


def _cropped(render: Callable[[int], np.ndarray]) -> np.ndarray:
    """(SIDE, SIDE, C) uint8: a drawing as large as it can be, in the middle."""
    image_HWC = render(2 * SIDE)
    rows, columns = (np.flatnonzero((image_HWC[:, :, 3] > 0).any(axis)) for axis in (1, 0))
    image = Image.fromarray(image_HWC).crop((int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1))
    side = max(image.size)
    square = Image.new("RGBA", (side, side))
    square.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
    return np.asarray(square.resize((SIDE, SIDE), Image.Resampling.LANCZOS))


def _glyphs(content: bytes) -> tuple[np.ndarray, np.ndarray]:
    """Each character (G, H, W) uint8, capitals at the top and CAPITAL high, and the width of each (G)."""
    _, top, _, _ = ImageFont.truetype(io.BytesIO(content), 1000).getbbox("H", anchor="ls")
    font = ImageFont.truetype(io.BytesIO(content), round(1000 * CAPITAL / -top))
    drawn = []
    for character in CHARACTERS:
        image = Image.new("L", GLYPH[::-1])
        ImageDraw.Draw(image).text((2, CAPITAL), character, fill=255, font=font, anchor="ls")
        drawn.append(np.asarray(image))
    return np.stack(drawn), np.array([round(font.getlength(one)) for one in CHARACTERS], dtype=np.int32)
