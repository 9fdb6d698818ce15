"""A setting acts from where its declaration says, and not before: until there weights are equal, bit for bit.

One run for all settings of a kind, each at another value than in the run they are compared with.
"""

import hashlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.training.conftest import MIX, quick_config
from tunalab.data.documents import Question
from tunalab.settings.declaration import NAME
from tunalab.settings.schema import SETTINGS, BenchmarkConfig
from tunalab.training import run
from tunalab.training.joint import JointStep
from tunalab.training.module import Harness
from tunalab.training.optimisation import masks

STAGES: dict[str, Any] = {
    "first": {"tokens": 800, "mix": MIX},
    "second": {"tokens": 1200, "masking": True, "mix": MIX},
}
# Key -> another value. NAME stands for the second stage, and for a benchmark.
NEVER: dict[str, Any] = {
    "experiment": "another",
    "variant": "another",
    "label": "Another",
    "colour": "#123456",
    "checkpoint_seconds": 0.0,
    "keep_checkpoints": 1,
    "checkpoint_keep": [600],
    "data.full_digests": True,
    "data.reject_share": 0.5,
    "data.unfit_share": 0.9,
    "start.accept_changed_data": True,
    "sampling.method": "euler",
    "sampling.steps": 3,
    "sampling.guidance": 1.5,
    "sampling.negative_prompt": "a grey square",
    "sampling.edit_guidance": 1.5,
    "sampling.grid": "points",
    "sampling.shift": 2.0,
    "sampling.clamp": "official",
    "evaluation.points": 3,
    "evaluation.first": 0.2,
    "evaluation.levels": [2],
    "evaluation.groups": 2,
    "evaluation.easy_vqa": 1,
    "evaluation.max_answer_tokens": 2,
    "evaluation.loss_documents": 2,
    "evaluation.loss_split": "train",
    "evaluation.psnr_images": 1,
    "evaluation.psnr_times": [0.3, 0.6],
    "evaluation.sample_prompts": 1,
    "evaluation.losses": {"own": "scenes/edit"},
    "evaluation.keep_points": "all",
    "evaluation.benchmarks.NAME.name": f"{__name__}:Blank",
    "evaluation.benchmarks.NAME.path": "questions/q.jsonl",
    "evaluation.benchmarks.NAME.root": "pictures",
    "evaluation.benchmarks.NAME.rule": "contains",
    "evaluation.benchmarks.NAME.limit": 2,
    "evaluation.benchmarks.NAME.arguments": {"count": 3},
    "evaluation.benchmarks.NAME.task": "scene_prompts",
    "evaluation.benchmarks.NAME.rules": "stock",
    "evaluation.benchmarks.NAME.scorer": "detector",
    "evaluation.benchmarks.NAME.clip": "clip",
    "evaluation.benchmarks.NAME.steps": 3,
    "evaluation.asked": "later",
    "tracking.enabled": True,
    "tracking.uri": "sqlite:///none.db",
    "tracking.system_metrics": False,
    "tracking.experiment": "another",
    "tracking.parent_run": "1",
    "tracking.sweep": "another",
}
MASKING: dict[str, Any] = {
    "objective.masking.ratio": 0.9,
    "objective.masking.law": "fixed",
    "objective.masking.probability": 1.0,
    "objective.masking.start": 0.7,
    "objective.masking.understanding": False,
    "objective.masking.generation": False,
}
STAGE: dict[str, Any] = {
    "stages.NAME.tokens": 900,
    "stages.NAME.lr": 1e-4,
    "stages.NAME.train": "connector",
    "stages.NAME.masking": False,
    "stages.NAME.schedule": "wsd",
    "stages.NAME.final_lr": 0.5,
    "stages.NAME.cooldown": 0.5,
    "stages.NAME.mix": {"scenes/text": 1.0, "scenes/caption": 0.5},
}


