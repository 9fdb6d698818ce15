"""Whether an edit happened and everything else stayed: read from the image by the parser of scenes, and in pixels.

Shapes: H W image pixels, C channels.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from scipy.ndimage import binary_dilation

from tunalab.data.scenes.corpus import EDITS, draw_edit
from tunalab.data.scenes.render import render
from tunalab.data.scenes.sampling import stream
from tunalab.evaluation.along import evaluation_mode
from tunalab.evaluation.generation.parser import Parsed, check_size, parse
from tunalab.evaluation.measure import Measure, mean, share
from tunalab.evaluation.parts import EditingSettings
from tunalab.evaluation.samples import draw_grid
from tunalab.evaluation.subject import Subject, kept_array
from tunalab.frontends.contract import signed
from tunalab.inference.generation import to_pixels
from tunalab.inference.prompts import device_of

MARGIN = 1  # pixels around what changes: anti-aliased edges, and what an autoencoder smears over them
MOST_DB = 60.0  # of a PSNR: what is left between images that differ in nothing but their rounding


@dataclass(frozen=True)
class Verdict:
    """``success``: the image shows what the target shows, no more and no less. ``happened``: what the instruction names is as it
    asks. ``kept``: the background, and all in slots that the edit does not touch, are as they were. ``outside_db``: PSNR to
    the target outside of what changes.
    """

    success: bool
    happened: bool
    kept: bool
    outside_db: float


def judge(edited: Parsed, source: Parsed, target: Parsed, pixels: tuple[np.ndarray, np.ndarray, np.ndarray]) -> Verdict:
    """``source`` and ``target`` as read from their clean renders; ``pixels``: the three images (H, W, C) uint8 in the same order.

    A thing is its shape, colour, size and slot: one that was moved within its slot has stayed, one of another size has not.
    """
    shown, before, after = _things(edited), _things(source), _things(target)
    gone, new = before - after, after - before
    # Where the same thing was there before and is there after, it is no sign of the edit: only what is more or less of it.
    happened = all(shown[thing] >= after[thing] for thing in new) and all(shown[thing] <= after[thing] for thing in gone)
    touched = {slot for *_, slot in (*gone, *new)}
    same_ground = edited.background == source.background
    kept = same_ground and _elsewhere(shown, touched) == _elsewhere(before, touched)
    return Verdict(same_ground and shown == after, happened, kept, outside_db(*pixels))


def changed(source_HWC: np.ndarray, target_HWC: np.ndarray) -> np.ndarray:
    """The pixels that an edit changes, with a margin: (H, W) bool."""
    region_HW = (source_HWC != target_HWC).any(axis=-1)
    return np.asarray(binary_dilation(region_HW, iterations=MARGIN), dtype=bool)


def outside_db(edited_HWC: np.ndarray, source_HWC: np.ndarray, target_HWC: np.ndarray) -> float:
    """PSNR in dB, at most ``MOST_DB``, between an edited image and its target outside of what changes.

    Raises ValueError when the edit changes every pixel.
    """
    outside_HW = ~changed(source_HWC, target_HWC)
    if not outside_HW.any():
        raise ValueError("the edit changes every pixel")
    error = np.square(edited_HWC[outside_HW].astype(np.float64) - target_HWC[outside_HW]).mean() / 255**2
    return float(min(MOST_DB, -10 * np.log10(max(error, 10 ** (-MOST_DB / 10)))))


def _things(parsed: Parsed) -> Counter[tuple[str, str, str, str]]:
    return Counter((item.shape, item.colour, item.size, item.slot) for item in parsed.items)


def _elsewhere(things: Counter[tuple[str, str, str, str]], touched: set[str]) -> Counter[tuple[str, str, str, str]]:
    return Counter({thing: count for thing, count in things.items() if thing[-1] not in touched})


def shares(verdicts: Sequence[Verdict], name: str) -> list[bool]:
    """One of the three judgements of every edit."""
    return [bool(getattr(verdict, name)) for verdict in verdicts]


# Editing of scenes: recolour, remove, add, move, resize; whether it happened, and whether everything else stayed.
#
# The source is a clean render of the test split. ``success``: the parser finds in the edited image what it finds in the
# clean render of the target, no more and no less; ``happened`` looks at what the instruction names alone, ``kept`` at
# everything else. ``PSNR outside`` compares with the target outside of the pixels that change. An image left as it was
# scores 0 in ``success`` and ``happened`` and 1 in ``kept``. The ceiling is what the clean targets score, after the
# front-end's way into its target space and back: what a VAE loses, no model behind it can restore.
#
# Shapes: N edits, H W C image pixels and channels.

KIND = "editing"
SPLIT = "test"
NOTE = "chance: the source left as it is"
SHOWN = 6  # edits of each type in the picture


@dataclass(frozen=True, eq=False)
class Edit:
    instruction: str
    source_HWC: np.ndarray
    target_HWC: np.ndarray


def measure(subject: Subject, settings: EditingSettings) -> list[Measure]:
    """``subject.folder`` gets the edited images (``<type>.npz``) and a picture of source, edited image and target (``<type>.png``).

    Raises UserError: images of the run's size cannot be parsed.
    """
    check_size(subject.config.data.image_size)
    verdicts: dict[str, list[Verdict]] = {}
    ceilings: dict[str, list[Verdict]] = {}
    untouched: dict[str, list[Verdict]] = {}
    for name in subject.progress(EDITS, KIND):
        chosen = edits(name, settings.levels, settings.count, subject.config.data.image_size)
        edited_NHWC = _edited(subject, chosen, subject.folder / f"{name}.npz")
        _draw(chosen, edited_NHWC, subject.folder / f"{name}.png")
        verdicts[name] = judged(chosen, edited_NHWC)
        ceilings[name] = judged(chosen, _there_and_back(subject, [edit.target_HWC for edit in chosen]))
        untouched[name] = judged(chosen, np.stack([edit.source_HWC for edit in chosen]))
    everything = "all edits"
    for by_type in (verdicts, ceilings, untouched):
        by_type[everything] = [verdict for name in EDITS for verdict in by_type[name]]
    return [one for name in (everything, *EDITS) for one in _measures(name, verdicts[name], ceilings[name], untouched[name])]


def edits(name: str, levels: Sequence[int], count: int, image_size: int) -> list[Edit]:
    """The edits of one type, ``count`` a level: the same for every model."""
    found = []
    for level in sorted(set(levels)):
        for index in range(count):
            source, instruction, target = draw_edit(stream("edit benchmark", name, level, index), SPLIT, level, name)
            found.append(Edit(instruction, render(source, image_size), render(target, image_size)))
    return found


def judged(chosen: Sequence[Edit], edited_NHWC: np.ndarray) -> list[Verdict]:
    """A verdict an edit."""
    shown = parse(edited_NHWC)
    sources, targets = parse([edit.source_HWC for edit in chosen]), parse([edit.target_HWC for edit in chosen])
    return [
        judge(image, source, target, (pixels_HWC, edit.source_HWC, edit.target_HWC))
        for edit, image, source, target, pixels_HWC in zip(chosen, shown, sources, targets, edited_NHWC, strict=True)
    ]


def _edited(subject: Subject, chosen: Sequence[Edit], path: Path) -> np.ndarray:
    """The edited images, kept in a file."""
    if path.exists():
        return kept_array(path, "edited_NHWC")
    edited_NHWC = subject.edited([edit.source_HWC for edit in chosen], [edit.instruction for edit in chosen], range(len(chosen)))
    part = path.with_suffix(".part.npz")
    np.savez_compressed(part, edited_NHWC=edited_NHWC)
    part.replace(path)  # whole or not at all
    return edited_NHWC


@torch.no_grad()
def _there_and_back(subject: Subject, images: Sequence[np.ndarray]) -> np.ndarray:
    model = subject.model
    image_NCHW = signed(torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).to(device_of(model)))
    with evaluation_mode(model):
        return to_pixels(model, model.frontend.to_space(image_NCHW))


def _measures(name: str, verdicts: list[Verdict], ceilings: list[Verdict], untouched: list[Verdict]) -> list[Measure]:
    found = []
    for metric in ("success", "happened", "kept"):
        most, least = (float(np.mean(shares(some, metric))) for some in (ceilings, untouched))
        found.append(share(KIND, name, shares(verdicts, metric), metric=metric, split=SPLIT, chance=least, ceiling=most, note=NOTE))
    outside, most_db = ([verdict.outside_db for verdict in some] for some in (verdicts, ceilings))
    found.append(mean(KIND, name, outside, metric="PSNR outside", split=SPLIT, chance=MOST_DB, ceiling=float(np.mean(most_db))))
    return found


def _draw(chosen: Sequence[Edit], edited_NHWC: np.ndarray, path: Path) -> None:
    images, captions = [], []
    for edit, pixels_HWC in list(zip(chosen, edited_NHWC, strict=True))[:SHOWN]:
        images += [edit.source_HWC, pixels_HWC, edit.target_HWC]
        captions += [edit.instruction, "edited", "target"]
    draw_grid(np.stack(images), captions, columns=3).save(path)
