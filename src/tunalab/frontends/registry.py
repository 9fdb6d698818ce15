"""The front-ends by name: the shipped ones, those that installed packages offer, and any class of a file or a module.

    frontend.name=NAME                     shipped, or an entry point of the group ``tunalab.frontends``
    frontend.name=my_package.module:Class  of whatever Python can import
    frontend.name=path/to/file.py:Class    of a file, from the working directory

A new shipped one is one file in this folder, one variant YAML and one line here.
"""

import hashlib
import sys
from dataclasses import asdict, replace
from difflib import get_close_matches
from functools import cache
from importlib import import_module
from importlib.metadata import entry_points, packages_distributions, version
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import Any

from tunalab.errors import UserError
from tunalab.frontends.components.store import Components
from tunalab.frontends.contract import VisualFrontEnd
from tunalab.frontends.looks import SHIPPED, Look, resolved_look
from tunalab.settings.schema import FrontEndConfig, RunConfig

GROUP = "tunalab.frontends"
# Name, which is also that of its file -> class. Files are imported when they are asked for: a patch embedding needs no timm.
FRONTENDS: dict[str, str] = {
    "bottleneck": "Bottleneck",
    "patch_embed": "PatchEmbed",
    "siglip": "Siglip",
    "vae_patch_embed": "VaePatchEmbed",
    "vae_siglip": "VaeSiglip",
}


def frontend_class(name: str) -> type[VisualFrontEnd]:
    """Raises UserError, one line: unknown name (with the choices), no such module, file or class, or no VisualFrontEnd."""
    what = f"frontend.name={name}"
    place, colon, member = name.rpartition(":")
    if name in FRONTENDS:
        module, member = import_module(f"tunalab.frontends.{name}"), FRONTENDS[name]
    elif colon:
        module = _module(place, what)
    else:
        offered = {point.name: point for point in entry_points(group=GROUP)}
        if name not in offered:
            choices = sorted({*FRONTENDS, *offered})
            near = "".join(f"; did you mean {close}?" for close in get_close_matches(name, choices, 1))
            raise UserError(
                f"{what} is not known (choices: {', '.join(choices)}, my_package.module:Class, path/to/file.py:Class){near}"
            )
        module, member = _module(offered[name].module, what), offered[name].attr
    found: Any = getattr(module, member, None)
    if found is None:
        classes = [key for key, one in vars(module).items() if isinstance(one, type) and _is_own(one, module)]
        raise UserError(f"{what}: {module.__name__} has no {member} (classes there: {', '.join(classes) or 'none'})")
    if not isinstance(found, type) or not issubclass(found, VisualFrontEnd):
        raise UserError(f"{what}: {member} of {module.__name__} is not a VisualFrontEnd")
    return found


def look_of(config: RunConfig) -> Look:
    """How the run is shown: label, colour, order, factors, and where its front-end's class came from."""
    plain = {"variant": config.variant, "label": config.label, "colour": config.colour, "frontend": asdict(config.frontend)}
    if config.frontend.name in SHIPPED:
        return resolved_look(plain)
    found = frontend_class(config.frontend.name)
    return resolved_look(plain, replace(found.look, label=found.look.label or found.__name__, source=_source(found)))


def _source(found: type[VisualFrontEnd]) -> str:
    """Package with its version, or the file with a digest of its text: what made the numbers, however the file goes on."""
    module = sys.modules[found.__module__]
    package = found.__module__.partition(".")[0]
    for distribution in packages_distributions().get(package, ()):
        return f"{found.__module__}:{found.__qualname__} of {distribution} {version(distribution)}"
    text = Path(module.__file__).read_bytes() if module.__file__ else b""
    where = f"{Path(module.__file__ or '').name}, sha256 {hashlib.sha256(text).hexdigest()[:12]}"
    return f"{found.__qualname__} of {where}"


def _is_own(found: type, module: ModuleType) -> bool:
    return issubclass(found, VisualFrontEnd) and found.__module__ == module.__name__


def _module(place: str, what: str) -> ModuleType:
    try:
        if place.endswith(".py"):
            if not (path := Path(place).resolve()).is_file():
                raise UserError(f"{what}: there is no file {path}")
            return _file(path)
        return import_module(place)
    except ModuleNotFoundError as error:
        raise UserError(f"{what}: there is no module {error.name} (from where this runs, Python finds none)") from error
    except (ImportError, SyntaxError, ValueError, TypeError) as error:
        reason = (str(error).splitlines() or [""])[0]
        raise UserError(f"{what}: {place} cannot be imported: {type(error).__name__}: {reason}") from error


@cache
def _file(path: Path) -> ModuleType:
    """Run once per process, so that one file's class is one class."""
    # A module's name without dots that no package has; of the whole path, as two files may have one name.
    name = f"_frontend_{path.stem}_{hashlib.sha256(str(path).encode()).hexdigest()[:8]}"
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


def build_frontend(config: FrontEndConfig, width: int, image_size: int, components: Components | None = None) -> VisualFrontEnd:
    """The front-end that ``config`` names, with its pretrained parts loaded, for a decoder of ``width``.

    Under ``torch.device("meta")`` only the architecture is built and no file is read.

    Raises UserError: unknown name (with the choices), missing or damaged component, a weight that does not load, a posterior to be
    sampled where there is none, an ``image_size`` (pixels along a side) that the tokens do not cut exactly.
    """
    frontend = frontend_class(config.name).build(config, width, components or Components())
    if config.vae_posterior == "sample" and not frontend.sampled:
        raise UserError(f"frontend.vae_posterior=sample: frontend.name={config.name} has no VAE (choices: mean)")
    side = frontend.space.token_pixels
    if image_size % side:
        raise UserError(
            f"data.image_size={image_size} is not cut exactly by frontend.name={config.name}: its tokens are {side} pixels wide "
            f"(choices: {side}, {2 * side}, {3 * side}, ...)"
        )
    return frontend
