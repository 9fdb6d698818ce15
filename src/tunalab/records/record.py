"""The record of a run: one JSON file with everything that tables and figures are made of.

A record is rewritten, whole, after every evaluation, so an interrupted run leaves a valid record
with ``finished`` false. Quantities that do not exist for a run (a loss without targets) are left
out, never NaN: JSON has no NaN, and a curve with a hole is honest where a zero is not.

Plain JSON values become dataclasses, every field checked by its type hint and named when it is
wrong. A hint becomes a function once, not at every value: a thousand records hold a million of them.
Where a value stands is put together on the way out of a mismatch, so that right values cost no
names.
"""

import dataclasses
import json
import math
import os
import types
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from difflib import get_close_matches
from functools import cache, cached_property
from math import isfinite
from pathlib import Path
from typing import Any, TypeVar, Union, cast, get_args, get_origin, get_type_hints

from tunalab.errors import UserError
from tunalab.evaluation.measure import Measure
from tunalab.evaluation.score import Score, chance_of
from tunalab.evaluation.whole import Evaluated, to_text
from tunalab.files import listed, locked, write_atomically
from tunalab.frontends.looks import Look, resolved_look
from tunalab.redaction import redacted_settings

T = TypeVar("T")
Convert = Callable[[Any], Any]  # a plain value into one of a hint; raises Mismatch

_NAMES: dict[Any, str] = {int: "an integer", float: "a number", str: "a text", bool: "true or false"}


class Mismatch(ValueError):
    """A field whose value is not what it has to be."""

    def __init__(self, where: str, expected: str, value: Any) -> None:
        super().__init__(where, expected, value)
        self.where, self.expected, self.value = where, expected, value

    def __str__(self) -> str:
        return f"field {self.where or '(top level)'} must be {self.expected}, got {self.value!r}"[:300]

    def inside(self, outer: str) -> None:
        """Say further out where the value stands: in which field, or at which place of a list (``[3]``)."""
        between = "." if self.where and not self.where.startswith("[") else ""
        self.where = f"{outer}{between}{self.where}"


def build(cls: type[T], plain: Any) -> T:
    """An instance of the dataclass ``cls`` from a dictionary, recursively. Fields with a default may be absent.

    Raises:
        Mismatch: a field is unknown, missing, of another type or not finite.
    """
    return cast(T, _converter(cast(Any, cls))(plain))


@cache
def _converter(hint: Any) -> Convert:
    origin = get_origin(hint)
    if hint is Any:
        return lambda value: value
    if origin in (Union, types.UnionType):
        (inner,) = [choice for choice in get_args(hint) if choice is not type(None)]
        convert = _converter(inner)
        return lambda value: None if value is None else convert(value)
    if origin is list:
        return _list(_converter(get_args(hint)[0]))
    if origin is dict:
        return _dict(_converter(get_args(hint)[1]))
    if dataclasses.is_dataclass(hint):
        return _dataclass(hint)
    return _scalar(hint)


def _dataclass(cls: Any) -> Convert:
    missing, hints = dataclasses.MISSING, get_type_hints(cls)
    entries = [
        (entry.name, _converter(hints[entry.name]), entry.default is missing and entry.default_factory is missing)
        for entry in dataclasses.fields(cls)
    ]

    def convert(plain: Any) -> Any:
        if not isinstance(plain, dict):
            raise Mismatch("", "an object", plain)
        if not plain.keys() <= hints.keys():
            unknown = next(name for name in plain if name not in hints)
            raise Mismatch(str(unknown), f"one of {', '.join(hints)}", unknown)
        values = {}
        for name, inner, required in entries:
            if name in plain:
                try:
                    values[name] = inner(plain[name])
                except Mismatch as error:
                    error.inside(name)
                    raise
            elif required:
                raise Mismatch(name, "present", "nothing")
        return cls(**values)

    return convert


def _list(inner: Convert) -> Convert:
    def convert(plain: Any) -> Any:
        if not isinstance(plain, list):
            raise Mismatch("", "a list", plain)
        items: list[Any] = []
        try:
            for item in plain:
                items.append(inner(item))
        except Mismatch as error:
            error.inside(f"[{len(items)}]")
            raise
        return items

    return convert


def _dict(inner: Convert) -> Convert:
    def convert(plain: Any) -> Any:
        if not isinstance(plain, dict) or not all(isinstance(name, str) for name in plain):
            raise Mismatch("", "an object", plain)
        items = {}
        for name, item in plain.items():
            try:
                items[name] = inner(item)
            except Mismatch as error:
                error.inside(name)
                raise
        return items

    return convert


