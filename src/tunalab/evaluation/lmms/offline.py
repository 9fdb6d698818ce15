"""While lmms-eval runs: no hub is asked for anything, and what it changes in other libraries is undone."""

import os
import random
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import huggingface_hub
from huggingface_hub import constants
from PIL import ImageFile

_VARIABLES = {
    "HF_HUB_OFFLINE": "1",
    "HF_DATASETS_OFFLINE": "1",
    "HF_EVALUATE_OFFLINE": "1",
    "API_TYPE": "dummy",  # the judge of the stock MMVet, never asked, wants a key as soon as its task is read
}


@contextmanager
def offline(snapshot: Path) -> Iterator[None]:
    """``snapshot``: the folder that a task gets which asks for that of its data set when it is read (VisuLogic's does)."""
    variables = {name: os.environ.get(name) for name in _VARIABLES}
    known, fetch = constants.HF_HUB_OFFLINE, huggingface_hub.snapshot_download
    truncated, state = ImageFile.LOAD_TRUNCATED_IMAGES, random.getstate()
    os.environ.update(_VARIABLES)
    constants.HF_HUB_OFFLINE = True  # the variable was read when the library was imported
    huggingface_hub.snapshot_download = lambda *_, **__: str(snapshot)  # type: ignore[assignment]
    try:
        with warnings.catch_warnings():  # it silences all of them
            yield
    finally:
        constants.HF_HUB_OFFLINE, huggingface_hub.snapshot_download = known, fetch
        ImageFile.LOAD_TRUNCATED_IMAGES = truncated  # its import lets damaged images pass everywhere
        random.setstate(state)
        for name, value in variables.items():
            os.environ.pop(name)
            if value is not None:
                os.environ[name] = value
