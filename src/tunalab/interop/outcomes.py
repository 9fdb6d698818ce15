"""What scorers of images share: files of JSON lines, kept outcomes, and measures of grouped items.

Shapes: H W C image pixels and channels, R resamples, I items of a group.
"""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from tunalab.data.buckets import Buckets, Size
from tunalab.data.documents import Reject
from tunalab.data.images import MAX_PIXELS, decode_image
from tunalab.data.manifest import parse_line
from tunalab.data.pretrained import Source, reading
from tunalab.errors import UserError
from tunalab.evaluation.measure import Measure, mean
from tunalab.files import append_line, appended_lines, below, listed


def read_bytes(path: Path, what: str) -> bytes:
    """Raises UserError, naming ``what`` is missing, when the file cannot be read."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise UserError(f"{what}: {path} cannot be read: {error.strerror}") from error


def read_lines(path: Path, what: str) -> list[tuple[str, dict[str, Any]]]:
    """The objects of a JSONL file, each with the words that name its line.

    Raises UserError: the file cannot be read or is empty, a line is no JSON object.
    """
    objects = []
    for number, line in enumerate(read_bytes(path, what).splitlines(), start=1):
        if not line.strip():
            continue
        where = f"{path} line {number}"
        try:
            objects.append((where, parse_line(line)))
        except Reject as reject:
            raise UserError(f"{where}: {reject}") from reject
    if not objects:
        raise UserError(f"{what}: {path} is empty")
    return objects


def text_of(where: str, plain: Mapping[str, Any], key: str) -> str:
    """Raises UserError: there is no such key, or it holds no text."""
    value = plain.get(key)
    if not isinstance(value, str) or not value:
        raise UserError(f"{where}: no text under {key!r} (keys: {', '.join(map(str, plain)) or 'none'})")
    return value


def path_of(where: str, plain: Mapping[str, Any], key: str, folder: Path) -> Path:
    """The file that a text names below a folder. Raises UserError when it would lead elsewhere."""
    name = text_of(where, plain, key)
    path = below(folder, name)
    if path is None:
        raise UserError(f"{where}: {key} {name!r} leads out of {folder}: a path below that folder is needed")
    return path


def checked_name(where: str, name: str) -> str:
    """A text that becomes part of a file's name. Raises UserError when it would lead elsewhere."""
    if "/" in name or "\\" in name or name.startswith(".") or below(Path(), name) is None:
        raise UserError(f"{where}: {name!r} cannot be part of a file's name")
    return name


@dataclass(frozen=True)
class OwnSize(Buckets):
    """Every image keeps its size."""

    tiers: tuple[tuple[Size, ...], ...] = ()

    @property
    def longest(self) -> int:
        return MAX_PIXELS

    def choose(self, where: str, height: int, width: int, stored: Size | None = None) -> Size:
        return height, width


def described(folder: Path, what: str, processor: Any) -> tuple[Source, Any, Any]:
    """A folder of transformers' form as a source of weights, its configuration, and what ``processor``, a class, reads from it.

    Raises UserError: it is no such folder, or cannot be read.
    """
    from transformers import AutoConfig

    if not (folder / "config.json").is_file():
        raise UserError(f"{what} {folder}: no such folder of a transformers model (config.json is missing)")
    source = Source(str(folder), "", f"{what} {folder}")
    with reading(source):
        config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        return source, config, processor.from_pretrained(folder, local_files_only=True, trust_remote_code=False)


def stamps(path: Path) -> list[Any]:
    """What changes when the files of a model do: names, sizes and times of the files right in a folder, or of a file."""
    files = listed(path) if path.is_dir() else [path]
    return [[str(file), file.stat().st_size, file.stat().st_mtime_ns] for file in files if file.is_file()]


Outcome = Mapping[str, Any]  # plain: what JSON holds


