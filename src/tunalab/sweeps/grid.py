"""A sweep file into its cells: experiment x variants x seeds x arms x factors, each with its configuration.

Factors are crossed with each other. Arms are settings by name, for what is no product: ``arms:
{scratch: {variant: tuna_r, frontend.encoder_pretrained: false}, ...}``. An arm that names its
variant is run with that one alone, others with every variant of the sweep; where all name theirs,
the file lists no variants.

Runs of other settings get directories of their own, so that earlier runs stay whole and can go on:

    runs/<sweep>/<cell>             as the sweep file says
    runs/<sweep>+<digest>/<cell>    with settings of the command line that change what is computed
    runs/<sweep>/<cell>+<hash>      where the cell's own directory holds an earlier run, of a file that was edited since
"""

import json
import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache, cached_property
from itertools import product
from pathlib import Path
from typing import Any

import yaml

from tunalab.errors import UserError, one_line
from tunalab.records.labels import FIGURE_NAMES, last_words, value_label
from tunalab.records.record import CONFIG_FILE
from tunalab.redaction import redacted_settings
from tunalab.settings.layers import UNREADABLE, leaves, names_in, names_of, nested, read_setting, read_value
from tunalab.settings.loading import (
    NOT_IDENTITY,
    Below,
    budget,
    config_hash,
    digest,
    plain_hash,
    read_config,
    read_files,
    to_plain,
    with_overrides,
)
from tunalab.settings.schema import RunConfig
from tunalab.settings.values import parse, resolved, texts
from tunalab.training.claiming import claimed_hash

KEYS = ("experiment", "variants", "seeds", "seeds_of", "arms", "factors", "overrides", "overrides_of", "records", "figure")
GRID = ("arms", "factors", "overrides")
ARM_VARIANT = "variant"  # the key of an arm that is no setting


@dataclass(frozen=True)
class Sweep:
    """A sweep file, checked. ``records``: a folder of committed records; ``figures``: drawn at the end beside the curves.

    ``seeds_of``, ``overrides_of``: of a variant, which has some of the seeds alone, and settings of its own.
    """

    name: str
    experiment: str
    variants: tuple[str, ...]
    seeds: tuple[int, ...]
    arms: dict[str, dict[str, Any]] = field(default_factory=dict)
    factors: dict[str, tuple[Any, ...]] = field(default_factory=dict)
    overrides: dict[str, Any] = field(default_factory=dict)
    records: Path | None = None
    figures: tuple[str, ...] = ()
    all_variants: tuple[str, ...] = ()
    seeds_of: dict[str, tuple[int, ...]] = field(default_factory=dict)
    overrides_of: dict[str, dict[str, Any]] = field(default_factory=dict)


@dataclass(frozen=True)
class Cell:
    """One run of a sweep. ``overrides`` are ``key=value`` settings: the sweep's, its arm's, its factors'; not the seed.

    ``until``: of a trunk, STAGE@SHARE where it ends. ``after``: the name of the trunk that it begins at (trunks.py).
    """

    name: str
    sweep: str
    experiment: str
    variant: str
    seed: int
    factors: dict[str, Any]
    overrides: list[str]
    run_dir: Path
    until: str = ""
    after: str = ""


