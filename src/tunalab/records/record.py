"""The record of a run: one JSON file with everything that tables and figures are made of.

A record is rewritten, whole, after every evaluation, so an interrupted run leaves a valid record
with ``finished`` false. Quantities that do not exist for a run (a loss without targets) are left
out, never NaN: JSON has no NaN, and a curve with a hole is honest where a zero is not.
"""

import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields, replace
from difflib import get_close_matches
from functools import cache, cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

from tunalab.errors import UserError
from tunalab.evaluation.measure import LossItems, Measure, Score, chance_of
from tunalab.evaluation.whole import Evaluated, to_text
from tunalab.files import listed, locked, write_atomically
from tunalab.frontends.looks import Look, resolved_look
from tunalab.redaction import redacted_settings

if TYPE_CHECKING:
    from pydantic import TypeAdapter

T = TypeVar("T")


class Mismatch(ValueError):
    """A field whose value is not what it has to be."""

    def __init__(self, where: str, expected: str, value: Any) -> None:
        super().__init__(f"field {where or '(top level)'} must be {expected}, got {value!r}"[:300])


def build(cls: type[T], text: str | bytes) -> T:
    """An instance of the dataclass ``cls`` from JSON, its fields checked by their types. Fields with a default may be absent.

    Raises:
        Mismatch: a field is unknown, missing, of another type or not finite.
        ValueError: the text is no JSON, or a class refuses its values.
    """
    from pydantic import ValidationError  # here, not above: who only looks which runs are finished waits for no import

    # A dataclass has the settings of what it stands in, so it stands in a list.
    try:
        (made,) = _adapter(cast(Any, cls)).validate_json(b"[" + (text.encode() if isinstance(text, str) else text) + b"]")
    except ValidationError as error:
        first = error.errors()[0]
        kind, where = first["type"], first["loc"][1:]
        place = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in where).removeprefix(".")
        if kind == "json_invalid":
            json.loads(text)  # says where
        if kind == "value_error":
            raise ValueError(str(first["ctx"]["error"])) from error
        value = "nothing" if kind == "missing" else where[-1] if kind == "unexpected_keyword_argument" else first["input"]
        if kind == "unexpected_keyword_argument" and len(where) == 1:
            raise Mismatch(place, f"one of {', '.join(one.name for one in fields(cls))}", value) from error  # type: ignore[arg-type]
        raise Mismatch(place, _EXPECTED.get(kind, first["msg"].removeprefix("Input should be ")), value) from error
    return cast(T, made)


_EXPECTED = {"missing": "present", "unexpected_keyword_argument": "a field that this version has", "int_type": "an integer"}
_EXPECTED |= {"float_type": "a number", "string_type": "a text", "bool_type": "true or false", "list_type": "a list"}


@cache
def _adapter(cls: Any) -> "TypeAdapter[list[Any]]":
    from pydantic import ConfigDict, TypeAdapter

    return TypeAdapter(list[cls], config=ConfigDict(strict=True, extra="forbid", allow_inf_nan=False))


SCHEMA = 1
RECORD_FILE, CONFIG_FILE = "record.json", "config.yaml"  # of a run directory
_EVALUATION = ',\n "evaluation": [\n'  # where write_record puts it: last, and by far the largest
_QUOTED = ("config", "environment", "components")  # free of credentials, in the records of earlier versions too
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
    loss_items: dict[str, LossItems] = field(default_factory=dict)  # losses of text by document; records of before have none


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
    lineage: dict[str, Any] = field(default_factory=dict)  # of a run that began where another was (training/forking.py)
    frontend: Look | None = None  # how it is shown; None in records of earlier versions, read :attr:`look` instead
    evaluation: list[Evaluated] = field(default_factory=list)  # of the finished model (`tunalab evaluate`), a part at a time

    @cached_property
    def look(self) -> Look:
        """What the record says of its front-end, or what its configuration comes to where it says nothing."""
        return self.frontend or resolved_look({**self.config, "variant": self.run.variant})

    @property
    def units(self) -> int:
        """GPUs that trained it, or threads of a CPU."""
        made = self.environment
        processes = int(made.get("processes", 1))
        return processes if made.get("accelerator") else processes * int(made.get("threads") or 1)