class Outcomes:
    """``path``: the file. ``scorer``, plain: what an outcome depends on besides image and question.

    Raises UserError: the file is there and holds something else.
    """

    def __init__(self, path: Path, scorer: Any) -> None:
        self.path = path
        self.scorer = scorer
        self.unreadable: list[str] = []
        self._kept: dict[str, Outcome] = {}
        self._read()

    def of(self, image: Path, question: Any, find: Callable[[np.ndarray], Outcome]) -> Outcome | None:
        """What ``find`` makes of the image (H, W, 3) uint8, or made of the same one before. None: it cannot be read.

        ``question``, plain.
        """
        try:
            data = image.read_bytes()
        except OSError as error:
            self.unreadable.append(f"{image}: {error.strerror}")
            return None
        about = json.dumps([self.scorer, question], sort_keys=True).encode()
        key = hashlib.sha256(hashlib.sha256(data).digest() + about).hexdigest()[:32]
        if key not in self._kept:
            try:
                pixels_HWC = decode_image(data, str(image), OwnSize())
            except Reject as reject:
                self.unreadable.append(str(reject))
                return None
            self._keep(key, image, find(pixels_HWC))
        return self._kept[key]

    def _keep(self, key: str, image: Path, outcome: Outcome) -> None:
        try:
            append_line(self.path, {"key": key, "image": str(image), "outcome": outcome})
        except OSError as error:
            raise UserError(f"{self.path} cannot be written: {error.strerror}") from error
        self._kept[key] = outcome

    def _read(self) -> None:
        try:
            for line in appended_lines(self.path, torn="cut"):
                plain = json.loads(line)
                self._kept[plain["key"]] = plain["outcome"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(f"{self.path} is there and holds no outcomes of scoring: choose another --out, or remove it") from error


RESAMPLES = 2000
SEED = 0  # an interval is part of a result: the same items give the same one
KIND = "generation"


def item_measure(benchmark: str, metric: str, values: Sequence[float | None], failures: int, note: str) -> Measure:
    """The mean over items. None: of an item no image can be read; then items cannot be paired with another model's.

    ``failures`` counts images. Raises UserError when no item has a value.
    """
    scored = [value for value in values if value is not None]
    if not scored:
        raise UserError(f"{benchmark} {metric}: none of {failures} images can be read")
    counted = f"{note}; failures are images that cannot be read" if failures else note
    measure = mean(KIND, benchmark, scored, metric=metric, failures=failures, note=counted)
    return measure if len(scored) == len(values) else replace(measure, items=[])


def _interval(values_R: np.ndarray) -> dict[str, Any]:
    """``low`` and ``high`` of 95% of resampled values, None where they are all equal."""
    low, high = (float(bound) for bound in np.quantile(values_R, [0.025, 0.975]))
    return {"low": low, "high": high} if low < high else {"low": None, "high": None}


def pooled_measure(benchmark: str, metric: str, counts: Sequence[tuple[int, int] | None], note: str) -> Measure:
    """The share of right answers over all questions. ``counts``: of every item how many are right, and of how many.

    None: of an item whose image cannot be read. The interval resamples items, as questions of one image are not independent.
    The items are weighted, so that their mean is the value. Raises ValueError when no question is left.
    """
    counts_I2 = np.array([one for one in counts if one is not None], dtype=np.int64).reshape(-1, 2)
    right, total = counts_I2.sum(axis=0).tolist()
    if not total:
        raise ValueError(f"{benchmark} {metric}: no question is left")
    drawn_RI = np.random.default_rng(SEED).integers(len(counts_I2), size=(RESAMPLES, len(counts_I2)))
    right_R, of_R = counts_I2[drawn_RI].sum(axis=1).T
    failures = counts.count(None)
    return Measure(
        KIND,
        benchmark,
        metric,
        right / total,
        len(counts_I2),
        **_interval(right_R / np.maximum(of_R, 1)),
        failures=failures,
        note=f"{note}; {total} questions pooled" + ("; failures are images that cannot be read" if failures else ""),
        items=[] if failures else [round(one * len(counts_I2) / total, 6) for one in counts_I2[:, 0].tolist()],
    )


def group_measures(
    benchmark: str, groups: Mapping[str, Sequence[float | None]], failures: Mapping[str, int], note: str
) -> list[Measure]:
    """``overall``, every group counting the same, then a measure a group that has items.

    The interval of ``overall`` resamples the items of every group by themselves. Its items are weighted, so that their mean is its
    value. Raises UserError when of a group no item has a value.
    """
    parts = [item_measure(benchmark, name, values, failures[name], note) for name, values in groups.items() if values]
    scored = [np.array([value for value in values if value is not None]) for values in groups.values() if values]
    total = sum(map(len, scored))
    random = np.random.default_rng(SEED)
    means_R = np.mean(
        [values_I[random.integers(len(values_I), size=(RESAMPLES, len(values_I)))].mean(axis=1) for values_I in scored], axis=0
    )
    weighted = [round(float(value) * total / (len(scored) * len(values_I)), 6) for values_I in scored for value in values_I]
    overall = Measure(
        KIND,
        benchmark,
        "overall",
        float(np.mean([values_I.mean() for values_I in scored])),
        total,
        **_interval(means_R),
        failures=sum(part.failures for part in parts),
        note=f"{parts[0].note}; overall is the mean over {len(parts)} tags",
        items=weighted if all(part.items for part in parts) else [],
    )
    return [overall, *parts]