def load_sweep(path: Path) -> Sweep:
    """Read a sweep file. Its experiment, its variants and its records are those of the working directory, as those of its runs.

    Raises:
        UserError: an unknown key, an empty list, a repeated or unknown name; names file, key and choices.
    """
    plain = _read(path)
    for key in plain:
        if key not in KEYS:
            raise UserError(f"{path}: unknown key {key!r}, choices: {', '.join(KEYS)}")
    experiments, variants = names_of("experiments"), names_of("variants")
    factors = _mapping(path, "factors", plain.get("factors"))
    overrides = _mapping(path, "overrides", plain.get("overrides"))
    arms = {name: _mapping(path, f"arms.{name}", arm) for name, arm in _mapping(path, "arms", plain.get("arms")).items()}
    of_variants = _mapping(path, "overrides_of", plain.get("overrides_of"))
    overrides_of = {name: _mapping(path, f"overrides_of.{name}", own) for name, own in of_variants.items()}
    places = {
        "factors": [*factors],
        "overrides": [*overrides],
        "overrides_of": [*dict.fromkeys(key for own in overrides_of.values() for key in own)],
        "arms": [*dict.fromkeys(key for arm in arms.values() for key in arm)],
    }
    for key in dict.fromkeys(key for keys in places.values() for key in keys):
        where = ["seeds"] if key == "seed" else [place for place, keys in places.items() if key in keys]
        if key == "seed" or len(where) > 1:
            raise UserError(f"{path}: key {key!r} is already set by {' and '.join(where)}: a setting has one place")
    records = plain.get("records")
    if records is not None and not isinstance(records, str):
        raise UserError(f"{path}: key 'records' must be a folder, got {records!r}")
    seeds = _list(path, "seeds", plain.get("seeds"))
    for seed in seeds:
        if not isinstance(seed, int) or isinstance(seed, bool) or seed < 0:
            raise UserError(f"{path}: key 'seeds' must hold integers from 0, got {seed!r}")
    listed = plain.get("variants")
    if listed is None and arms and all(ARM_VARIANT in arm for arm in arms.values()):
        listed = list(dict.fromkeys(str(arm[ARM_VARIANT]) for arm in arms.values()))
    chosen = tuple(_choice(path, "variants", name, variants) for name in _list(path, "variants", listed))
    for name, arm in arms.items():
        if not name.isprintable() or {"/", "\\"} & set(name):
            raise UserError(f"{path}: the name of the arm {name!r} cannot be part of a folder's name")
        _choice(path, f"arms.{name}.{ARM_VARIANT}", arm.get(ARM_VARIANT, chosen[0]), chosen)
    seeds_of = {
        _choice(path, "seeds_of", name, chosen): _list(path, f"seeds_of.{name}", some)
        for name, some in _mapping(path, "seeds_of", plain.get("seeds_of")).items()
    }
    for name, some in seeds_of.items():
        if any(one not in seeds for one in some):
            raise UserError(f"{path}: key 'seeds_of.{name}' must hold some of the sweep's seeds {list(seeds)}, got {list(some)}")
    for name in overrides_of:
        _choice(path, "overrides_of", name, chosen)
    figures = plain.get("figure")
    figures = [figures] if isinstance(figures, str) else figures
    return Sweep(
        name=path.stem,
        experiment=_choice(path, "experiment", plain.get("experiment"), experiments),
        variants=chosen,
        seeds=seeds,
        arms=arms,
        factors={key: _list(path, f"factors.{key}", values) for key, values in factors.items()},
        overrides=overrides,
        records=None if records is None else Path(records).absolute(),
        figures=tuple(_choice(path, "figure", name, FIGURE_NAMES) for name in _list(path, "figure", figures)) if figures else (),
        all_variants=variants,
        seeds_of=seeds_of,
        overrides_of=overrides_of,
    )


def expand(sweep: Sweep, variant: str | None = None, runs: Path = Path("runs")) -> list[Cell]:
    """The cells of a sweep, of one variant if given (any file of ``variants/``, also one that the sweep does not list).

    Seed-major: all variants and factors of the first seed stand first, so that a sweep that is stopped early has still
    compared everything with everything.

    Raises:
        UserError: the variant does not exist, or every arm of the sweep is of another.
    """
    if variant is not None and variant not in {*sweep.variants, *sweep.all_variants}:
        raise UserError(f"unknown variant {variant!r}, choices: {', '.join(sorted({*sweep.variants, *sweep.all_variants}))}")
    variants = sweep.variants if variant is None else (variant,)
    labels = last_words(sweep.factors)
    cells = []
    for seed, values, (arm, of_arm), name in product(
        sweep.seeds, product(*sweep.factors.values()), (sweep.arms or {"": {}}).items(), variants
    ):
        if of_arm.get(ARM_VARIANT, name) != name or seed not in sweep.seeds_of.get(name, sweep.seeds):
            continue
        factors = dict(zip(sweep.factors, values, strict=True))
        set_by_arm = {key: value for key, value in of_arm.items() if key != ARM_VARIANT}
        given = {**sweep.overrides, **sweep.overrides_of.get(name, {})}
        who = [arm] if ARM_VARIANT in of_arm else [name, arm] if arm else [name]
        parts = [*who, *(f"{labels[key]}{_slug(value)}" for key, value in factors.items()), f"seed{seed}"]
        settings = [f"{key}={setting(value)}" for key, value in {**given, **set_by_arm, **factors}.items()]
        title = "-".join(parts)
        cells.append(Cell(title, sweep.name, sweep.experiment, name, seed, factors, settings, runs / sweep.name / title))
    if not cells:
        own = dict.fromkeys(arm[ARM_VARIANT] for arm in sweep.arms.values())  # all name theirs, or each variant had a cell
        raise UserError(f"sweep {sweep.name} has no run of variant {variant!r}, choices: {', '.join(own)}")
    repeated = [name for name, count in Counter(cell.name for cell in cells).items() if count > 1]
    if repeated:
        raise UserError(f"sweep {sweep.name}: factor values give the same run name twice: {', '.join(repeated)}")
    return cells


