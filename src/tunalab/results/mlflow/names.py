"""Names and values as MLflow takes them."""

import re
from collections.abc import Mapping
from typing import Any

PARAMETER_LIMIT = 500  # characters; MLflow's limit differs by store, and the whole configuration lies in the run directory


def flatten(config: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Nested mappings as dotted names with text values. A long value is cut and says so; lists stay one value."""
    flat: dict[str, str] = {}
    for key, value in config.items():
        name = legal_name(f"{prefix}{key}")
        if isinstance(value, Mapping) and value:
            flat |= flatten(value, f"{prefix}{key}.")
            continue
        text = str(value)
        flat[name] = text if len(text) <= PARAMETER_LIMIT else f"{text[: PARAMETER_LIMIT - 20]}... ({len(text)} long)"
    return flat


def legal_name(name: str) -> str:
    """A name that MLflow accepts: other characters become underscores, and a path may not leave its folder."""
    clean = re.sub(r"[^\w\-. :/]", "_", name, flags=re.ASCII)
    return re.sub(r"/+", "/", clean.replace("..", "__")).strip("/")[:250] or "_"


def plain_tags(tags: Mapping[str, object]) -> dict[str, str]:
    return {name: "" if value is None else str(value) for name, value in tags.items()}
