"""How two processes start one run, started by test_sharded_start.py: `python -m tests.training.two_starts FOLDER RANK PORT`.

Each start goes as far as the first step. There every rank compares each sharded tensor, gathered, with the model that one process
would have begun with. What each of them found lies in FOLDER.
"""

import sys
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer
from torch.distributed.tensor import DTensor

from tests.checkpoints import QWEN, save_qwen, save_qwen_tokenizer
from tests.training.conftest import quick_config
from tests.training.two_ranks import Killed, Report, in_first, started_by, torchrun
from tunalab.frontends.components.store import Components
from tunalab.model.deferred import Deferred
from tunalab.model.unified import UnifiedModel, build_model
from tunalab.settings.schema import RunConfig, StartConfig
from tunalab.trained.folder import RunParts, learnt_state, stored_once, write_export
from tunalab.training.run import train
from tunalab.training.start import load_start

SHARDED = {"distribution__strategy": "fsdp2", "seed": 5}


def whole(config: RunConfig) -> UnifiedModel:
    """What one process begins with."""
    components = Components(config.components_seed)
    model = build_model(config, components, components.tokenizer_for(config.decoder).vocabulary)
    load_start(model, config, lambda line: None)
    return model


class Compare(Callback):
    """Ends the run before its first step."""

    def __init__(self, expected: UnifiedModel) -> None:
        self.expected = expected
        self.found: dict[str, Any] = {}

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        model: Any = pl_module.model
        expected, other = dict(self.expected.named_parameters()) | dict(self.expected.named_buffers()), []
        mine = dict(model.named_parameters()) | dict(model.named_buffers())
        for name, tensor in mine.items():
            gathered = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
            if not torch.equal(gathered, expected[name]):
                other.append(name)
        sharded = sum(isinstance(tensor, DTensor) and tensor.to_local().numel() < tensor.numel() for tensor in mine.values())
        tied = model.decoder.lm_head.weight is model.decoder.model.embed_tokens.weight
        self.found = {"other": other, "names": mine.keys() == expected.keys(), "sharded": sharded, "tied": tied}
        raise Killed


def start(config: RunConfig, run_dir: Path) -> dict[str, Any]:
    compare = Compare(whole(config))
    with suppress(Killed):
        train(config, run_dir, callbacks=[compare])
    return compare.found


def pretrained(folder: Path) -> RunConfig:
    """A decoder whose tables get more rows than they have, a number that two ranks do not share out evenly."""
    config = quick_config("tuna2", **SHARDED)
    decoder = replace(config.decoder, pretrained=str(folder), heads=4, kv_heads=2, rope_theta=1e6)
    return replace(config, decoder=replace(decoder, tie_embeddings=False, vocabulary=QWEN["vocab_size"] + 41))


def exported(config: RunConfig, folder: Path) -> None:
    """A part of a model of another seed, to start from."""
    model, parts = whole(replace(config, seed=8)), RunParts()
    weights = stored_once(config, learnt_state(model))
    weights = {name: tensor for name, tensor in weights.items() if not name.startswith("head.blocks.0.")}
    write_export(folder, parts.about(config, model, {}), config, weights, None, parts, model.frontend)


def starts(folder: Path, report: Report) -> None:
    report.note("scratch", lambda: start(quick_config("tuna", **SHARDED), folder / "scratch"))
    qwen = folder / "qwen"
    in_first(lambda: (save_qwen(qwen, tie_word_embeddings=False), save_qwen_tokenizer(qwen)))
    report.note("pretrained", lambda: start(pretrained(qwen), folder / "from-qwen"))
    config = quick_config("tuna_r", **SHARDED)
    in_first(lambda: exported(config, folder / "exported"))
    earlier = replace(config, start=StartConfig(str(folder / "exported"), ["head.blocks.*"]))
    report.note("earlier weights", lambda: start(earlier, folder / "from-exported"))


if __name__ == "__main__":
    FOLDER, RANK, PORT = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
    Deferred.least = 1
    with started_by(torchrun(RANK), PORT):
        starts(FOLDER, Report(FOLDER / f"rank{RANK}.json"))