def _scalar(hint: Any) -> Convert:
    def convert(value: Any) -> Any:
        if type(value) is hint and (hint is not float or isfinite(value)):  # nearly all are
            return value
        # bool is an int to Python, and must not pass for a count.
        if hint is float and isinstance(value, int | float) and not isinstance(value, bool):
            if not isfinite(value):
                raise Mismatch("", "a finite number", value)
            return float(value)
        if hint is int and isinstance(value, int) and not isinstance(value, bool):
            return value
        if hint in (str, bool) and isinstance(value, hint):
            return value
        raise Mismatch("", _NAMES.get(hint, str(hint)), value)

    return convert


SCHEMA = 1
RECORD_FILE, CONFIG_FILE = "record.json", "config.yaml"  # of a run directory
_EVALUATION = ',\n "evaluation": [\n'  # where write_record puts it: last, and by far the largest
_QUOTED = {"run", "config", "environment", "components"}  # free of credentials, in the records of earlier versions too
_BLOCK = 65_536  # bytes; most records are in one without their evaluation


@dataclass(frozen=True)
class Point:
    """One evaluation of a run: how much it had consumed, and what it could do then."""

    tokens: int
    steps: int
    images: int
    flops: float
    seconds: float
    benchmarks: dict[str, Score] = field(default_factory=dict)
    losses: dict[str, float] = field(default_factory=dict)
    one_step_psnr: dict[str, float] = field(default_factory=dict)  # flow time t -> dB


@dataclass(frozen=True)
class RunInfo:
    """Which run this is. ``config_hash`` decides whether a cell of a sweep is already done."""

    name: str
    experiment: str
    variant: str
    seed: int
    mask_ratio: float
    sweep: str | None
    config_hash: str
    finished: bool


@dataclass(frozen=True)
class Totals:
    """What the run cost in all. ``seconds`` adds up over interruptions."""

    tokens: int
    steps: int
    images: int
    flops: float
    seconds: float
    peak_memory_bytes: int


@dataclass(frozen=True)
class Record:
    """All of a run. ``parameters``: counts by part and ``trainable``; ``components``: their identity and quality."""

    run: RunInfo
    config: dict[str, Any]
    environment: dict[str, Any]
    parameters: dict[str, int]
    components: dict[str, Any]
    totals: Totals
    points: list[Point]
    schema: int = SCHEMA
    attempts: dict[str, int] = field(default_factory=dict)  # starts, and how often one was killed, preempted, stopped or failed
    data: dict[str, Any] = field(default_factory=dict)  # what was read (training/callbacks.py), and changes that were accepted
    frontend: Look | None = None  # how it is shown; None in records of earlier versions, read :attr:`look` instead
    evaluation: list[Evaluated] = field(default_factory=list)  # of the finished model (`tunalab evaluate`), a part at a time

    @cached_property
    def look(self) -> Look:
        """What the record says of its front-end, or what its configuration comes to where it says nothing."""
        return self.frontend or resolved_look({**self.config, "variant": self.run.variant})


def write_record(path: Path, record: Record) -> None:
    """Write a record atomically: a crash leaves the old record or the new one.

    Raises:
        UserError: the record would not be readable again (a NaN, a count that is no integer); names file and field.
    """
    plain = asdict(record)
    for point in plain["points"]:
        for score in point["benchmarks"].values():
            if score["outcomes"] is None:
                del score["outcomes"]
    for name in ("attempts", "data", "frontend"):
        if not plain[name]:  # not known
            del plain[name]
    _parse(path, plain)
    evaluation = plain.pop("evaluation")
    ordered = {"schema": plain.pop("schema"), **plain}
    try:
        text = json.dumps(ordered, indent=1, allow_nan=False)
        if evaluation:  # a line a measure: the values of its items are many
            parts = ",\n".join(" " + to_text(result).strip() for result in record.evaluation)
            text = f"{text[:-2]}{_EVALUATION}{parts}\n ]\n}}"
    except (TypeError, ValueError) as error:
        raise UserError(f"{path}: record cannot be written as JSON: {error}") from error
    write_atomically(path, text + "\n")


def read_record(path: Path, evaluation: bool = True) -> Record:
    """Read and check a record. Without its ``evaluation``, which curves do not need, it takes a tenth of the time.

    Chance is what ``chance_of`` knows today, whatever the record says: earlier versions wrote that of guessing among the options.

    Raises:
        UserError: the file is missing, not JSON, of another schema, or a field is wrong; names file and field.
    """
    try:
        plain = json.loads(path.read_bytes() if evaluation else _without_evaluation(path))
    except OSError as error:
        raise UserError(f"{path}: record cannot be read: {error.strerror}") from error
    except ValueError as error:  # JSON errors and wrong encoding alike
        raise UserError(f"{path}: record is damaged, not JSON: {error}") from error
    return _with_known_chance(_parse(path, plain))