def check_settings(sweep: Sweep, settings: Sequence[str]) -> None:
    """Settings of the command line may change what all runs of a sweep share, not what tells one from the other.

    Raises:
        UserError: one of them is a factor of the sweep, the seed, or set by the sweep itself.
    """
    file = f"sweeps/{sweep.name}.yaml"
    places = dict.fromkeys(sweep.factors, f"its values stand in {file} under 'factors'")
    for arm, of_arm in sweep.arms.items():
        places |= dict.fromkeys((key for key in of_arm if key != ARM_VARIANT), f"arm {arm} of {file} sets it")
    for variant, settings_of in sweep.overrides_of.items():
        places |= dict.fromkeys(settings_of, f"{file} sets it for {variant} under 'overrides_of'")
    places["seed"] = f"its seeds stand in {file} under 'seeds'"
    places |= dict.fromkeys(("tracking.sweep", "tracking.parent_run"), "a sweep sets it for its own runs: `tunalab train` takes it")
    for text in settings:
        for key, _ in leaves(nested(*read_setting(text))):
            for own, place in places.items():
                if key == own or key.startswith(f"{own}."):
                    raise UserError(f"setting '{text}' would give every run of sweep {sweep.name} the same {own}: {place}")


def check_distinct(sweep: str, hashes: Mapping[str, str]) -> None:
    """Raises UserError, naming them, where two cells (name -> hash of the configuration) are one and the same run."""
    first: dict[str, str] = {}
    for name, hashed in hashes.items():
        other = first.setdefault(hashed, name)
        if other != name:
            raise UserError(f"sweep {sweep}: cells {other} and {name} are the same run: what they differ in changes no result")


def setting(value: Any) -> str:
    """A value as it is written behind ``key=`` on the command line, so that the same value is read back."""
    return value if isinstance(value, str) and _reads_back(value) else json.dumps(value, ensure_ascii=False)


@cache
def _reads_back(word: str) -> bool:
    try:
        return bool(resolved(read_value(word)) == word)
    except UNREADABLE:
        return False  # it needs quotes


def _read(path: Path) -> dict[str, Any]:
    try:
        plain = parse(path.read_text(encoding="utf-8"))
    except OSError as error:
        choices = ", ".join(names_in(path.parent)) or "none"
        raise UserError(f"{path}: sweep cannot be read: {error.strerror}, choices: {choices}") from error
    except (yaml.YAMLError, ValueError) as error:
        raise UserError(f"{path}: not valid YAML: {one_line(error)}") from error
    if not isinstance(plain, dict):
        raise UserError(f"{path}: a sweep is a mapping with the keys {', '.join(KEYS)}")
    return {str(key): _grid_values(value) if key in GRID else resolved(value) for key, value in plain.items()}


def _grid_values(value: Any) -> Any:
    """Settings by their dotted keys, or such by the name of an arm: numbers as numbers, what is for a text as it is written."""
    if not isinstance(value, dict):
        return resolved(value)
    return {
        str(key): _grid_values(inside) if isinstance(inside, dict) and "." not in key else texts(inside, RunConfig, key)
        for key, inside in value.items()
    }