def write_record(path: Path, record: Record) -> None:
    """Write a record atomically: a crash leaves the old record or the new one.

    Raises:
        UserError: the record would not be readable again (a NaN, a count that is no integer); names file and field.
    """
    plain = asdict(record)
    for point in plain["points"]:
        for score in point["benchmarks"].values():
            for name in ("outcomes", "margin", "margins"):
                if score[name] is None:
                    del score[name]
    for name in ("attempts", "data", "lineage", "frontend"):
        if not plain[name]:  # not on record
            del plain[name]
    evaluation = plain.pop("evaluation")
    ordered = {"schema": plain.pop("schema"), **plain}
    for part in ("run", *_QUOTED):
        ordered[part] = redacted_settings(ordered[part])
    try:
        text = json.dumps(ordered, indent=1)
        if evaluation:  # a line a measure: the values of its items are many
            parts = ",\n".join(" " + to_text(result).strip() for result in record.evaluation)
            text = f"{text[:-2]}{_EVALUATION}{parts}\n ]\n}}"
        _parse(path, text)
        json.dumps(ordered, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise UserError(f"{path}: record cannot be written as JSON: {error}") from error
    write_atomically(path, text + "\n")


def read_record(path: Path, evaluation: bool = True) -> Record:
    """Read and check a record. Without its ``evaluation``, which curves do not need, it takes a tenth of the time.

    Chance is what ``chance_of`` says today, whatever the record says: earlier versions wrote that of guessing among the options.

    Raises:
        UserError: the file is missing, not JSON, of another schema, or a field is wrong; names file and field.
    """
    try:
        text = path.read_bytes() if evaluation else _without_evaluation(path)
    except OSError as error:
        raise UserError(f"{path}: record cannot be read: {error.strerror}") from error
    return _with_todays_chance(_parse(path, text))


def _with_todays_chance(record: Record) -> Record:
    def of_score(name: str, score: Score) -> Score:
        chance = chance_of(name, score.n)
        return score if chance is None else replace(score, chance=chance)

    def of_measure(measure: Measure) -> Measure:
        chance = chance_of(measure.benchmark, measure.n, measure.split)
        return measure if chance is None or measure.kind != "understanding" else replace(measure, chance=chance)

    points = [replace(p, benchmarks={name: of_score(name, score) for name, score in p.benchmarks.items()}) for p in record.points]
    evaluation = [replace(result, measures=[of_measure(measure) for measure in result.measures]) for result in record.evaluation]
    return replace(record, points=points, evaluation=evaluation)


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


@contextmanager
def changing(path: Path) -> Iterator[None]:
    """One process at a time reads and rewrites this record."""
    with locked(path.with_name(f".{path.name}.lock")):
        yield


def add_evaluation(path: Path, results: Sequence[Evaluated]) -> None:
    """Put what was measured of a run's model into its record, in the place of earlier results of the same parts or pieces of parts:
    of published benchmarks every one stands by itself.

    Results of another state of the run (it was trained further) go. Several processes may add at a time.
    """
    if not results:
        return
    with changing(path):
        record = read_record(path)
        parts = [result.part for result in results]
        current = (old for old in record.evaluation if any(same_state(old.origin, result.origin) for result in results))
        kept = [old for old in current if old.part not in parts]
        write_record(path, replace(record, evaluation=[*kept, *results]))


def same_state(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether two origins of evaluations of a run are of the same state of it.

    The hash of the configuration does not tell: it is another as soon as a version adds a setting.
    """
    return all(one.get(key) == other.get(key) for key in ("run", "weights", "steps", "tokens"))


def read_records(folder: Path, evaluation: bool = True) -> list[Record]:
    """All records of a folder (``*.json``), or of the run directories in it, in the order of their names; without ``evaluation`` as
    :func:`read_record`.

    Raises:
        UserError: there is no record, or one of them is damaged.
    """
    paths = listed(folder, "*.json") or listed(folder, f"*/{RECORD_FILE}")
    if not paths and folder.is_file():
        raise UserError(f"{folder} is a file: the folder of the records is needed")
    if not paths:
        raise UserError(
            f"{folder}: no records (*.json) there; train a run or a sweep first (`tunalab publish SWEEP` gathers those of a sweep)"
        )
    return [read_record(path, evaluation) for path in paths]


def usable(records: Sequence[Record]) -> list[Record]:
    """The finished records, or all of them while none is finished, without benchmarks by whose name these were asked different
    questions (analysis/fairness.py says which).

    A half-trained seed beside finished ones would make the mean jump where it ends.
    """
    found = [record for record in records if record.run.finished] or list(records)
    unlike = {name for name, asked in questions_of(found).items() if len(asked) > 1}
    if not unlike:
        return found
    return [
        replace(record, points=[replace(point, benchmarks=_without(point.benchmarks, unlike)) for point in record.points])
        for record in found
    ]


NOT_ASKED = ("asked", "weights")  # of what a record says of a benchmark: when it was asked, and of what


def questions_of(records: Sequence[Record]) -> dict[str, dict[str, list[str]]]:
    """Benchmark -> what was asked under its name (items, digest, rule, limit of replies) -> names of the runs that were asked it.

    Of those about which records say so: benchmarks of the user's own and published ones.
    """
    found: dict[str, dict[str, list[str]]] = {}
    for record in records:
        for name, about in ({**record.data.get("benchmarks", {}), **record.data.get("asked", {})}).items():
            what = ", ".join(f"{key} {about[key]}" for key in sorted(about) if key not in NOT_ASKED)
            found.setdefault(name, {}).setdefault(what, []).append(record.run.name)
    return found


def _without(scores: Mapping[str, Score], names: set[str]) -> dict[str, Score]:
    return {name: score for name, score in scores.items() if name not in names}


def _parse(path: Path, text: str | bytes) -> Record:
    try:
        record = build(Record, text)
        if record.schema != SCHEMA:
            raise Mismatch("schema", str(SCHEMA), record.schema)
        _check(record)
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: record is damaged, not JSON: {error}") from error
    except ValueError as error:  # a mismatch, or a class of the record refuses its values
        plain = json.loads(text)
        schema = plain.get("schema", "none") if isinstance(plain, dict) else type(plain).__name__
        raise UserError(f"{path}: {error if schema == SCHEMA else f'schema is {schema!r}, this version reads {SCHEMA}'}") from error
    run = RunInfo(**redacted_settings(asdict(record.run)))
    return replace(record, run=run, **{part: redacted_settings(getattr(record, part)) for part in _QUOTED})


def _check(record: Record) -> None:
    """What types cannot say: the numbers of a record agree with each other."""
    before = -1
    for index, point in enumerate(record.points):
        if point.tokens <= before:
            raise Mismatch(f"points[{index}].tokens", f"above the {before} of the point before it", point.tokens)
        before = point.tokens
        for name, score in point.benchmarks.items():
            _check_score(f"points[{index}].benchmarks.{name}", score)
        for name, items in point.loss_items.items():
            _check_items(f"points[{index}].loss_items.{name}", items)
    for result in record.evaluation:
        for index, measure in enumerate(result.measures):
            _check_measure(f"evaluation.{result.part}.measures[{index}]", measure)


def _check_measure(where: str, measure: Measure) -> None:
    if measure.n <= 0:
        raise Mismatch(f"{where}.n", "positive", measure.n)
    if len(measure.items) not in (0, measure.n):
        raise Mismatch(f"{where}.items", f"none or n={measure.n}", len(measure.items))
    bounds = measure.low, measure.high
    if (bounds[0] is None) != (bounds[1] is None):
        raise Mismatch(f"{where}.low/high", "both there or neither", bounds)
    if bounds[0] is not None and bounds[1] is not None and bounds[0] > bounds[1]:
        raise Mismatch(f"{where}.low/high", "an interval", bounds)


def _check_items(where: str, items: LossItems) -> None:
    try:
        items.values()
    except ValueError as error:
        raise Mismatch(where, f"a loss by document ({error})", [items.bits, items.nats[:12], items.tokens[:12]]) from error


def _check_score(where: str, score: Score) -> None:
    if score.n <= 0:
        raise Mismatch(f"{where}.n", "positive", score.n)
    if not 0 <= score.correct <= score.n:
        raise Mismatch(f"{where}.correct", f"between 0 and n={score.n}", score.correct)
    if not math.isclose(score.accuracy, score.correct / score.n, abs_tol=1e-6):
        raise Mismatch(f"{where}.accuracy", f"correct / n = {score.correct / score.n:.6f}", score.accuracy)
    if not 0 <= score.chance <= 1:
        raise Mismatch(f"{where}.chance", "between 0 and 1", score.chance)
    if not 0 <= score.low <= score.accuracy + 1e-9 <= score.high + 2e-9 <= 1 + 3e-9:
        raise Mismatch(f"{where}.low/high", f"an interval around {score.accuracy}", (score.low, score.high))
    if score.outcomes is not None:
        try:
            packed = bytes.fromhex(score.outcomes)
        except ValueError as error:
            raise Mismatch(f"{where}.outcomes", "hexadecimal digits", score.outcomes[:20]) from error
        # As score.items(), a hundred thousand times: ones among the first n bits.
        ones = (int.from_bytes(packed, "big") >> max(0, 8 * len(packed) - score.n)).bit_count()
        if 2 * len(packed) != len(score.outcomes) or len(packed) != (score.n + 7) // 8 or ones != score.correct:
            raise Mismatch(f"{where}.outcomes", f"{score.n} outcomes of which {score.correct} right", score.outcomes[:20])


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
    files = {file.relative_to(committed).with_suffix("").as_posix(): file for file in listed(committed, "**/*-seed*.json")}
    word = name.removeprefix(f"{committed}/").removesuffix(".json")
    matches = [full for full in files if f"/{full}".endswith(f"/{word}")] if word else []
    if len(matches) > 1:
        raise UserError(f"{name} is the name of {len(matches)} records: {', '.join(matches)}")
    if not matches:
        missing = f"there is no run directory or record {name!r}" if word else "the name of a run is empty"
        raise UserError(f"{missing}; committed records: {', '.join(_choices(word, list(files))) or 'none'}")
    return matches[0], read_record(files[matches[0]])


def _choices(word: str, names: list[str]) -> list[str]:
    """Names that look like ``word``, else those of the folder it names, else the first of every folder: six at most."""
    folder, _, name = word.rpartition("/")
    last = {full.rpartition("/")[2]: full for full in names}
    near = [*get_close_matches(word, names, 3), *(last[one] for one in get_close_matches(name, last, 3))]
    inside = [full for full in names if folder and f"/{full}".rpartition("/")[0].endswith(f"/{folder}")]
    firsts = {full.rpartition("/")[0]: full for full in reversed(names)}
    return list(dict.fromkeys(near or inside or sorted(firsts.values())))[:6]
