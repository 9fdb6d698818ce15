"""How an experiment file, a variant file and the command line become layers of settings, from the lowest to the highest.

An experiment file holds settings and, besides them, up to three keys of its own:

    base: NAME (or a list)            experiments that lie below this one, found as :func:`find` says
    mixes: {NAME: {source: weight}}   mixes by name: a stage's ``mix`` may then be a name, also on the command line
    variants: {VARIANT: settings}     what this experiment sets for one variant alone, laid over the variant's own file

So one variant name means one front-end at every scale, and where an experiment treats variants differently it says so in one place.

Files are found by name: the user's own in the working directory, else those that the package ships. In a checkout those are its
own top-level folders; a wheel carries a copy of them (tunalab/wheel.py). A name that ends in .yaml is a path, taken as it is.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import asdict, dataclass, field, is_dataclass, replace
from functools import lru_cache, reduce
from operator import getitem
from pathlib import Path
from typing import Any, TypeVar, cast
from unicodedata import category

import yaml

import tunalab
from tunalab.errors import UserError, first_line
from tunalab.files import below, listed
from tunalab.settings.declaration import misfit
from tunalab.settings.values import Word, member, named_members, parse, resolved, typed

ENDING = ".yaml"
Mixes = dict[str, dict[str, float]]
T = TypeVar("T")
_REFERENCE = re.compile(r"\$\{([A-Za-z_]\w*(?:\.\w+)*)\}")

# What the YAML readers raise for a text that is none: bad syntax, bad encoding, an unreadable file.
UNREADABLE = (yaml.YAMLError, ValueError, OSError)


@dataclass(frozen=True)
class Layer:
    """Settings and where they come from, unquoted words as :class:`Word`.

    ``new_mixes``: stages whose mix this layer replaces instead of adding to it. ``given``: of the command line, the key as names;
    a mapping that is given there in full, of members that users name, replaces what lies below. Files are laid key by key.
    """

    source: str
    settings: dict[str, Any]
    new_mixes: tuple[str, ...] = ()
    given: tuple[str, ...] | None = None


@dataclass
class Experiment:
    """An experiment file with all that lies below it."""

    layers: list[Layer] = field(default_factory=list)
    variants: dict[str, list[Layer]] = field(default_factory=dict)
    mixes: Mixes = field(default_factory=dict)


def settings_layers(experiment: Path | None, variant: Path | None, overrides: Sequence[str]) -> list[Layer]:
    """Experiment, variant, what the experiment sets for the variant, command line.

    Raises UserError, one line: a file is missing or no mapping, a setting is not ``key=value``, a mix or
    a base is unknown.
    """
    layers, mixes = file_layers(experiment, variant)
    return layers + override_layers(overrides, mixes)


def file_layers(experiment: Path | None, variant: Path | None) -> tuple[list[Layer], Mixes]:
    """The names of the files (without suffix) become ``experiment`` and ``variant``. Also the mixes by name."""
    read = Experiment() if experiment is None else read_experiment(experiment)
    layers = list(read.layers)
    if experiment is not None:
        layers.append(Layer(str(experiment), {"experiment": experiment.stem}))
    if variant is not None:
        layers.append(Layer(str(variant), {**read_settings(variant), "variant": variant.stem}))
        layers += read.variants.get(variant.stem, [])
    return [_with_mixes(layer, read.mixes) for layer in layers], read.mixes


def override_layers(overrides: Sequence[str], mixes: Mixes) -> list[Layer]:
    layers = []
    for override in overrides:
        names, value = read_setting(override)
        layers.append(_with_mixes(Layer(f"setting '{override}'", nested(names, value), given=names), mixes))
    return layers


def laid(layers: Sequence[Layer], cls: Any, below: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Settings of the dataclass ``cls`` as nested dicts: the layers over ``below``, which stays as it is.

    Raises UserError, one line that names the source and the key: it is unknown, or a value has another type.
    """
    merged = dict(below or {})
    for layer in layers:
        wrong = misfit(layer.settings, cls)
        if wrong is not None:
            raise UserError(f"{layer.source}: {wrong}")
        for place in replaced_mappings(layer, cls):
            merged = _emptied(merged, place)
        merged = over(merged, typed_layer(layer, cls).settings)
    return merged


