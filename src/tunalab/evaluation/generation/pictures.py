"""Generated images enlarged above their prompts and what the parser read of them, for people to check."""

from collections.abc import Sequence
from pathlib import Path

from tunalab.evaluation.generation.images import Generated
from tunalab.evaluation.generation.parser import Found, Parsed
from tunalab.evaluation.generation.prompts import CATEGORIES, DENSE
from tunalab.evaluation.generation.verdicts import right
from tunalab.evaluation.samples import draw_grid

MOST = 12  # prompts of a category; one sample of each


def write_pictures(folder: Path, images: Generated, samples: Sequence[Sequence[Parsed]]) -> None:
    """A PNG a category. ``samples``: what was read of every image of every prompt."""
    for category in (*CATEGORIES, DENSE):
        chosen = [number for number, prompt in enumerate(images.prompts) if prompt.category == category][:MOST]
        if not chosen:
            continue
        captions = []
        for number in chosen:
            prompt, parsed = images.prompts[number], samples[number][0]
            verdict = "" if category == DENSE else "RIGHT " if right(category, prompt.scene, parsed) else "WRONG "
            captions.append(f"{prompt.text} = {verdict}{describe(parsed)}")
        draw_grid(images.images_PSHWC[chosen, 0], captions, columns=6).save(folder / f"{category}.png")


def describe(parsed: Parsed) -> str:
    """In a caption's form, with the place in units of a thing that is in no slot."""
    return f"on {parsed.background}: " + ", ".join(_phrase(one) for one in parsed.found)


def _phrase(found: Found) -> str:
    item = found.item
    place = item.slot or f"at {item.x},{item.y}"
    return " ".join(word for word in (item.size, item.colour, item.shape, place) if word)
