"""Images in files that say how they were made: PNG with the settings as JSON in a text chunk, which picture viewers show too.

Shapes: H W C image pixels and channels.
"""

import io
import json
import struct
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, PngImagePlugin

from tunalab.errors import UserError
from tunalab.files import write_atomically

KEYWORD = "tunalab"  # of the chunk

Settings = Mapping[str, Any]  # plain: what JSON holds


def save_image(path: Path, pixels_HWC: np.ndarray, settings: Settings) -> None:
    """Write RGB uint8 (H, W, 3) with its settings as a PNG, whole or not at all; its folder is made.

    Raises UserError when the file cannot be written.
    """
    text = json.dumps(settings, ensure_ascii=False, allow_nan=False)
    chunks = PngImagePlugin.PngInfo()
    chunks.add_text(KEYWORD, text)  # tEXt; where Latin-1 does not do, iTXt
    png = io.BytesIO()
    Image.fromarray(pixels_HWC, "RGB").save(png, "PNG", pnginfo=chunks)
    try:
        write_atomically(path, png.getvalue())
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror}") from error


def read_settings(path: Path) -> dict[str, Any] | None:
    """The settings that :func:`save_image` wrote into an undamaged file; None of a PNG that was made otherwise.

    Raises UserError: the file is missing, is no PNG or is damaged.
    """
    try:
        with Image.open(path, formats=["PNG"]) as image:
            text = image.info.get(KEYWORD)
            image.verify()  # the sum of every chunk
    except (OSError, SyntaxError, ValueError, struct.error) as error:  # Pillow has no exception of its own for all damage
        reason = "no such file" if isinstance(error, FileNotFoundError) else "damaged, or no PNG"
        raise UserError(f"{path}: {reason}") from error
    try:
        settings = json.loads(text) if isinstance(text, str) else None
    except ValueError:
        return None
    return settings if isinstance(settings, dict) else None


def differences(there: Settings, now: Settings) -> Iterator[str]:
    """Which settings differ, each with both values; those of the part a.b are named a.b."""
    for key in sorted({*there, *now}):
        one, other = there.get(key), now.get(key)
        if isinstance(one, dict) and isinstance(other, dict):
            yield from (f"{key}.{inner}" for inner in differences(one, other))
        elif one != other:
            yield f"{key} {_shown(one)} there, {_shown(other)} now"


def _shown(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else f"{text[:57]}..."
