"""`tunalab drawings` on packages made here: what is held out, what is refused, one line for each mistake."""

import io
import json
import os
import subprocess
import tarfile
from collections import Counter
from pathlib import Path

import matplotlib
import numpy as np
import pytest

from tunalab.cli import main
from tunalab.data.drawings import load_art, making
from tunalab.data.drawings.art import KINDS
from tunalab.data.drawings.making import PACKAGES, STYLES, held_out, make
from tunalab.errors import UserError
from tunalab.frontends.components import build

GROUPS = ("animal-mammal", "food-fruit", "transport-ground", "place-building", "plant-other", "clothing", "face-smiling", "tool")
THINGS = [(f"{kind}{number}", number % len(GROUPS)) for number, kind in enumerate([*KINDS] * 5)]


def packed(path: Path, files: dict[str, bytes]) -> None:
    with tarfile.open(path, "w:gz") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(f"package/{name}")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))


def svg(number: int, colour: str) -> str:
    return f'<path fill="{colour}" d="M{number % 7} 1h6v{5 + number % 5}h-4z"/>'


@pytest.fixture(scope="module")
def packages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every package, with forty things; fonts that matplotlib brings stand for those of the list."""
    folder = tmp_path_factory.mktemp("packages")
    slugs = [name for name, _ in THINGS]
    names = {
        "en/data.json": json.dumps([{"label": name.title(), "subgroup": group} for name, group in THINGS] + [{"label": "A: x"}]),
        "en/messages.json": json.dumps({"subgroups": [{"key": key, "order": number} for number, key in enumerate(GROUPS)]}),
    }
    packed(folder / making.NAMES.file, {name: text.encode() for name, text in names.items()})
    head = '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 16 16">'
    art = {
        f"icons/{style}/{slug}{ending}.svg": f"{head}{svg(number, colour)}</svg>".encode()
        for style, colour in (("flat", "red"), ("modern", "blue"), ("high-contrast", "black"), ("3d", "grey"))
        for number, slug in enumerate(slugs)
        for ending in ("", "-default", "-dark")
    }
    packed(folder / making.FLUENT.file, art)
    for package, colour in ((making.TWEMOJI, "green"), (making.NOTO, "orange")):
        icons = {slug: {"body": svg(number, colour)} for number, slug in enumerate(slugs)}
        packed(folder / package.file, {"icons.json": json.dumps({"width": 16, "height": 16, "icons": icons}).encode()})
    fonts = sorted((Path(matplotlib.get_data_path()) / "fonts" / "ttf").glob("DejaVuS*-*.ttf"))
    for name, font in zip(making.FONTS, fonts[: len(making.FONTS)], strict=True):
        packed(folder / making.FONTS[name].file, {f"files/{name}-latin-700-normal.woff": font.read_bytes()})
    return folder


@pytest.fixture
def known(monkeypatch: pytest.MonkeyPatch) -> None:
    """The digests are taken to be right."""
    digests = {package.file: package.sha256 for package in PACKAGES}
    monkeypatch.setattr(making, "sha256", lambda path: digests[path.name])


@pytest.mark.usefixtures("known")
def test_a_folder_of_art_is_made_and_made_again_alike(packages: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["drawings", "--to", str(tmp_path / "a"), "--from", str(packages)]) == 0
    assert "40 things, 8 held out, 5 styles, 6 fonts" in capsys.readouterr().out
    make(tmp_path / "b", packages)
    art = load_art(str(tmp_path / "a"))
    assert art.fingerprint == load_art(str(tmp_path / "b")).fingerprint
    assert Counter(thing.kind for thing in art.things) == dict.fromkeys(KINDS, 5)
    assert [(one.name, one.held) for one in art.styles] == list(STYLES.items())
    by_style = dict(zip(STYLES, art.drawings_SNHWC, strict=True))
    for style, rgb in {"flat": (255, 0, 0), "modern": (0, 0, 255), "twemoji": (0, 128, 0), "noto": (255, 165, 0)}.items():
        seen = by_style[style][0][by_style[style][0][..., 3] == 255][:, :3]
        assert len(seen) > 500 and (abs(np.median(seen, axis=0) - rgb) < 20).all(), style
    assert (art.drawings_SNHWC[..., 3] > 0).any(-1).sum(-1).max() == 64, "as large as it can be"
    licences = (tmp_path / "a" / "LICENCES.txt").read_text()
    assert all(f"{one.name} {one.version}, {one.licence}" in licences for one in PACKAGES)
    letters = {tuple(np.flatnonzero(art.glyphs_FGHW[font, 7].any(0))[[0, -1]]) for font in range(len(art.fonts))}
    assert len(letters) > 3, "fonts differ"


def test_what_shares_a_word_is_held_out_together() -> None:
    names = ["cat", "black-cat", "cat-face", "dog", "dog-face", "red-fox", "fox", *(f"bird{n}" for n in range(23))]
    found = set(held_out(names))
    assert 4 <= len(found) <= 6 and found == set(held_out(names[::-1]))
    for family in ({"cat", "black-cat", "cat-face"}, {"dog", "dog-face"}, {"red-fox", "fox"}):
        assert not found & family or family <= found


def test_a_file_that_is_not_the_expected_one_is_refused(packages: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"emojibase-data-17.0.0.tgz is not the emojibase-data 17.0.0 that is expected"):
        make(tmp_path, packages)
    with pytest.raises(UserError, match=r"emojibase-data-17.0.0.tgz is not here: npm pack emojibase-data@17.0.0"):
        make(tmp_path, tmp_path)


def test_npm_is_missing_or_has_no_network(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(making.shutil, "which", lambda name: None)
    assert main(["drawings", "--to", str(tmp_path)]) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: npm is not here: install Node.js") and "--from" in said and said.count("\n") == 1
    monkeypatch.setattr(making.shutil, "which", lambda name: "npm")
    failed = subprocess.CompletedProcess([], 1, "", "\nnpm error code EAI_AGAIN\nnpm error more\n")
    monkeypatch.setattr(making.subprocess, "run", lambda *args, **options: failed)
    assert main(["drawings", "--to", str(tmp_path)]) == 2
    assert "npm cannot bring emojibase-data@17.0.0 (is there a network?): npm error code EAI_AGAIN\n" in capsys.readouterr().err


def test_the_renderer_is_missing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "resvg_py", None)
    assert main(["drawings", "--to", str(tmp_path)]) == 2
    assert "pip install 'tunalab[drawings]'" in capsys.readouterr().err


def test_components_can_be_trained_on_drawings(art_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TUNALAB_COMPONENTS", str(tmp_path))
    monkeypatch.setattr(build, "MIX", ("objects", "ocr"))
    small = ["encoder.snapshots=[2]", "encoder.batch=4", "encoder.width=32", "encoder.heads=2", "encoder.held_out=8"]
    call = ["components", "train", "--collection", "mine", "--drawings", str(art_folder), "--parts", "encoder", *small]
    assert main([*call, "encoder.image_size=64"]) == 0
    index = json.loads((tmp_path / "mine" / "index.json").read_text())
    assert index["encoder/seed0@2"]["data"]["art"] == load_art(str(art_folder)).fingerprint
    assert main([*call[:4], "--drawings", str(tmp_path)]) == 2


@pytest.mark.slow
@pytest.mark.skipif("TUNALAB_DRAWINGS" not in os.environ, reason="TUNALAB_DRAWINGS names no folder with the packages")
def test_the_real_packages(tmp_path: Path) -> None:
    """Each drawing is one, each kind has some to train on and some held out, and no two letters of a font look alike."""
    counts = make(tmp_path, Path(os.environ["TUNALAB_DRAWINGS"]))
    art = load_art(str(tmp_path))
    assert counts["things"] == len(art.things) > 300 and 0.15 < counts["held out"] / counts["things"] < 0.25
    assert all(len(art.numbers[kind, False]) >= 10 and len(art.numbers[kind, True]) >= 3 for kind in KINDS)
    covered = (art.drawings_SNHWC[..., 3] > 128).mean((2, 3))
    assert covered.min() > 0.03 and np.median(covered) > 0.4
    for glyphs in art.glyphs_FGHW:
        assert len({glyph.tobytes() for glyph in glyphs}) == len(glyphs) and glyphs.any((1, 2)).all()
