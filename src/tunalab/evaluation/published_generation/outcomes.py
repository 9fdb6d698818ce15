"""What scoring found in every image, kept in a file of JSON lines: an interrupted scoring goes on.

Shapes: H W C image pixels and channels.
"""

import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from tunalab.data.documents import Reject
from tunalab.data.image_files import decode_image
from tunalab.errors import UserError
from tunalab.evaluation.published_generation.images import OwnSize

Outcome = Mapping[str, Any]  # plain: what JSON holds


class Outcomes:
    """``path``: the file. ``scorer``, plain: what, besides the image and what is asked of it, an outcome hangs on.

    Raises UserError: the file is there and holds something else.
    """

    def __init__(self, path: Path, scorer: Any) -> None:
        self.path = path
        self.scorer = scorer
        self.unreadable: list[str] = []
        self._known: dict[str, Outcome] = {}
        if path.exists():
            self._read()

    def of(self, image: Path, asked: Any, find: Callable[[np.ndarray], Outcome]) -> Outcome | None:
        """What ``find`` makes of the image (H, W, 3) uint8, or made of the same one before. None: it cannot be read.

        ``asked``, plain: what of the image is wanted.
        """
        try:
            data = image.read_bytes()
        except OSError as error:
            self.unreadable.append(f"{image}: {error.strerror}")
            return None
        about = json.dumps([self.scorer, asked], sort_keys=True).encode()
        key = hashlib.sha256(hashlib.sha256(data).digest() + about).hexdigest()[:32]
        if key not in self._known:
            try:
                pixels_HWC = decode_image(data, str(image), OwnSize())
            except Reject as reject:
                self.unreadable.append(str(reject))
                return None
            self._keep(key, image, find(pixels_HWC))
        return self._known[key]

    def _keep(self, key: str, image: Path, outcome: Outcome) -> None:
        line = json.dumps({"key": key, "image": str(image), "outcome": outcome}, ensure_ascii=False)
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("a", encoding="utf-8") as stream:
                stream.write(line + "\n")
        except OSError as error:
            raise UserError(f"{self.path} cannot be written: {error.strerror}") from error
        self._known[key] = outcome

    def _read(self) -> None:
        try:
            whole, _, cut = self.path.read_text(encoding="utf-8").rpartition("\n")
            for line in whole.splitlines():
                plain = json.loads(line)
                self._known[plain["key"]] = plain["outcome"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(f"{self.path} is there and holds no outcomes of scoring: choose another --out, or remove it") from error
        if cut:  # of a write that was interrupted
            self.path.write_text(f"{whole}\n" if whole else "", encoding="utf-8")