def _with_known_chance(record: Record) -> Record:
    points = [
        replace(point, benchmarks={name: _of_points(name, score) for name, score in point.benchmarks.items()})
        for point in record.points
    ]
    evaluation = [replace(result, measures=[_of_part(measure) for measure in result.measures]) for result in record.evaluation]
    return replace(record, points=points, evaluation=evaluation)


def _of_points(name: str, score: Score) -> Score:
    known = chance_of(name, score.n)
    return score if known is None else replace(score, chance=known)


def _of_part(measure: Measure) -> Measure:
    known = chance_of(measure.benchmark, measure.n, measure.split)
    return measure if known is None or measure.kind != "understanding" else replace(measure, chance=known)


def _without_evaluation(path: Path) -> bytes:
    """The text of a record up to its evaluation, of which nothing is read."""
    text, mark = b"", _EVALUATION.encode()
    with path.open("rb") as stream:
        while block := stream.read(_BLOCK):
            text += block
            before, found, _ = text.partition(mark)
            if found:
                return before + b"\n}"
    return text


def add_evaluation(path: Path, results: Sequence[Evaluated]) -> None:
    """Put what was measured of a run's model into its record, in the place of earlier results of the same parts or pieces of parts:
    of published benchmarks every one stands by itself.

    Results of another state of the run (it was trained further) go. Several processes may add at a time.
    """
    if not results:
        return
    with locked(path.parent):
        record = read_record(path)
        parts = [result.part for result in results]
        kept = [
            old
            for old in record.evaluation
            if old.part not in parts and any(same_state(old.origin, result.origin) for result in results)
        ]
        write_record(path, replace(record, evaluation=[*kept, *results]))


