"""The front-ends by name: the shipped ones, and those from outside (plugins.py has the forms of their names).

A new shipped one is one file in this folder, one variant YAML and one line here.
"""

from dataclasses import asdict, replace

from tunalab.errors import UserError
from tunalab.frontends.components.store import Components
from tunalab.frontends.contract import VisualFrontEnd
from tunalab.frontends.looks import SHIPPED, Look, resolved_look
from tunalab.plugins import Group, find, source_of
from tunalab.settings.schema import FrontEndConfig, RunConfig

GROUP = Group(
    "tunalab.frontends",
    "a VisualFrontEnd",
    lambda found: isinstance(found, type) and issubclass(found, VisualFrontEnd),
)
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
    shipped = {own: f"tunalab.frontends.{own}:{member}" for own, member in FRONTENDS.items()}
    found: type[VisualFrontEnd] = find("frontend.name", name, GROUP, shipped)
    return found


def look_of(config: RunConfig) -> Look:
    """How the run is shown: label, colour, order, factors, and where its front-end's class came from."""
    plain = {"variant": config.variant, "label": config.label, "colour": config.colour, "frontend": asdict(config.frontend)}
    if config.frontend.name in SHIPPED:
        return resolved_look(plain)
    found = frontend_class(config.frontend.name)
    return resolved_look(plain, replace(found.look, label=found.look.label or found.__name__, source=source_of(found)))


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
