"""The front-ends by name. A new one is one file in this folder, one variant YAML and one line here."""

from importlib import import_module

from tunalab.errors import UserError
from tunalab.frontends.components.store import Components
from tunalab.frontends.contract import VisualFrontEnd
from tunalab.settings.schema import FrontEndConfig

# Name, which is also that of its file -> class. Files are imported when they are asked for: a patch embedding needs no timm.
FRONTENDS: dict[str, str] = {
    "bottleneck": "Bottleneck",
    "patch_embed": "PatchEmbed",
    "siglip": "Siglip",
    "vae_patch_embed": "VaePatchEmbed",
    "vae_siglip": "VaeSiglip",
}


def frontend_class(name: str) -> type[VisualFrontEnd]:
    """Raises UserError, with the choices, for a name that is not registered."""
    if name not in FRONTENDS:
        raise UserError(f"frontend.name={name} is not known (choices: {', '.join(sorted(FRONTENDS))})")
    found = getattr(import_module(f"tunalab.frontends.{name}"), FRONTENDS[name])
    if not issubclass(found, VisualFrontEnd):
        raise TypeError(f"{FRONTENDS[name]} of tunalab.frontends.{name} is not a VisualFrontEnd")
    return found


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