def same_state(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether two origins of evaluations of a run are of the same state of it.

    The hash of the configuration does not tell: it is another as soon as a version adds a setting.
    """
    return all(one.get(key) == other.get(key) for key in ("run", "weights", "steps", "tokens"))


def read_records(folder: Path, evaluation: bool = True) -> list[Record]:
    """All records of a folder (``*.json``), in the order of their file names; without ``evaluation`` as :func:`read_record`.

    Raises:
        UserError: there is no record, or one of them is damaged.
    """
    paths = listed(folder, "*.json")
    if not paths and folder.is_file():
        raise UserError(f"{folder} is a file: the folder of the records is needed")
    if not paths:
        raise UserError(f"{folder}: no records (*.json) there; train a run or a sweep first")
    return [read_record(path, evaluation) for path in paths]


def usable(records: Sequence[Record]) -> list[Record]:
    """The finished records, or all of them while none is finished.

    A half-trained seed beside finished ones would make the mean jump where it ends.
    """
    return [record for record in records if record.run.finished] or list(records)


def _parse(path: Path, plain: Any) -> Record:
    if not isinstance(plain, dict) or plain.get("schema") != SCHEMA:
        found = plain.get("schema", "none") if isinstance(plain, dict) else type(plain).__name__
        raise UserError(f"{path}: schema is {found!r}, this version reads {SCHEMA}")
    for part in _QUOTED & plain.keys():
        plain[part] = redacted_settings(plain[part])
    try:
        record = build(Record, plain)
        _check(record)
    except ValueError as error:  # a mismatch, or a class of the record refuses its values
        raise UserError(f"{path}: {error}") from error
    return record


def _check(record: Record) -> None:
    """What types cannot say: the numbers of a record agree with each other."""
    before = -1
    for index, point in enumerate(record.points):
        if point.tokens <= before:
            raise Mismatch(f"points[{index}].tokens", f"above the {before} of the point before it", point.tokens)
        before = point.tokens
        for name, score in point.benchmarks.items():
            try:
                _check_score(score)
            except Mismatch as error:
                error.inside(f"points[{index}].benchmarks.{name}")
                raise
    for result in record.evaluation:
        for index, measure in enumerate(result.measures):
            try:
                _check_measure(measure)
            except Mismatch as error:
                error.inside(f"evaluation.{result.part}.measures[{index}]")
                raise


def _check_measure(measure: Measure) -> None:
    if measure.n <= 0:
        raise Mismatch("n", "positive", measure.n)
    if len(measure.items) not in (0, measure.n):
        raise Mismatch("items", f"none or n={measure.n}", len(measure.items))
    if (measure.low is None) != (measure.high is None):
        raise Mismatch("low/high", "both there or neither", (measure.low, measure.high))
    if measure.low is not None and measure.high is not None and measure.low > measure.high:
        raise Mismatch("low/high", "an interval", (measure.low, measure.high))


def _check_score(score: Score) -> None:
    if score.n <= 0:
        raise Mismatch("n", "positive", score.n)
    if not 0 <= score.correct <= score.n:
        raise Mismatch("correct", f"between 0 and n={score.n}", score.correct)
    if not math.isclose(score.accuracy, score.correct / score.n, abs_tol=1e-6):
        raise Mismatch("accuracy", f"correct / n = {score.correct / score.n:.6f}", score.accuracy)
    if not 0 <= score.chance <= 1:
        raise Mismatch("chance", "between 0 and 1", score.chance)
    if not 0 <= score.low <= score.accuracy + 1e-9 <= score.high + 2e-9 <= 1 + 3e-9:
        raise Mismatch("low/high", f"an interval around {score.accuracy}", (score.low, score.high))
    if score.outcomes is not None:
        try:
            packed = bytes.fromhex(score.outcomes)
        except ValueError as error:
            raise Mismatch("outcomes", "hexadecimal digits", score.outcomes[:20]) from error
        # As score.items(), a hundred thousand times: ones among the first n bits.
        if 2 * len(packed) != len(score.outcomes) or len(packed) != (score.n + 7) // 8 or _ones(packed, score.n) != score.correct:
            raise Mismatch("outcomes", f"{score.n} outcomes of which {score.correct} right", score.outcomes[:20])


def _ones(packed: bytes, n: int) -> int:
    return (int.from_bytes(packed, "big") >> 8 * len(packed) - n).bit_count()


_HEAD, _TAIL = 4096, 16  # bytes; `run` stands first in a record, and is short


@dataclass(frozen=True)
class Head:
    config_hash: str
    finished: bool


def read_head(path: Path) -> Head | None:
    """None where there is no record, or none whose head and end are as ``write_record`` leaves them: the whole must then tell."""
    try:
        with path.open("rb") as stream:
            start = stream.read(_HEAD).decode("utf-8", errors="replace")
            stream.seek(max(0, stream.seek(0, os.SEEK_END) - _TAIL))
            whole = stream.read().rstrip().endswith(b"}")
    except OSError:
        return None
    begin = f'{{\n "schema": {SCHEMA},\n "run": '
    if not start.startswith(begin) or not whole:
        return None
    try:
        run = json.JSONDecoder().raw_decode(start, len(begin))[0]
        return Head(run["config_hash"], run["finished"])
    except (ValueError, KeyError, TypeError):
        return None


COMMITTED = Path("results")


def find_record(name: str, committed: Path = COMMITTED) -> tuple[str, Record]:
    """What to call it (folder and name), and the record: of a run directory, of a file, or of ``committed``/**/NAME.json.

    Raises UserError, one line with the choices: nothing or several things go by that name, or the record is damaged.
    """
    path = Path(name)
    if name and path.is_dir():  # Path("") is where one stands
        if not (path / RECORD_FILE).exists():
            inside = ", ".join(file.stem for file in listed(path, "*.json")[:6]) or "none"
            raise UserError(f"{name} holds no {RECORD_FILE}: a run writes it with its first evaluation (records there: {inside})")
        return f"{path.resolve().parent.name}/{path.resolve().name}", read_record(path / RECORD_FILE)
    if path.is_file():
        return f"{path.resolve().parent.name}/{path.stem}", read_record(path)
    known = {file.relative_to(committed).with_suffix("").as_posix(): file for file in listed(committed, "**/*-seed*.json")}
    word = name.removeprefix(f"{committed}/").removesuffix(".json")
    found = [full for full in known if f"/{full}".endswith(f"/{word}")] if word else []
    if len(found) > 1:
        raise UserError(f"{name} is the name of {len(found)} records: {', '.join(found)}")
    if not found:
        missing = f"there is no run directory or record {name!r}" if word else "the name of a run is empty"
        raise UserError(f"{missing}; committed records: {', '.join(_choices(word, list(known))) or 'none'}")
    return found[0], read_record(known[found[0]])


def _choices(word: str, known: list[str]) -> list[str]:
    """Names that look like ``word``, else those of the folder it names, else the first of every folder: six at most."""
    folder, _, name = word.rpartition("/")
    last = {full.rpartition("/")[2]: full for full in known}
    near = [*get_close_matches(word, known, 3), *(last[one] for one in get_close_matches(name, last, 3))]
    inside = [full for full in known if folder and f"/{full}".rpartition("/")[0].endswith(f"/{folder}")]
    firsts = {full.rpartition("/")[0]: full for full in reversed(known)}
    return list(dict.fromkeys(near or inside or sorted(firsts.values())))[:6]
