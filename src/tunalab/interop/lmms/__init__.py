"""What lmms-eval finds under the entry point ``lmms_eval.models``: `lmms-eval --model tunalab --model_args run=RUN`."""

from typing import Any


def manifest() -> Any:
    """A ``ModelManifest``; the model itself is imported when it is used."""
    from lmms_eval.models.registry_v2 import ModelManifest

    return ModelManifest("tunalab", simple_class_path="tunalab.interop.lmms.model.TrainedModel")
