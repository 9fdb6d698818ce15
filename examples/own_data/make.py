"""A corpus of drawings from packages that anybody may use: pictures, captions, questions, and what is held out of training.

    npm pack fluentui-emoji@1.3.0 emojibase-data@17.0.0     # art and names, both under the MIT licence
    pip install resvg-py                                    # draws SVG
    python make.py                                          # writes emoji/

    emoji/images/STYLE/NAME.png     drawings of 64 px on white
    emoji/captions.jsonl            {"image", "caption"}: captions, and the other way round prompts of images
    emoji/questions.jsonl           {"image", "conversations"}: what kind of thing, which of two, what is it; a line each
    emoji/heldout.jsonl             captions of drawings that no line above shows
    emoji/concepts.jsonl            a benchmark: things that training never shows, in the styles it knows
    emoji/styles.jsonl              a benchmark: a style that training never shows, of things it knows

Splits: a tenth of the things, and the style `high-contrast`. Nothing but numbers of this file decides what is drawn and asked.

A question stands by itself: in one conversation an answer tells the next ("apple", then "food or drink"), and a model learns to
read what was said and not to look.
"""

import argparse
import json
import random
import re
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

ART, NAMES = "fluentui-emoji-1.3.0.tgz", "emojibase-data-17.0.0.tgz"
STYLES, UNSEEN = ("flat", "modern"), "high-contrast"
SIDE = 64
HELD_OUT = 10  # one thing in so many
KINDS = {  # groups of the names' package that hold things one can see -> what an answer calls them
    "animals-nature": "animal or plant",
    "food-drink": "food or drink",
    "travel-places": "place or vehicle",
    "activities": "game or sport",
    "objects": "object",
    "people-body": "person",
    "smileys-emotion": "face",
}
WHICH_KIND = "what kind of thing is it?"
TONES = re.compile(r"-(light|medium-light|medium|medium-dark|dark)$")
Line = dict[str, object]


def read_art(path: Path) -> dict[str, dict[str, bytes]]:
    """Style -> name -> SVG, without variants of skin tone."""
    found: dict[str, dict[str, bytes]] = {style: {} for style in (*STYLES, UNSEEN)}
    with tarfile.open(path) as archive:
        for member in archive:
            _, _, rest = member.name.partition("icons/")
            style, _, file = rest.partition("/")
            if style in found and file.endswith(".svg") and not TONES.search(file.removesuffix(".svg")):
                content = archive.extractfile(member)
                if content is not None:
                    found[style][file.removesuffix(".svg").removesuffix("-default")] = content.read()
    return found


def read_kinds(path: Path) -> dict[str, str]:
    """Name as the art spells it -> kind of thing."""
    with tarfile.open(path) as archive:
        data, messages = (json.load(archive.extractfile(f"package/en/{name}.json") or b"") for name in ("data", "messages"))
    keys = {group["order"]: group["key"] for group in messages["groups"]}
    return {
        re.sub(r"[^a-z0-9]+", "-", one["label"].lower()).strip("-"): KINDS[keys[one["group"]]]
        for one in data
        if keys.get(one.get("group")) in KINDS
    }


def words(name: str) -> str:
    return name.replace("-", " ")


def draw(svg: bytes, path: Path) -> None:
    import resvg_py

    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(bytes(resvg_py.svg_to_bytes(svg_string=svg.decode(), width=SIDE, height=SIDE, background="white")))


def asked(name: str, kind: str, alike: Sequence[str], rng: random.Random) -> Iterator[tuple[str, str]]:
    """Questions about one drawing with their answers."""
    yield WHICH_KIND, kind
    yield "what is it?", words(name)
    if others := [one for one in alike if one != name]:
        first, second = rng.sample([name, rng.choice(others)], 2)  # in an order that does not tell
        yield f"is it {words(first)} or {words(second)}?", words(name)


def benchmark(names: Sequence[str], styles: Sequence[str], kind_of: Mapping[str, str]) -> list[Line]:
    """Each drawing once: what kind of thing it shows."""
    kinds = sorted(set(kind_of.values()))
    return [
        {"image": f"images/{style}/{name}.png", "question": WHICH_KIND, "answer": kind_of[name], "options": kinds}
        for style in styles
        for name in names
    ]


def make(art: Path, names: Path, out: Path) -> dict[str, int]:
    """Write the corpus; returns the number of lines a file."""
    drawings, kind_of = read_art(art), read_kinds(names)
    every = sorted(set(kind_of).intersection(*(set(drawings[style]) for style in (*STYLES, UNSEEN))))
    rng = random.Random(0)
    held = set(rng.sample(every, len(every) // HELD_OUT))
    trained = [name for name in every if name not in held]
    for style in (*STYLES, UNSEEN):
        for name in every:
            draw(drawings[style][name], out / f"images/{style}/{name}.png")
    files: dict[str, list[Line]] = {"captions": [], "questions": [], "heldout": []}
    for style in STYLES:
        for name in every:
            image = f"images/{style}/{name}.png"
            caption = {"image": image, "caption": f"a {style} drawing of {words(name)}"}
            if name in held:
                files["heldout"].append(caption)
                continue
            alike = [one for one in trained if kind_of[one] == kind_of[name]]
            files["captions"].append(caption)
            for question, answer in asked(name, kind_of[name], alike, rng):
                turns = [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]
                files["questions"].append({"image": image, "conversations": turns})
    files["concepts"] = benchmark(sorted(held), STYLES, kind_of)
    files["styles"] = benchmark(rng.sample(trained, min(300, len(trained))), [UNSEEN], kind_of)
    for name, lines in files.items():
        (out / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return {name: len(lines) for name, lines in files.items()}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--art", type=Path, default=Path(ART))
    parser.add_argument("--names", type=Path, default=Path(NAMES))
    parser.add_argument("--out", type=Path, default=Path("emoji"))
    arguments = parser.parse_args()
    for file in (arguments.art, arguments.names):
        if not file.is_file():
            raise SystemExit(f"{file} is not here: npm pack fluentui-emoji@1.3.0 emojibase-data@17.0.0")
    for file, count in make(arguments.art, arguments.names, arguments.out).items():
        print(f"{count:6,} lines in {arguments.out}/{file}.jsonl")