def _choice(path: Path, key: str, value: Any, choices: tuple[str, ...]) -> str:
    if value not in choices:
        found = "is missing" if value is None else f"has unknown value {value!r}"
        raise UserError(f"{path}: key {key!r} {found}, choices: {', '.join(choices) or 'none'}")
    return str(value)


def _list(path: Path, key: str, values: Any) -> tuple[Any, ...]:
    if not isinstance(values, list) or not values:
        raise UserError(f"{path}: key {key!r} must be a list with at least one value, got {values!r}")
    for value in values:
        if values.count(value) > 1:
            raise UserError(f"{path}: key {key!r} holds {value!r} twice: each cell is trained once")
        if isinstance(value, dict) or (isinstance(value, float) and not math.isfinite(value)):
            raise UserError(f"{path}: key {key!r} must hold plain values, got {value!r}")
    return tuple(values)


def _mapping(path: Path, key: str, value: Any) -> dict[str, Any]:
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise UserError(f"{path}: key {key!r} must be a mapping of settings, got {value!r}")
    return {str(name): inside for name, inside in value.items()}


def _slug(value: Any) -> str:
    """A value for a file name."""
    text = value_label(value) if isinstance(value, float) else setting(redacted_settings(value))
    return "".join(letter if letter.isalnum() or letter in "._+" else "_" for letter in text)


Files = Callable[[str, str], tuple[Path, Path]]  # names of experiment and variant -> their files


def own_settings(cell: Cell, settings: Sequence[str]) -> list[str]:
    """What stands behind experiment and variant on the command line of a cell."""
    return [*cell.overrides, *settings, f"seed={cell.seed}"]


@dataclass(frozen=True)
class Resolved:
    """The configuration of one cell."""

    config: RunConfig

    @cached_property
    def plain(self) -> dict[str, Any]:
        """Not to be changed: the hash is of it."""
        return to_plain(self.config)

    @cached_property
    def hash(self) -> str:
        return plain_hash(self.plain)

    @property
    def tokens(self) -> int:
        return budget(self.config)


def resolve(cells: Iterable[Cell], settings: Sequence[str], files: Files) -> dict[str, Resolved]:
    """By name of the cell. Raises UserError: a file, a key or a value is wrong."""
    below: dict[tuple[str, str], Below] = {}
    resolved = {}
    for cell in cells:
        names = (cell.experiment, cell.variant)
        if names not in below:
            below[names] = read_files(*files(*names))
        resolved[cell.name] = Resolved(with_overrides(below[names], own_settings(cell, settings)))
    return resolved


def with_settings(sweep: Sweep, settings: Sequence[str]) -> Sweep:
    """The sweep under a name of its own for these settings, without committed records: those are of the sweep as its file says."""
    merged: dict[str, Any] = {}
    for text in settings:
        names, value = read_setting(text)
        node = merged
        for name in names[:-1]:
            inner = node.get(name)
            node[name] = node = inner if isinstance(inner, dict) else {}
        node[names[-1]] = texts(value, RunConfig, ".".join(names))
    results = {key: redacted_settings(value) for key, value in merged.items() if key not in NOT_IDENTITY}
    return replace(sweep, name=f"{sweep.name}+{digest(results)[:8]}", records=None)


def own_directory(cell: Cell, hashed: str) -> Cell:
    """The cell, in a directory beside its own where that holds a run of another configuration."""
    if claimed_hash(cell.run_dir) == hashed or _holds(cell) in (None, hashed):
        return cell
    return replace(cell, run_dir=cell.run_dir.with_name(f"{cell.name}+{hashed}"))


def _holds(cell: Cell) -> str | None:
    """The hash of the configuration that lives in a cell's directory, None where there is none."""
    saved = cell.run_dir / CONFIG_FILE
    if not saved.exists():
        return None
    try:
        return config_hash(read_config(saved))
    except UserError:  # unreadable, or of an earlier revision: not this run in any case
        return "another"
