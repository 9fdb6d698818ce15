"""The library: a trained model, runs and records in a few lines, and training by a Trainer of one's own."""

import json
import os
import re
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning
import numpy as np
import pandas as pd
import pytest
import torch
from lightning.pytorch.loggers import CSVLogger
from PIL import Image

import tunalab
from tests.training.conftest import MIX, quick_components, quick_config, use_quick_components
from tests.training.test_resume import assert_same
from tunalab.cli import main
from tunalab.errors import UserError
from tunalab.inference.images import read_input
from tunalab.library import LOCK_HELD, as_texts
from tunalab.settings.loading import to_plain
from tunalab.settings.schema import REVISION, RunConfig
from tunalab.training.checkpoints import learnt_weights, read_saved, read_whole

__all__ = ["quick_components", "use_quick_components"]
ROOT = Path(__file__).parents[1]
NOTHING = {"points": 1, "groups": 0, "easy_vqa": 0, "loss_documents": 0, "psnr_images": 0, "sample_prompts": 0}
CHANGES: dict[str, Any] = {
    "stages": {"pretrain": {"tokens": 700, "masking": True, "mix": MIX}},
    "sampling": {"method": "euler", "steps": 2, "guidance": 1.5},
    "evaluation": NOTHING,
}


def write_config(path: Path, config: RunConfig) -> None:
    plain = to_plain(config)
    plain = {key: value for key, value in plain.items() if key not in ("experiment", "variant")}
    path.write_text(json.dumps(plain))  # which is YAML


