"""Editing of scenes: recolour, remove, add, move, resize; whether it happened, and whether everything else stayed.

The source is a clean render of the test split. ``success``: the parser finds in the edited image what it finds in the clean
render of the target, no more and no less; ``happened`` looks at what the instruction names alone, ``kept`` at everything else.
``PSNR outside`` compares with the target outside of the pixels that change. An image left as it was scores 0 in ``success`` and
``happened`` and 1 in ``kept``. The ceiling is what the clean targets score, after the front-end's way into its target space and
back: what a VAE loses, no model behind it can restore.

Shapes: N edits, H W C image pixels and channels.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from tunalab.data.scenes.edits import EDITS, draw_edit
from tunalab.data.scenes.render import render
from tunalab.data.scenes.sampling import stream
from tunalab.evaluation.editing.verdict import MOST_DB, Verdict, judge, shares
from tunalab.evaluation.generation.parser import check_size, parse
from tunalab.evaluation.measure import Measure, mean, share
from tunalab.evaluation.mode import evaluation_mode
from tunalab.evaluation.samples import draw_grid
from tunalab.evaluation.settings import EditingSettings
from tunalab.evaluation.subject import Subject, kept_array
from tunalab.inference.generation import to_pixels
from tunalab.inference.prefix import device_of

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
        asked = edits(name, settings.levels, settings.count, subject.config.data.image_size)
        edited_NHWC = _edited(subject, asked, subject.folder / f"{name}.npz")
        _draw(asked, edited_NHWC, subject.folder / f"{name}.png")
        verdicts[name] = judged(asked, edited_NHWC)
        ceilings[name] = judged(asked, _there_and_back(subject, [edit.target_HWC for edit in asked]))
        untouched[name] = judged(asked, np.stack([edit.source_HWC for edit in asked]))
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


def judged(asked: Sequence[Edit], edited_NHWC: np.ndarray) -> list[Verdict]:
    """A verdict an edit."""
    seen = parse(edited_NHWC)
    sources, targets = parse([edit.source_HWC for edit in asked]), parse([edit.target_HWC for edit in asked])
    return [
        judge(image, source, target, (pixels_HWC, edit.source_HWC, edit.target_HWC))
        for edit, image, source, target, pixels_HWC in zip(asked, seen, sources, targets, edited_NHWC, strict=True)
    ]


def _edited(subject: Subject, asked: Sequence[Edit], path: Path) -> np.ndarray:
    """The edited images, kept in a file."""
    if path.exists():
        return kept_array(path, "edited_NHWC")
    edited_NHWC = subject.edited([edit.source_HWC for edit in asked], [edit.instruction for edit in asked], range(len(asked)))
    part = path.with_suffix(".part.npz")
    np.savez_compressed(part, edited_NHWC=edited_NHWC)
    part.replace(path)  # whole or not at all
    return edited_NHWC


@torch.no_grad()
def _there_and_back(subject: Subject, images: Sequence[np.ndarray]) -> np.ndarray:
    model = subject.model
    image_NCHW = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).float().to(device_of(model)) / 127.5 - 1
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


def _draw(asked: Sequence[Edit], edited_NHWC: np.ndarray, path: Path) -> None:
    images, captions = [], []
    for edit, pixels_HWC in list(zip(asked, edited_NHWC, strict=True))[:SHOWN]:
        images += [edit.source_HWC, pixels_HWC, edit.target_HWC]
        captions += [edit.instruction, "edited", "target"]
    draw_grid(np.stack(images), captions, columns=3).save(path)
