"""Files by their names: the user's own in the working directory, else those that the package ships.

    smoke                  ./experiments/smoke.yaml, else the shipped experiment of this name
    path/to/mine.yaml      a path, as it has the ending: taken as it is

In a checkout the shipped files are its own top-level folders; a wheel carries a copy of them
(tunalab/wheel.py).
"""

from pathlib import Path

import tunalab
from tunalab.errors import UserError
from tunalab.files import below, listed

ENDING = ".yaml"


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