def over(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """Nested mappings, key by key."""
    merged = dict(below)
    for key, value in above.items():
        under = merged.get(key)
        merged[key] = over(under, value) if isinstance(value, dict) and isinstance(under, dict) else value
    return merged


def _emptied(node: Mapping[str, Any], place: Sequence[str]) -> dict[str, Any]:
    first, *rest = place
    if first not in node:
        return dict(node)
    return {**node, first: _emptied(node[first], rest) if rest else {}}


def made(cls: type[T], merged: Mapping[str, Any]) -> T:
    """The object that these settings describe, nothing checked. A reference ``${key}`` becomes the value of that setting.

    Raises UserError, one line: a reference is to nothing or to a value of another type.
    """
    settings = _built(merged, cls)
    referring = {key: value for key, value in leaves(merged) if "${" in str(value)}
    if referring and (values := _plainly_referred(referring, dict(leaves(asdict(settings))))) is not None:
        plain = asdict(settings)
        for key, value in values.items():
            *path, last = key.split(".")
            reduce(getitem, path, plain)[last] = value
        settings = _built(typed(plain, cls, references=False), cls)
    elif referring:
        from omegaconf import OmegaConf  # a fifth of a second, which few configurations need
        from omegaconf.errors import OmegaConfBaseException

        try:
            container = OmegaConf.to_container(OmegaConf.create(asdict(settings)), resolve=True)
        except OmegaConfBaseException as error:
            raise UserError(f"{getattr(error, 'full_key', None) or 'config'}: {first_line(error)}") from error
        settings = _built(typed(container, cls, references=False), cls)
    return cast(T, settings)


def _plainly_referred(referring: Mapping[str, Any], settings: Mapping[str, Any]) -> dict[str, Any] | None:
    """The values of settings that refer to settings by their keys alone, as nearly all do; None where any of them asks for more.

    The rest is OmegaConf's, which needs ten milliseconds a configuration: a sweep has a thousand of them.
    """
    found: dict[str, Any] = {}
    for key, value in referring.items():
        names = _REFERENCE.findall(value) if isinstance(value, str) and key in settings else []
        if not names or value.count("${") > len(names):
            return None
        given = [settings.get(name) for name in names]
        if not all(isinstance(one, int | float) or (isinstance(one, str) and "${" not in one) for one in given):
            return None
        whole = _REFERENCE.fullmatch(value)
        found[key] = given[0] if whole else _REFERENCE.sub(lambda match: str(settings[match[1]]), value)
    return found


def _built(value: Any, hint: Any) -> Any:
    if is_dataclass(hint):
        return cast(Any, hint)(**{name: _built(inside, member(hint, name)) for name, inside in value.items()})
    if isinstance(value, dict):
        return {str(name): _built(inside, member(hint, name)) for name, inside in value.items()}
    return list(value) if isinstance(value, list) else value


def replaced_mappings(layer: Layer, cls: Any) -> list[tuple[str, ...]]:
    """Places of what a layer replaces as a whole."""
    mixes: list[tuple[str, ...]] = [("stages", stage, "mix") for stage in layer.new_mixes]
    given = layer.given
    return mixes if given is None else [*mixes, *named_members(layer.settings, cls, (), len(given))]


def typed_layer(layer: Layer, cls: Any) -> Layer:
    """With every value in the type of its setting. Raises UserError, naming the source: one is none of that type."""
    try:
        return replace(layer, settings=typed(layer.settings, cls))
    except UserError as error:
        raise UserError(f"{layer.source}: {error}") from error


def read_experiment(path: Path, above: tuple[Path, ...] = ()) -> Experiment:
    """The file and its bases. ``above``: the experiments that lie on this one."""
    if path in above:
        raise UserError(f"{above[0]}: base goes round ({' -> '.join(file.stem for file in (*above, path))})")
    plain = read_settings(path)
    bases, variants, mixes = plain.pop("base", []), plain.pop("variants", {}), plain.pop("mixes", {})
    read = Experiment()
    for base in [bases] if isinstance(bases, str) else bases if isinstance(bases, list) else [None]:
        if not isinstance(base, str):
            raise UserError(f"{path}: base={bases} is neither the name of an experiment nor a list of names")
        below = read_experiment(find("experiments", base, of=path), (*above, path))
        read.layers += below.layers
        read.mixes.update(below.mixes)
        for name, layers in below.variants.items():
            read.variants.setdefault(name, []).extend(layers)
    read.layers.append(Layer(str(path), plain))
    read.mixes.update(_members(path, "mixes", mixes))
    for name, settings in _members(path, "variants", variants).items():
        read.variants.setdefault(name, []).append(Layer(f"{path}: variants.{name}", settings))
    return read


def run_files(experiment: str, variant: str) -> tuple[Path, Path]:
    """The files of an experiment and a variant by name. Raises UserError: there is none, or it is something else."""
    files = find("experiments", experiment), find("variants", variant)
    for path in files:
        if {"experiment", "variant"} & read_yaml(path).keys():
            raise UserError(f"{path} is the saved configuration of a run: replay it with `tunalab train --config {path}`")
    return files


def read_yaml(path: Path) -> dict[str, Any]:
    """A YAML mapping, words as YAML 1.2 reads them. Raises UserError as :func:`read_settings`."""
    return {key: resolved(value) for key, value in read_settings(path).items()}


def read_settings(path: Path) -> dict[str, Any]:
    """A YAML mapping with unquoted words as :class:`Word`, for settings, whose types say what a word is.

    Raises UserError when the file is missing (naming its siblings) or is not a mapping.
    """
    if path.exists() and not path.is_file():
        raise UserError(f"{path} is {'a folder' if path.is_dir() else 'no regular file'}: a file of settings is needed")
    if not path.is_file():
        choices = ", ".join(p.stem for p in listed(path.parent, "*.yaml")) or "none"
        raise UserError(f"no file {path} (choices in {path.parent}: {choices})")
    try:
        loaded = deepcopy(_parsed(path.read_text(encoding="utf-8")))
    except UNREADABLE as error:  # any parser error is the file's, one line
        raise UserError(f"{path} is not readable YAML: {first_line(error)}") from error
    if not isinstance(loaded, dict):
        raise UserError(f"{path} is not a mapping of settings")
    return {str(key): value for key, value in loaded.items()}


@lru_cache(maxsize=64)
def _parsed(text: str) -> Any:
    """A sweep reads the same few files for each of its variants, and this reader takes its time."""
    loaded = parse(text)
    return {} if loaded is None or loaded == "" else loaded


def read_setting(override: str) -> tuple[tuple[str, ...], Any]:
    """The key as its names, and the value of ``key=value``.

    Lists, mappings and what stands in quotes are YAML. Anything else is one word to the last letter, as `#` and `: ` are parts of
    names and prompts. Raises UserError, one line, quoting it.
    """
    key, equals, text = override.partition("=")
    # Bytes that are not UTF-8 reach Python as surrogates.
    if any(category(letter) in ("Cc", "Cs") for letter in override.replace("\t", "")):
        raise UserError(f"setting {ascii(override)} holds a control character or bytes that are not UTF-8")
    if override.rpartition("${")[1] and "}" not in override.rpartition("${")[2]:
        raise UserError(f"setting '{override}' cannot be read: a reference to another setting is ${{key}}")
    if not equals or not key:
        raise UserError(f"setting '{override}' is not of the form key=value")
    try:
        return tuple(key.split(".")), read_value(text)
    except UNREADABLE as error:  # whatever the YAML reader says of the user's text, in one line
        raise UserError(f"setting '{override}' cannot be read: {first_line(error)}") from error


def read_value(text: str) -> Any:
    """Of the command line. Raises what UNREADABLE lists."""
    text = text.strip()
    if not text.startswith(("[", "{", '"', "'")):
        return Word(text)
    value = parse(text)
    if text[0] in "[{" or isinstance(value, str):
        return value
    raise ValueError("a text in quotes ends with them (quote all of it)")


def nested(names: Sequence[str], value: Any) -> dict[str, Any]:
    for name in reversed(names):
        value = {name: value}
    assert isinstance(value, dict)
    return value


def leaves(node: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted key, value) of nested mappings, in their order. A list is one value, and so is an empty mapping."""
    for name, value in node.items():
        if isinstance(value, Mapping) and value:
            yield from leaves(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def unequal(there: Mapping[str, Any], here: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any, Any]]:
    """(dotted key, value there, value here) of all that differs, sorted; None where one of two nested mappings lacks it."""
    for name in sorted({*there, *here}):
        one, other = there.get(name), here.get(name)
        if isinstance(one, Mapping) and isinstance(other, Mapping):
            yield from unequal(one, other, f"{prefix}{name}.")
        elif one != other:
            yield f"{prefix}{name}", one, other


def _members(path: Path, key: str, value: Any) -> dict[str, dict[str, Any]]:
    if not isinstance(value, dict):
        raise UserError(f"{path}: {key}={value} is not a mapping of names")
    for name, inside in value.items():
        if not isinstance(inside, dict):
            raise UserError(f"{path}: {key}.{name}={inside} is not a mapping")
    return {str(name): inside for name, inside in value.items()}


def _with_mixes(layer: Layer, mixes: Mapping[str, dict[str, float]]) -> Layer:
    """The layer with every mix that is given by its name written out: that mix, and nothing of what lies below."""
    stages = layer.settings.get("stages")
    named = {
        name: stage["mix"]
        for name, stage in (stages.items() if isinstance(stages, dict) else ())
        if isinstance(stage, dict) and isinstance(stage.get("mix"), str) and mixes
    }
    if not named:
        return layer
    for stage, mix in named.items():
        if mix not in mixes:
            raise UserError(f"{layer.source}: stages.{stage}.mix={mix} is no mix of the experiment (choices: {', '.join(mixes)})")
    assert isinstance(stages, dict)
    written = {name: {**stage, "mix": dict(mixes[named[name]])} if name in named else stage for name, stage in stages.items()}
    return replace(layer, settings={**layer.settings, "stages": written}, new_mixes=tuple(str(name) for name in named))


def shipped() -> Path:
    """The folder of the shipped experiments/, variants/, sweeps/ and results/published.csv."""
    package = Path(tunalab.__file__).resolve().parent
    inside = package / "shipped"
    return inside if inside.is_dir() else package.parents[1]


def find(folder: str, name: str, of: Path | None = None) -> Path:
    """As :func:`located`. Raises UserError, one line with the choices: there is no such file."""
    path = located(folder, name, of)
    if path is None:
        near = Path(folder) if of is None else of.parent
        raise UserError(f"no file {near / name}{ENDING} ({_choices(folder, of)})")
    return path


def located(folder: str, name: str, of: Path | None = None) -> Path | None:
    """The file ``name`` of ``folder`` (``experiments``, say), None where there is none.

    ``of``: the file that names it. What lies beside that comes first, and it never means itself
    where another has the same name: a user's ``scenes`` may build on the shipped ``scenes``.
    """
    if name.endswith(ENDING):
        return Path(name) if of is None else of.parent / name
    there = [file for place in _places(folder, of) if _exists(file := place / f"{name}{ENDING}")]
    others = [file for file in there if of is None or file.resolve() != of.resolve()]
    return next(iter(others or there), None)


def own_or_shipped(relative: str) -> Path | None:
    """A file by its path in the working directory, else among what is shipped, else None.

    The path may hold names out of a record, which is anybody's: none leads out of these folders.
    """
    files = (below(place, relative, links=True) for place in (Path(), shipped()))
    return next((file for file in files if file is not None and file.is_file()), None)


def names_of(folder: str) -> tuple[str, ...]:
    """What :func:`find` finds in a folder by name: the user's own first."""
    return tuple(dict.fromkeys(name for place in _places(folder, None) for name in names_in(place)))


def names_in(folder: Path) -> tuple[str, ...]:
    """Of the YAML files of one folder."""
    return tuple(file.stem for file in listed(folder, f"*{ENDING}"))


def _places(folder: str, of: Path | None) -> list[Path]:
    beside = [] if of is None else [of.parent]
    places = [*beside, Path(folder), shipped() / folder]
    return list({place.resolve(): place for place in reversed(places)}.values())[::-1]


def _exists(file: Path) -> bool:
    """A link that leads nowhere is the user's mistake, not a reason to take another file."""
    return file.exists() or file.is_symlink()


def _choices(folder: str, of: Path | None) -> str:
    of_places = {place: ", ".join(names_in(place)) for place in _places(folder, of)}
    parts = [f"in {place}: {found}" for place, found in of_places.items() if found]
    parts = [part.replace(f"in {shipped() / folder}", "shipped", 1) for part in parts]
    return f"choices {'; '.join(parts)}".replace("choices shipped:", "shipped choices:")
