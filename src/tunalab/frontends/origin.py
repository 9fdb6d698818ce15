"""Where the frozen parts of a model come from: what is kept with exported weights, and compared before others start from them."""

from pathlib import Path
from typing import Any

from tunalab.config import RunConfig
from tunalab.files import listed, sha256
from tunalab.frontends.components.cache import components_root, folder_of
from tunalab.frontends.components.handle import TINY
from tunalab.frontends.components.settings import ComponentSettings
from tunalab.frontends.contract import VisualFrontEnd


def frozen_origin(config: RunConfig, settings: ComponentSettings, frontend: VisualFrontEnd) -> dict[str, Any]:
    """Of each frozen part: its name in the configuration and, of a file that lies here, its hash."""
    if not frontend.frozen_parts:
        return {}
    name = config.frontend.vae
    folder = folder_of(components_root(), "vae", settings.vae) if name == TINY else Path(name)
    files = listed(folder, "*.safetensors")
    return {"vae": {"name": folder.name if name == TINY else name, "sha256": {file.name: sha256(file) for file in files}}}
