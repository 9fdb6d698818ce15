"""How a front-end is shown and which levels of the compared factors it has: for figures, tables and MLflow, without torch.

A class states its own :class:`Look` (``VisualFrontEnd.look``). Those of the shipped front-ends stand here instead, so that
records are read and drawn without importing torch. A variant file may overrule both with ``label`` and ``colour``.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

LAST = 100  # place of a front-end that states none; equal places are ordered by the variant's name


@dataclass(frozen=True)
class Look:
    """``colour``: #RRGGBB, empty for one that is free. ``order``: place in legends and tables, smallest first.

    ``factors``: level by factor. The levels of "encoder" (none, scratch, frozen, pretrained) and "VAE" (none, VAE) follow from
    the settings where a front-end does not state them; it may state others, which effects then compare.
    ``variant``: the variant that label, colour and order are of; another variant of the same front-end goes by its own name.
    Empty: any. ``source``: where the class of the front-end came from.
    """

    label: str = ""
    colour: str = ""
    order: int = LAST
    factors: dict[str, str] = field(default_factory=dict)
    variant: str = ""
    source: str = "tunalab"

    def __post_init__(self) -> None:
        """Raises ValueError, of a record too: the colour is written into pages as it is."""
        if self.colour and not is_colour(self.colour):
            raise ValueError(f"colour {self.colour!r} is not of the form #RRGGBB")


def is_colour(text: object) -> bool:
    return isinstance(text, str) and re.fullmatch("#[0-9A-Fa-f]{6}", text) is not None


_LINEAR = {"patch embedding": "linear"}
# The first three colours are of Okabe and Ito's palette: told apart with every common colour blindness, and in grey.
SHIPPED = {
    "vae_siglip": Look("Tuna", "#0072B2", 1, _LINEAR, "tuna"),
    "siglip": Look("Tuna-R", "#D55E00", 2, _LINEAR, "tuna_r"),
    "patch_embed": Look("Tuna-2", "#009E73", 3, _LINEAR, "tuna2"),
    "vae_patch_embed": Look("VAE latents, no encoder", "#CC79A7", 4, _LINEAR, "vae_latents"),
    "bottleneck": Look("Tuna-2, bottleneck", "#E69F00", 5, {"patch embedding": "bottleneck"}, "bottleneck"),
}


def resolved_look(config: Mapping[str, Any], stated: Look | None = None) -> Look:
    """The look of a run, from its plain configuration. ``stated``: by the class of a front-end that is not shipped.

    Nothing is imported: of a front-end from elsewhere, whose class is not at hand, the name of the class is the label.
    """
    frontend, variant = config.get("frontend", {}), config.get("variant", "")
    name = frontend.get("name", "")
    look = stated or SHIPPED.get(name) or Look(source=name)
    if look.variant and look.variant != variant:
        look = replace(look, label=variant, colour="", order=LAST)
    label = str(config.get("label", "")) or look.label or (name.rpartition(":")[2] if ":" in name else variant)
    factors = {"encoder": _encoder(frontend), "VAE": "VAE" if frontend.get("vae") else "none"} | look.factors
    own = config.get("colour", "")
    return replace(look, label=label, colour=own if is_colour(own) else look.colour, factors=factors)


def _encoder(frontend: Mapping[str, Any]) -> str:
    if not frontend.get("encoder"):
        return "none"
    if not frontend.get("encoder_pretrained", True):
        return "scratch"
    return "pretrained" if frontend.get("encoder_trained", True) else "frozen"
