"""tunalab: what does the visual front-end of a unified multimodal model contribute?

A trained model:

    model = tunalab.load("runs/x")                       # a run directory or an exported folder
    model = tunalab.load("runs/x@500000")                # a run at a checkpoint that it keeps
    model.ask(image, "what is it?")                      # path, PIL image, array or tensor; lists too
    model.generate("a red circle", n=4, seed=0)          # PIL images
    model.edit(image, "make it blue", seed=0)
    model.attention(image, "circle")                     # array and overlay
    model.save_pretrained("out")

Runs and their records:

    record = tunalab.train("smoke", "tuna2", {"seed": 1})
    records = tunalab.sweep("mask_ratio", variant="tuna2", parallel=2)
    tunalab.plan("smoke", "tuna2")                       # what a run costs
    tunalab.inspect_data("smoke", "tuna2").problems      # why a run would stop at its data
    tunalab.evaluate("runs/x")                           # into the run's record
    tunalab.ask_points("runs/x", ["pairs@2", "easy_vqa"])  # along the curve of a run that keeps its points
    records = tunalab.records("results/figure6")
    records.frame(), records.figure("figure6"), records.table("effects")

Training with your own Trainer:

    config = tunalab.load_config("smoke", "tuna2", {"seed": 1})
    trainer = lightning.Trainer(max_epochs=1, callbacks=tunalab.callbacks(config, "runs/mine"))
    trainer.fit(tunalab.Harness(config), tunalab.DataModule(config))

The callbacks are optional: exact resume, signals, curve and record. A mistake is a tunalab.UserError of
one line, which names the thing and the choices. Nothing heavy is imported before a name is used.
"""

import os
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tunalab.collection import Records, records
    from tunalab.driver import sweep
    from tunalab.errors import UserError
    from tunalab.inference.requests import GenerationRequest
    from tunalab.library import inspect_data, load_config, plan, train
    from tunalab.records.record import Record
    from tunalab.settings.schema import RunConfig
    from tunalab.trained.evaluation import evaluate
    from tunalab.trained.model import Model, load
    from tunalab.trained.points import ask_points
    from tunalab.training.joint import DataModule
    from tunalab.training.module import Harness
    from tunalab.training.own import callbacks

__version__ = "0.1.0"
__all__ = [
    "DataModule",
    "GenerationRequest",
    "Harness",
    "Model",
    "Record",
    "Records",
    "RunConfig",
    "UserError",
    "ask_points",
    "callbacks",
    "evaluate",
    "inspect_data",
    "load",
    "load_config",
    "plan",
    "records",
    "sweep",
    "train",
]
_MODULES = {
    "DataModule": "training.joint",
    "GenerationRequest": "inference.requests",
    "Harness": "training.module",
    "Model": "trained.model",
    "Record": "records.record",
    "Records": "collection",
    "RunConfig": "settings.schema",
    "UserError": "errors",
    "ask_points": "trained.points",
    "callbacks": "training.own",
    "evaluate": "trained.evaluation",
    "inspect_data": "library",
    "load": "trained.model",
    "load_config": "library",
    "plan": "library",
    "records": "records",  # the folder itself, which is callable: its name is taken once it is imported
    "sweep": "driver",
    "train": "library",
}

# PyTorch chooses its own kernels by this variable and lays out bf16 matrices as oneDNN can, which does
# not know of it: on a processor with AVX-512, attention in bf16 would end in an error.
if os.environ.get("ATEN_CPU_CAPABILITY") in ("avx2", "default"):
    os.environ.setdefault("ONEDNN_MAX_CPU_ISA", "AVX2")


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module 'tunalab' has no attribute {name!r} (choices: {', '.join(__all__)})")
    module = import_module(f"tunalab.{_MODULES[name]}")
    globals()[name] = value = module if name == "records" else getattr(module, name)
    return value


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
