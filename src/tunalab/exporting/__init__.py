"""A trained model as a folder of its own, and models read back: from such a folder or from a run's directory."""

from tunalab.exporting.loading import Loaded, load, load_exported, load_run, model_config

__all__ = ["Loaded", "load", "load_exported", "load_run", "model_config"]
