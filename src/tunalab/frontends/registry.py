"""The front-ends by name. A new one is one file, one variant YAML and one line here."""

from collections.abc import Callable

from tunalab.config import FrontEndConfig
from tunalab.errors import UserError
from tunalab.frontends.components.handle import Components
from tunalab.frontends.contract import VisualFrontEnd
from tunalab.frontends.patch_embed import PatchEmbed
from tunalab.frontends.siglip import Siglip
from tunalab.frontends.vae_siglip import VaeSiglip

Builder = Callable[[FrontEndConfig, int, Components], VisualFrontEnd]

FRONTENDS: dict[str, Builder] = {
    "patch_embed": lambda config, width, components: PatchEmbed(width, config.patch),
    "siglip": lambda config, width, components: Siglip(
        components.encoder(config.encoder, config.encoder_pretrained), width, config.patch
    ),
    "vae_siglip": lambda config, width, components: VaeSiglip(
        components.vae(config.vae), components.encoder(config.encoder, config.encoder_pretrained), width, config.patch
    ),
}


def build_frontend(config: FrontEndConfig, width: int, image_size: int, components: Components | None = None) -> VisualFrontEnd:
    """The front-end that ``config`` names, with its pretrained parts loaded, for a decoder of ``width``.

    Under ``torch.device("meta")`` only the architecture is built and no file is read.

    Raises UserError: unknown name (with the choices), missing or damaged component, a weight that does not load, an
    ``image_size`` (pixels along a side) that the tokens do not cut exactly.
    """
    if config.name not in FRONTENDS:
        raise UserError(f"frontend.name={config.name} is not known (choices: {', '.join(sorted(FRONTENDS))})")
    frontend = FRONTENDS[config.name](config, width, components or Components())
    frontend.space.grid(image_size, image_size)
    return frontend