@pytest.fixture(scope="module")
def study(quick_components: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an experiment ``small``, a variant ``mine``, and the run of them, ``run``, with its progress."""
    folder = tmp_path_factory.mktemp("study")
    (folder / "experiments").mkdir()
    (folder / "variants").mkdir()
    (folder / "variants" / "mine.yaml").write_text("{}")
    write_config(folder / "experiments" / "small.yaml", quick_config("tuna", **CHANGES))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TUNALAB_COMPONENTS", str(quick_components))
        patch.chdir(folder)
        steps: list[tuple[int, int, float]] = []
        record = tunalab.train(
            "small", "mine", {"seed": 3}, progress=lambda tokens, budget, losses: steps.append((tokens, budget, losses["text"]))
        )
        tunalab.load("runs/small/mine-seed3").save_pretrained("export")
    assert record.run.finished and record.run.seed == 3 and record.config["revision"] == REVISION
    assert len(steps) == record.totals.steps and steps[-1][:2] == (record.totals.tokens, 700)
    (folder / "run").symlink_to(folder / "runs" / "small" / "mine-seed3")
    return folder


@pytest.fixture(scope="module")
def model(study: Path) -> tunalab.Model:
    return tunalab.load(str(study / "export"))


def photo(seed: int = 0, height: int = 40, width: int = 50) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def forms(tmp_path: Path) -> dict[str, Any]:
    """One picture in every form that an image may have."""
    picture = photo()
    picture.save(tmp_path / "photo.png")
    array = np.asarray(picture)
    tensor = torch.from_numpy(array.copy()).permute(2, 0, 1)
    return {
        "path": tmp_path / "photo.png",
        "str": str(tmp_path / "photo.png"),
        "PIL": picture,
        "RGBA": picture.convert("RGBA"),
        "array": array,
        "array of real numbers": array / 255,
        "tensor": tensor,
        "tensor of real numbers": tensor.float() / 255,
    }


def test_an_image_is_the_same_in_every_form(tmp_path: Path, model: tunalab.Model) -> None:
    from tunalab.inference.images import input_buckets

    buckets = input_buckets(model.config.data, None)
    read = {name: read_input(image, buckets) for name, image in forms(tmp_path).items()}
    assert read["path"].shape == (32, 32, 3)
    for name, pixels_HWC in read.items():
        np.testing.assert_array_equal(pixels_HWC, read["path"], err_msg=name)
    grey = photo().convert("L")
    np.testing.assert_array_equal(read_input(np.asarray(grey), buckets), read_input(grey, buckets))
    turned = photo()
    turned.getexif()[0x0112] = 6
    np.testing.assert_array_equal(read_input(turned, buckets), read_input(photo().transpose(Image.Transpose.ROTATE_270), buckets))
    for wrong, word in (
        (np.full((4, 4, 3), 2.0), "from 2 to 2"),
        (np.zeros((4, 4, 4), dtype=np.uint8), r"\(4, 4, 4\)"),
        (torch.zeros(4, 4, 3), r"tensor \(3, H, W\)"),
        (7, "type int"),
    ):
        with pytest.raises(UserError, match=word):
            read_input(wrong, buckets)  # type: ignore[arg-type]


def test_ask_one_and_many(tmp_path: Path, model: tunalab.Model) -> None:
    pictures = [photo(seed) for seed in (0, 1)]
    questions = ["what is it?", "how many circles?"]
    single = [model.ask(picture, question, max_tokens=5) for picture, question in zip(pictures, questions, strict=True)]
    assert all(isinstance(answer, str) for answer in single)
    assert model.ask(pictures, questions, max_tokens=5) == single
    stack = np.stack([np.asarray(picture) for picture in pictures])
    assert model.ask(stack, questions, max_tokens=5) == single
    assert model.ask(pictures[0], questions, max_tokens=5)[0] == single[0]
    assert model.ask(pictures, questions[1], max_tokens=5)[1] == single[1]
    assert model.ask(list(forms(tmp_path).values()), questions[0], max_tokens=5) == [single[0]] * 8
    assert isinstance(model.ask(None, "what is a circle?", max_tokens=3), str)
    with pytest.raises(UserError, match="2 images and 3 questions"):
        model.ask(pictures, ["a", "b", "c"])
    with pytest.raises(UserError, match="no question: the list is empty"):
        model.ask(pictures, [])


def test_generate_and_edit_make_what_the_commands_make(tmp_path: Path, study: Path, model: tunalab.Model) -> None:
    folder = str(study / "export")
    call = [folder, "--n", "2", "--seed", "7", "--guidance", "2.5", "--steps", "3", "--size", "16x32"]
    assert main(["generate", *call, "a red circle", "a blue one", "--out", str(tmp_path / "made")]) == 0
    made = model.generate(["a red circle", "a blue one"], n=2, seed=7, guidance=2.5, steps=3, size="16x32")
    assert [image.size for image in made] == [(32, 16)] * 4 and len({image.tobytes() for image in made}) == 4
    files = sorted((tmp_path / "made").glob("*.png"))
    assert [Image.open(file).tobytes() for file in files] == [image.tobytes() for image in made]
    assert model.generate("a blue one", seed=8, guidance=2.5, steps=3, size="16x32")[0].tobytes() == made[3].tobytes()

    photo().save(tmp_path / "photo.png")
    photograph = str(tmp_path / "photo.png")
    assert main(["edit", folder, photograph, "make it blue", "--seed", "4", "--out", str(tmp_path / "edit")]) == 0
    edited = model.edit(photo(), "make it blue", seed=4)
    assert isinstance(edited, Image.Image)
    assert edited.tobytes() == Image.open(tmp_path / "edit" / "0001-seed4.png").tobytes()
    both = model.edit([photo(), photo(1)], "make it blue", seed=4)
    assert isinstance(both, list) and both[0].tobytes() == edited.tobytes() != both[1].tobytes()


def test_a_mistake_is_one_line_without_dashes(model: tunalab.Model, study: Path) -> None:
    mistakes: dict[str, Callable[[], object]] = {
        "n=0 is out of range (from 1)": lambda: model.generate("a", n=0),
        "n=2.5 is no whole number": lambda: model.generate("a", n=2.5),  # type: ignore[arg-type]
        "steps='4' is no whole number": lambda: model.generate("a", steps="4"),  # type: ignore[arg-type]
        "guidance='a' is no number": lambda: model.generate("a", guidance="a"),  # type: ignore[arg-type]
        "no text: the list is empty": lambda: model.generate([]),
        "the text 3 is no text": lambda: model.generate([3]),  # type: ignore[list-item]
        "the text 'a\\ud800' is not text in UTF-8": lambda: model.generate("a\ud800"),
        "the question 'a\\ud800' is not text in UTF-8": lambda: model.ask(photo(), "a\ud800"),
        "max_tokens=-1 is out of range (from 1)": lambda: model.ask(photo(), "a", max_tokens=-1),
        "seed=-1 is out of range": lambda: model.generate("a", seed=-1),
        "guidance=-1 is out of range (from 0)": lambda: model.generate("a", guidance=-1),
        "sampler=ddim is not known (choices: euler, heun)": lambda: model.generate("a", sampler="ddim"),
        "size 30x32 is not cut exactly": lambda: model.generate("a", size="30x32"),
        "n is not for edits": lambda: model.edit(photo(), "a", n=2),
        "image is None": lambda: model.edit(None, "a"),  # type: ignore[arg-type]
        "nothing.png: no such image file": lambda: model.ask("nothing.png", "a"),
        "does not occur in the question": lambda: model.attention(photo(), "a circle", "square"),
        "layer 9 is not there": lambda: model.attention(photo(), "a circle", layer=9),
        "device=tpu is not there": lambda: tunalab.load((study / "export"), device="tpu"),
        "no such folder": lambda: tunalab.load("nowhere"),
    }
    for words, call in mistakes.items():
        with pytest.raises(UserError) as caught:
            call()
        assert words in str(caught.value) and "--" not in str(caught.value) and "\n" not in str(caught.value)


def test_attention_is_an_array_and_an_overlay(model: tunalab.Model) -> None:
    map_RK, overlay = model.attention(photo(), "circle")
    assert map_RK.shape == (4, 4) and 0 < map_RK.sum() < 1 and isinstance(overlay, Image.Image) and overlay.size == (192, 192)
    within = model.attention(photo(), "a red circle", word="red")
    assert within.heads_YAT.shape[:2] == (2, model.config.decoder.heads) and within.heads_YAT.shape[2] == 16
    one = model.attention(photo(), "a red circle", word="red", layer=1, head=0)
    np.testing.assert_array_equal(one.map_RK.ravel(), within.heads_YAT[1, 0])


def test_a_model_is_saved_from_a_run_and_from_an_export(study: Path, tmp_path: Path, model: tunalab.Model) -> None:
    """With a frozen VAE: what is saved again from an export needs neither the run nor its components."""
    assert "patch" in repr(model) or "vae" in repr(model)
    tunalab.load(study / "run").save_pretrained(tmp_path / "first")
    tunalab.load(tmp_path / "first").save_pretrained(str(tmp_path / "second"))
    names = [sorted(path.name for path in folder.iterdir()) for folder in (tmp_path / "second", study / "export")]
    assert names[0] == names[1]
    again = tunalab.load(tmp_path / "second")
    assert again.identity == model.identity
    for image, other in zip(model.generate("a ring", n=2), again.generate("a ring", n=2), strict=True):
        assert image.tobytes() == other.tobytes()
    with pytest.raises(UserError, match="second is there already"):
        again.save_pretrained(tmp_path / "second")


def test_train_goes_on_and_refuses(study: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(study)
    threads = torch.get_num_threads()
    again = tunalab.train("small", "mine", ["seed=3"])
    assert again == tunalab.records(study / "run")[0] and torch.get_num_threads() == threads
    with pytest.raises(UserError, match="holds a run with other settings"):
        tunalab.train("small", "mine", {"seed": 4}, run_dir="run")
    with pytest.raises(UserError, match="decoder.widht"):
        tunalab.train("small", "mine", {"decoder.widht": 4})


def test_settings_as_a_mapping() -> None:
    given = {
        "seed": 1,
        "threads": True,
        "sampling.negative_prompt": "[a",
        "stages.sft.mix": {"scenes/vqa": 1.0},
        "data.levels": [1, 0, 0],
    }
    assert as_texts(given) == [
        "seed=1",
        "threads=true",
        'sampling.negative_prompt="[a"',
        'stages.sft.mix={"scenes/vqa": 1.0}',
        "data.levels=[1, 0, 0]",
    ]
    with pytest.raises(UserError, match="one text"):
        as_texts("seed=1")
    with pytest.raises(UserError, match="setting seed: .* is no number"):
        as_texts({"seed": object()})


def few(record: tunalab.Record) -> tunalab.Record:
    """Two points of two benchmarks."""
    points = [replace(point, benchmarks=dict(list(point.benchmarks.items())[:2])) for point in record.points[-2:]]
    return replace(record, points=points)


def test_records_show_the_benchmarks_that_are_asked_for(records):
    made = tunalab.Records(records(seeds=1), "here")
    some = made.only("ocr", "charts")
    assert {name for record in some for point in record.points for name in point.benchmarks} == {"ocr", "charts"}
    assert {axes.get_title(loc="left") for axes in some.figure("figure6").axes} == {"ocr (OCRBench)", "charts (ChartQA)"}
    with pytest.raises(UserError, match="no benchmark 'reading' along these runs, choices: relations, charts"):
        made.only("reading")


def test_records_are_a_tidy_frame_figures_and_tables(tmp_path: Path) -> None:
    records = tunalab.records(str(ROOT / "results" / "mask_ratio"))
    assert len(records) == 4 and isinstance(records[0], tunalab.Record) and len(records[1:]) == 3
    frame = records.frame()
    assert {"run", "variant", "seed", "objective.masking.ratio", "tokens", "measure", "name", "value", "low"} <= set(frame.columns)
    points = frame[frame["measure"] == "accuracy"]
    assert len(points) == sum(len(point.benchmarks) for record in records for point in record.points)
    assert points["value"].between(0, 1).all() and set(frame["measure"]) == {"accuracy", "loss", "psnr"}
    margins = tunalab.records(str(ROOT / "results" / "figure6_rates")).frame().query("measure == 'margin'")
    assert (
        {"charts", "pairs@2"} < set(margins["name"]) and "ocr" not in set(margins["name"]) and margins["value"].between(-8, 8).all()
    )
    assert sorted(set(points["objective.masking.ratio"])) == [0.0, 0.25, 0.5, 0.75]
    records = tunalab.Records([few(record) for record in records[:2]], records.source)  # which is drawn in a second
    figure: Any = records.figure("mask_ratio")
    assert figure.axes
    (written,) = records.figure("mask_ratio", tmp_path)
    assert written == tmp_path / "mask_ratio.png" and "results/mask_ratio" in Image.open(written).info["Description"]
    assert isinstance(records.table("accuracy"), pd.DataFrame) and len(records.table("cost")) == 2
    assert len(records.table("accuracy")) == 4
    for call, words in (
        (lambda: records.table("acuracy"), "unknown table 'acuracy', choices: accuracy"),
        (lambda: records.table("evaluation"), "no run of these records was evaluated"),
        (lambda: records.figure("figure7"), "unknown figure 'figure7'"),
        (lambda: tunalab.records(tmp_path / "nowhere"), "no records"),
    ):
        with pytest.raises(UserError, match=words):
            call()


def test_a_sweep_returns_its_records(study: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its runs, in processes of their own, are tests/sweeps/; here the ways around them."""
    import subprocess

    class InProcess:
        pid = 4711

        def __init__(self, argv: list[str], **_: object) -> None:
            self.returncode = main(argv[3:])

        def poll(self) -> int:
            return self.returncode

    stand_in = SimpleNamespace(Popen=InProcess, DEVNULL=subprocess.DEVNULL, STDOUT=subprocess.STDOUT)
    monkeypatch.setattr("tunalab.sweeps.local.subprocess", stand_in)
    monkeypatch.chdir(study)
    Path("sweeps").mkdir(exist_ok=True)
    sweep = {"experiment": "small", "variants": ["mine"], "seeds": [3], "factors": {"objective.masking.ratio": [0.0, 0.5]}}
    Path("sweeps/ratios.yaml").write_text(json.dumps(sweep))
    records = tunalab.sweep("ratios", variant="mine", parallel=1)
    assert sorted(record.run.mask_ratio for record in records) == [0.0, 0.5]
    assert LOCK_HELD not in os.environ
    with pytest.raises(UserError, match="parallel 0 is out of range"):
        tunalab.sweep("ratios", parallel=0)


@pytest.fixture
def quick() -> RunConfig:
    return quick_config("tuna2", **CHANGES)


def test_a_trainer_of_ones_own_takes_the_steps_of_a_run(quick: RunConfig, tmp_path: Path) -> None:
    from tunalab.training.run import train

    assert train(quick, tmp_path / "run") == 0
    (newest,) = (tmp_path / "run" / "checkpoints").iterdir()
    module, data = tunalab.Harness(quick), tunalab.DataModule(quick)
    trainer = own_trainer(tmp_path, max_epochs=1)
    trainer.fit(module, data)
    for raw, averages in ((True, module.state_dict()), (False, None)):
        for name, tensor in learnt_weights(newest, raw).weights.items():
            mine = averages[f"model.{name}"] if averages is not None else module.ema.shadow[name]
            assert torch.equal(tensor, mine), name
    rows = pd.read_csv(Path(trainer.logger.log_dir) / "metrics.csv")  # type: ignore[union-attr, arg-type]
    assert len(rows) == module.progress.steps > 1
    assert {"train/text", "train/flow", "train/learning_rate", "train/gradient_norm"} <= set(rows.columns)


def own_trainer(folder: Path, **how: Any) -> lightning.Trainer:
    logger = CSVLogger(folder, name="log", flush_logs_every_n_steps=1)
    return lightning.Trainer(accelerator="cpu", default_root_dir=folder, logger=logger, log_every_n_steps=1, **how)


def test_max_steps_and_lightnings_own_checkpoint(quick: RunConfig, tmp_path: Path) -> None:
    module, data = tunalab.Harness(quick), tunalab.DataModule(quick)
    trainer = own_trainer(tmp_path, max_steps=2)
    trainer.fit(module, data)
    assert trainer.global_step == module.progress.steps == 2
    trainer.save_checkpoint(tmp_path / "two.ckpt")
    other = tunalab.Harness(quick)
    own_trainer(tmp_path, max_steps=3).fit(other, tunalab.DataModule(quick), ckpt_path=tmp_path / "two.ckpt")
    assert other.progress.steps == 3 and other.ema.updates == 3


def test_callbacks_make_a_run_of_a_trainer_of_ones_own(quick: RunConfig, tmp_path: Path) -> None:
    """Stopped by a signal and made anew, it ends bit for bit as `tunalab train` does, with the same curve in its record."""
    from tunalab.training.run import train

    class Stop(lightning.Callback):
        def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
            if trainer.global_step == 2:
                os.kill(os.getpid(), signal.SIGTERM)

    config = replace(quick, evaluation=replace(quick.evaluation, points=2, loss_documents=2))
    assert train(config, tmp_path / "run") == 0
    folder, handler = tmp_path / "mine", signal.getsignal(signal.SIGTERM)
    for extra in ([Stop()], []):
        trainer = own_trainer(tmp_path, max_epochs=1, callbacks=[*extra, *tunalab.callbacks(config, folder)])
        module = tunalab.Harness(config)
        trainer.fit(module, tunalab.DataModule(config))
        assert (module.progress.steps == 2) == bool(extra) and signal.getsignal(signal.SIGTERM) is handler
    ours, theirs = (sorted((tmp_path / name / "checkpoints").iterdir())[-1] for name in ("run", "mine"))
    assert_same(*({**read_whole(place, ""), "saved": read_saved(place).lanes} for place in (ours, theirs)))
    records = [tunalab.records(tmp_path / name)[0] for name in ("run", "mine")]
    one, other = ([replace(point, seconds=0.0) for point in record.points] for record in records)
    assert one == other and len(one) == 2 and all(record.run.finished for record in records)
    assert len({(of.tokens, of.steps, of.images, of.flops) for of in (record.totals for record in records)}) == 1
    kept = [step.name for step in (folder / "checkpoints").iterdir()]
    first = tunalab.load(f"{folder}@{read_saved(folder / 'checkpoints' / min(kept)).progress['tokens']}")
    assert 0 < first.origin["steps"] < tunalab.load(folder).origin["steps"] == records[1].totals.steps
    with pytest.raises(UserError, match=r"mine keeps no checkpoint at 1 tokens \(kept: mine@\d+, mine@\d+\)"):
        tunalab.load(f"{folder}@1")
    with pytest.raises(UserError, match="holds a run with other settings .*seed"):
        other_config = replace(config, seed=config.seed + 1)
        trainer = own_trainer(tmp_path, callbacks=tunalab.callbacks(other_config, folder))
        trainer.fit(tunalab.Harness(other_config), tunalab.DataModule(other_config))


def test_several_processes_need_ranks(quick: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = tunalab.Harness(quick)
    module._trainer = type("Trainer", (), {"world_size": 2})()  # type: ignore[assignment]
    with pytest.raises(UserError, match="a Trainer of 2 processes, a Harness of 1"):
        module.on_fit_start()


def test_the_notebook_and_the_page_hold_what_works(study: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Cell by cell, with a study of its own in the place of the shipped one, which takes a minute; and every name of the page."""
    notebook = json.loads((ROOT / "examples" / "first_steps.ipynb").read_text(encoding="utf-8"))
    cells = ["".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert len(cells) >= 5 and not any(cell.get("outputs") for cell in notebook["cells"])
    for folder, name, source in (("experiments", "smoke", "small"), ("variants", "tuna2", "mine")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / f"{name}.yaml").write_text((study / folder / f"{source}.yaml").read_text())
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    for cell in cells:
        exec(compile(cell, "first_steps.ipynb", "exec"), names)
    assert names["record"].run.finished and len(names["circles"]) == 4 and names["map_RK"].shape == (4, 4)
    page = (ROOT / "docs" / "library.md").read_text(encoding="utf-8")
    assert set(re.findall(r"tunalab\.(\w+)\(", page)) <= set(tunalab.__all__)
    assert set(re.findall(r"model\.(\w+)\(", page)) <= set(dir(tunalab.Model))
    assert set(re.findall(r"records\.(\w+)\(", page)) <= set(dir(tunalab.Records))
