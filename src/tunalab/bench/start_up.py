"""`tunalab bench --only start_up`: main memory that the processes of one run need before its first step, for each GB of the model.

Decoders of several sizes are written as safetensors with random weights. A run on one process, and runs of several that share the
model out, start from each of them, by the code of any other run. Each process reports the most that it held, beyond Python and its
packages: once its part of the model is filled, and once the averages are there too. A line through the sizes gives bytes for each
byte of the model, and what does not grow with it.
"""

import json
import os
import re
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from lightning import Callback, LightningModule, Trainer
from torch.utils.data import DataLoader
from transformers import Qwen2Config, Qwen2ForCausalLM

from tunalab.bench.gpu import VARIANT
from tunalab.errors import UserError
from tunalab.frontends.components.store import Components
from tunalab.model.unified import UnifiedModel, build_deferred, build_model
from tunalab.planning.memory import Sharding, start_bytes, totals
from tunalab.settings.layers import run_files
from tunalab.settings.loading import load_config
from tunalab.settings.schema import RunConfig
from tunalab.training.distribution import Distribution, joined
from tunalab.training.module import Harness
from tunalab.training.run import build_trainer

SIZES, RANKS = (0.1, 0.2, 0.4), (1, 2, 4)  # GB of the decoder, processes
WIDTH, MLP, VOCABULARY = 512, 1408, 8192
GB = 1e9
SPARE = 0.25  # of a process's share, for what is read at a time and what allocators keep
STATUS = Path("/proc/self/status")


def write_decoder(folder: Path, gigabytes: float) -> None:
    """A Qwen2 of about that size in float32: of as many layers as that takes."""
    with torch.device("meta"):
        layer = sum(parameter.numel() for parameter in Qwen2ForCausalLM(_qwen(1)).model.layers.parameters())
    Qwen2ForCausalLM(_qwen(max(1, round((gigabytes * GB / 4 - VOCABULARY * WIDTH) / layer)))).save_pretrained(folder)


def _qwen(layers: int) -> Qwen2Config:
    return Qwen2Config(
        vocab_size=VOCABULARY,
        hidden_size=WIDTH,
        intermediate_size=MLP,
        num_hidden_layers=layers,
        num_attention_heads=8,
        num_key_value_heads=2,
        rope_parameters={"rope_type": "default", "rope_theta": 1e6},
        tie_word_embeddings=True,
    )


def config_of(folder: Path, ranks: int) -> RunConfig:
    """A run that starts from the decoder in ``folder``."""
    decoder = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    settings = {
        "pretrained": folder,
        "vocabulary": VOCABULARY,
        "width": WIDTH,
        "mlp": MLP,
        "layers": decoder["num_hidden_layers"],
        "heads": decoder["num_attention_heads"],
        "kv_heads": decoder["num_key_value_heads"],
        "rope_theta": 1e6,
    }
    words = [f"decoder.{name}={value}" for name, value in settings.items()]
    return load_config(*run_files("scenes", VARIANT), [*words, f"distribution.strategy={'fsdp2' if ranks > 1 else 'none'}"])


class _Measure(Callback):
    """Notes what the process holds at most, and ends the run before its first step."""

    def __init__(self) -> None:
        with suppress(OSError):  # from here on; where the system does not allow it, from the start of the process on
            Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")
        self.before = resident()
        self.found: dict[str, int] = {}

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.found["filled"] = resident() - self.before

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.found["averaged"] = resident() - self.before
        trainer.should_stop = True


def resident() -> int:
    """Bytes that this process held at most."""
    found = re.search(r"VmHWM:\s+(\d+) kB", STATUS.read_text(encoding="utf-8"))
    assert found is not None
    return 1024 * int(found[1])


def start(folder: Path) -> dict[str, int]:
    """In every process: start a run from the decoder in ``folder``; what it took, and the bytes of the whole model."""
    torch.set_num_threads(1)
    with joined() as ranks:
        config = config_of(folder, ranks.world_size)
        placed = Distribution.of(config.distribution, ranks)
        components, measure = Components(), _Measure()
        trainer = build_trainer(config, [measure], **{**placed.trainer_arguments(config), "accelerator": "cpu"})
        build = build_deferred if placed.sharded else _at_once
        model, weights = build(config, components, VOCABULARY)
        numbers = sum(parameter.numel() for parameter in model.parameters())
        planned = start_bytes(model, totals(model), Sharding(placed.strategy, ranks.world_size, ranks.world_size))
        harness = Harness(config, model, ranks, placed.sharded, weights)
        trainer.fit(harness, DataLoader([0]))  # type: ignore[arg-type]  # never read
    return {**measure.found, "planned": planned, "model": 4 * numbers}


def _at_once(config: RunConfig, components: Components, vocabulary: int) -> tuple[UnifiedModel, dict[str, Any]]:
    return build_model(config, components, vocabulary), {}


def started(folder: Path, ranks: int) -> dict[str, float]:
    """GB of the processes of one start: of the one that took most. Raises UserError when one of them fails."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    group = {"TORCHELASTIC_RUN_ID": "none", "GROUP_RANK": "0", "GROUP_WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1"}
    group |= {"MASTER_PORT": port, "WORLD_SIZE": str(ranks), "LOCAL_WORLD_SIZE": str(ranks)}
    command = [sys.executable, "-m", "tunalab.bench.start_up", str(folder)]
    processes = [
        subprocess.Popen(
            command,
            env={**os.environ, **group, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            encoding="utf-8",
        )
        for rank in range(ranks)
    ]
    printed = [process.communicate() for process in processes]
    for rank, (process, (_, errors)) in enumerate(zip(processes, printed, strict=True)):
        if process.returncode:
            last = " / ".join(errors.strip().splitlines()[-3:])
            raise UserError(f"a start on {ranks} process(es) failed: rank {rank} ended with {process.returncode}: {last}")
    found = [json.loads(out.splitlines()[-1]) for out, _ in printed]
    return {name: max(one[name] for one in found) / GB for name in found[0]}


def line(points: Sequence[Mapping[str, float]], what: str) -> tuple[float, float]:
    """GB for each GB of the model, and GB besides."""
    slope, besides = np.polyfit([point["model"] for point in points], [point[what] for point in points], 1)
    return float(slope), float(besides)


def bench_start_up(sizes: Sequence[float] = SIZES, ranks: Sequence[int] = RANKS) -> dict[str, Any]:
    """Of every number of processes: GB at each size of the model, and the lines through them."""
    found: dict[str, Any] = {}
    with TemporaryDirectory() as temporary:
        folders = [Path(temporary) / str(size) for size in sizes]
        for folder, size in zip(folders, sizes, strict=True):
            write_decoder(folder, size)
        for number in ranks:
            points = [started(folder, number) for folder in folders]
            (filled, besides), (averaged, _) = line(points, "filled"), line(points, "averaged")
            found[str(number)] = {
                "starts": points,
                "filled_per_gb": filled,
                "averaged_per_gb": averaged,
                "besides_gb": besides,
                "required_per_gb": (1 + SPARE) / number,
            }
    return {"processes": found}


if __name__ == "__main__":
    print(json.dumps(start(Path(sys.argv[1]))), flush=True)
    # What was to be measured is printed. To take the interpreter down while threads of a process group still end is a race that
    # PyTorch loses now and then ("terminate called without an active exception").
    os._exit(0)