# Of a benchmark: which of three has it, a file of questions, a task, or (second) a class.
OF_BENCHMARK = dict.fromkeys(("path", "root", "rule"), "file") | dict.fromkeys(
    ("task", "rules", "scorer", "clip", "steps"), "pictures"
)


@dataclass
class Course:
    """Of every step: a digest of the weights after it, whether it masks, its stage."""

    weights: list[str] = field(default_factory=list)
    masked: list[bool] = field(default_factory=list)
    stages: list[str] = field(default_factory=list)


class Blank:
    """A benchmark from outside."""

    chance = 0.5

    def __init__(self, image_size: int, count: int) -> None:
        self.side, self.count = image_size, count

    def questions(self) -> list[Question]:
        return [Question(np.zeros((self.side, self.side, 3), np.uint8), "is it black?", "yes", n) for n in range(self.count)]


class NoTracker:
    """Hears everything and sends nothing."""

    def __init__(self, *_: Any, **__: Any) -> None: ...
    def __getattr__(self, name: str) -> Any:
        return lambda *_, **__: None


def trained(folder: Path, others: dict[str, Any] | None = None) -> Course:
    config = quick_config("tuna_r", stages=STAGES, objective__masking__start=0.5)
    asked = {"second": BenchmarkConfig(), "file": BenchmarkConfig(), "pictures": BenchmarkConfig(limit=6)}
    config.evaluation.benchmarks = asked if others and NEVER.keys() >= others.keys() else {}
    for key, value in (others or {}).items():
        ending = key.rpartition(".")[2]
        *path, last = key.replace(NAME, OF_BENCHMARK.get(ending, "second")).split(".")
        node: Any = config
        for name in path:
            node = node[name] if isinstance(node, dict) else getattr(node, name)
        assert getattr(node, last) != value, key
        setattr(node, last, value)
    course, step_of_harness = Course(), Harness.training_step

    def training_step(self: Harness, step: JointStep, index: int) -> Any:
        result = step_of_harness(self, step, index)
        digest = hashlib.sha256()
        for parameter in self.learnt().values():
            digest.update(parameter.detach().numpy().tobytes())
        course.weights.append(digest.hexdigest())
        stage = config.stages[step.stage]
        course.masked.append(masks(config.objective.masking, stage, step.stage_progress))
        course.stages.append(step.stage)
        return result

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Harness, "training_step", training_step)
        patch.setattr(run, "Tracker", NoTracker)
        assert run.train(config, folder) == 0
    return course


@pytest.mark.slow
def test_settings_act_from_where_they_are_declared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for folder in ("questions", "pictures"):
        (tmp_path / folder).mkdir()
    Image.new("RGB", (32, 32)).save(tmp_path / "pictures/black.png")
    (tmp_path / "questions/q.jsonl").write_text('{"image": "black.png", "question": "is it black?", "answer": "yes"}\n')
    for acts, others in (("never", NEVER), ("masking", MASKING), ("stage", STAGE)):
        assert {key for key, one in SETTINGS.items() if one.acts == acts} == set(others)
    plain = trained(tmp_path / "plain")
    # An evaluation and a checkpoint in the middle of each stage, other pictures, another solver.
    for number, without in enumerate(({"evaluation.asked"}, set())):  # a run that leaves benchmarks to others asks none
        never = trained(tmp_path / f"never{number}", {key: value for key, value in NEVER.items() if key not in without})
        assert never.weights == plain.weights and len(set(plain.weights)) == len(plain.weights)
    masking = trained(tmp_path / "masking", MASKING)
    at = plain.masked.index(True)  # of both the earlier start
    assert plain.stages[at - 1] == "second" and masking.masked.index(True) > at
    assert masking.weights[:at] == plain.weights[:at] and masking.weights[at] != plain.weights[at]
    stage = trained(tmp_path / "stage", STAGE)
    at = plain.stages.index("second")
    assert at > 1 and stage.stages[: at + 1] == plain.stages[: at + 1]
    assert stage.weights[:at] == plain.weights[:at] and stage.weights[at] != plain.weights[at]
