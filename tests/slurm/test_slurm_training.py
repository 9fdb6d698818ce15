"""Real cells on a real SLURM, requeued in the middle: what they have learnt is what an undisturbed run has learnt, bit for bit."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from tests.slurm.cluster import job_of, tell, wait_for

from tunalab.sweeps.cells import read_history

pytestmark = pytest.mark.slurm
ROOT = Path(__file__).parents[2]
SETTINGS = {
    "tracking.enabled": "false",
    "checkpoint_seconds": "3",
    "stages.connector.tokens": "3000",
    "stages.pretrain.tokens": "60000",
    "stages.sft.tokens": "3000",
    "evaluation.points": "1",
    "evaluation.groups": "4",
    "evaluation.easy_vqa": "4",
    "evaluation.sample_prompts": "0",
}
SWEEP = f"experiment: smoke\nvariants: [tuna2]\nseeds: [0]\noverrides: {{{', '.join(map(': '.join, SETTINGS.items()))}}}\n"
LAUNCH = "{launcher: slurm, nodes: NODES, minutes: 10, signal_seconds: 60, memory_gb: 4, poll_seconds: 0.5}\n"
TRAIN = ["-m", "tunalab", "train", "--experiment", "smoke", "--variant", "tuna2", "--run-dir", "runs/calm"]


@pytest.fixture
def checkout(tmp_path: Path, slurm: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("experiments", "variants"):
        (tmp_path / name).symlink_to(ROOT / name)
    (tmp_path / "sweeps" / "launch").mkdir(parents=True)
    (tmp_path / "sweeps" / "rough.yaml").write_text(SWEEP)
    monkeypatch.setenv("TUNALAB_COMPONENTS", str(ROOT / "components"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.timeout(1800)
@pytest.mark.parametrize("nodes", [1, 2])
def test_a_requeued_cell_learns_what_an_undisturbed_run_learns(checkout: Path, nodes: int) -> None:
    """On two nodes two processes train it together, in step."""
    (checkout / "sweeps" / "launch" / "quick.yaml").write_text(LAUNCH.replace("NODES", str(nodes)))
    calm, rough = checkout / "runs" / "calm", checkout / "runs" / "rough" / "tuna2-seed0"
    with (checkout / "driver.txt").open("w") as output:
        call = [sys.executable, "-m", "tunalab", "sweep", "rough", "--launch", "quick"]
        driver = subprocess.Popen(call, stdout=output, stderr=subprocess.STDOUT)
        started = [sys.executable] if nodes == 1 else [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
        reference = subprocess.Popen([*started, *TRAIN, *map("=".join, SETTINGS.items())], stdout=subprocess.DEVNULL)
        wait_for(lambda: any((rough / "checkpoints").glob("step-*")), seconds=900)
        tell("scontrol", "requeue", job_of(rough))
        assert reference.wait(timeout=900) == 0
        assert driver.wait(timeout=900) == 0, (checkout / "driver.txt").read_text()
    attempts = read_history(rough).attempts
    assert [attempt.how for attempt in attempts] == ["preempted", "finished"] and 0 < attempts[0].saved < attempts[1].saved
    assert learnt(rough) == learnt(calm)
    ranks = sorted(path.name for path in rough.glob("log-rank*.txt"))
    assert ranks == [f"log-rank{rank}.txt" for rank in range(1, nodes)]


def learnt(run_dir: Path) -> dict[str, object]:
    """What a run leaves behind but the time it took: totals, points, and (of one process: two share out a checkpoint's files
    as they like) the hash of its last weights and moments. Held-out losses stand in the points with all their digits.
    """
    record = json.loads((run_dir / "record.json").read_text())
    for part in (record["totals"], *record["points"]):
        for name in ("seconds", "peak_memory_bytes"):
            part.pop(name, None)
    last = sorted((run_dir / "checkpoints").glob("step-*"))[-1]
    files = json.loads((last / "manifest.json").read_text())["files"]
    weights = [entry["sha256"] for name, entry in files.items() if name.endswith(".safetensors")]
    assert weights and record["run"]["finished"] and record["points"][-1]["losses"]
    return {"totals": record["totals"], "points": record["points"], "weights": weights if len(weights) == 1 else "shared out"}
