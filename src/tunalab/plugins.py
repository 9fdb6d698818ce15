"""Classes and functions by name: shipped ones, those of installed packages, and any of a file or a module.

    NAME                     shipped, or an entry point of the group (``tunalab.corpora``, say)
    my_package.module:Class  anything that Python can import
    path/to/file.py:Class    of a file, from the working directory

So front-ends, corpora, benchmarks, kinds of questions and launchers come from outside without a
change here (docs/extend).
"""

import hashlib
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cache
from importlib import import_module
from importlib.metadata import entry_points, packages_distributions, version
from importlib.util import module_from_spec, spec_from_file_location
from inspect import Parameter, signature
from pathlib import Path
from types import ModuleType
from typing import Any

from tunalab.errors import UserError, first_line

_FILE = "_outside_"  # begins the module's name of a file
FORMS = "my_package.module:Class, path/to/file.py:Class"


@dataclass(frozen=True)
class Group:
    """What may come from outside. ``name``: of the entry points; ``needed``: what ``fits`` tests, as a noun."""

    name: str
    needed: str
    fits: Callable[[Any], bool]


def find(setting: str, name: str, group: Group, shipped: Mapping[str, str] | None = None) -> Any:
    """The class or function that ``name`` stands for. ``setting``: where the name was given, for messages.

    ``shipped``: name -> ``module:Class`` of those that need no entry point.
    Raises UserError, one line: unknown name (with the choices), no such module, file or class, or
    not what the group needs.
    """
    what, places = f"{setting}={name}", dict(shipped or {})
    if name not in places and ":" not in name:
        places = {point.name: point.value for point in entry_points(group=group.name)} | places
        if name not in places:
            close = "".join(f"; did you mean {one}?" for one in get_close_matches(name, places, 1))
            raise UserError(f"{what} is not known (choices: {', '.join([*sorted(places), FORMS])}){close}")
    place, _, member = places.get(name, name).rpartition(":")
    module = _module(place, what)
    found = getattr(module, member, None)
    if found is None:
        there = [key for key, one in vars(module).items() if getattr(one, "__module__", "") == module.__name__ and group.fits(one)]
        raise UserError(f"{what}: {module.__name__} has no {member} (choices there: {', '.join(there) or 'none'})")
    if not group.fits(found):
        raise UserError(f"{what}: {member} of {module.__name__} is not {group.needed}")
    return found


def build(setting: str, found: Callable[..., Any], arguments: Mapping[str, Any], **ours: Any) -> Any:
    """``found`` called with the user's ``arguments``, and with those of ``ours`` that it has parameters for.

    Raises UserError, one line: an argument is unknown (with the choices), missing, or one of ours.
    """
    parameters = signature(found).parameters
    keywords = (Parameter.POSITIONAL_OR_KEYWORD, Parameter.KEYWORD_ONLY)
    named = {name: one.default for name, one in parameters.items() if one.kind in keywords}
    own = [name for name in named if name not in ours]
    open_ended = any(one.kind is Parameter.VAR_KEYWORD for one in parameters.values())
    for name in arguments:
        if name in ours or not (open_ended or name in own):
            raise UserError(f"{setting}.{name}: {found.__name__} takes no such argument (choices: {', '.join(own) or 'none'})")
    for name in own:
        if named[name] is Parameter.empty and name not in arguments:
            raise UserError(f"{setting}.{name} is missing: {found.__name__} needs it")
    return found(**{name: value for name, value in ours.items() if name in named}, **arguments)


@cache
def source_of(found: Any) -> str:
    """Package with its version, or the file with a digest of its text: what made the numbers, however the file goes on."""
    module = sys.modules[found.__module__]
    package = found.__module__.partition(".")[0]
    of_package = {} if package.startswith(_FILE) else packages_distributions()  # which takes a second
    for distribution in of_package.get(package, ()):
        return f"{found.__module__}:{found.__qualname__} of {distribution} {version(distribution)}"
    file = Path(module.__file__ or "")
    text = file.read_bytes() if module.__file__ else b""
    return f"{found.__qualname__} of {file.name}, sha256 {hashlib.sha256(text).hexdigest()[:12]}"


def _module(place: str, what: str) -> ModuleType:
    try:
        if place.endswith(".py"):
            if not (path := Path(place).resolve()).is_file():
                raise UserError(f"{what}: there is no file {path}")
            return _file(path)
        return import_module(place)
    except ModuleNotFoundError as error:
        raise UserError(f"{what}: there is no module {error.name} (Python finds none from here)") from error
    except (ImportError, SyntaxError, ValueError, TypeError) as error:
        raise UserError(f"{what}: {place} cannot be imported: {type(error).__name__}: {first_line(error)}") from error


@cache
def _file(path: Path) -> ModuleType:
    """Run once per process, so that one file's class is one class."""
    # A name without dots that no package has; of the whole path, as two files may have one name.
    name = f"{_FILE}{path.stem}_{hashlib.sha256(str(path).encode()).hexdigest()[:8]}"
    spec = spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = module_from_spec(spec)
    sys.modules[name] = module  # before it runs: dataclasses and pickles look there
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module
