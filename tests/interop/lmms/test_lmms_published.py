"""Every benchmark end to end through lmms-eval, without network. `make test-lmms` runs them; the extra ``lmms`` is 0.7 GB."""

import random
import socket
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import ImageFile
from tests.interop.lmms.conftest import picture, rows, table

from tunalab.data.tokenizer import Tokenizer
from tunalab.errors import UserError
from tunalab.evaluation.measure import Measure
from tunalab.evaluation.parts import EvaluationSettings, PublishedSettings
from tunalab.evaluation.published import BENCHMARKS, RULED, RULES, read_letter
from tunalab.evaluation.subject import Subject
from tunalab.evaluation.whole import evaluate_parts
from tunalab.interop.endpoint import KEY, MODEL, URL, Endpoint, NoAnswer
from tunalab.interop.lmms import asking
from tunalab.interop.lmms.published import pieces, write_ready
from tunalab.interop.lmms.scores import measures, mmmu, read_score
from tunalab.verification.scorers import DRAWN, golden_replies

pytestmark = pytest.mark.lmms

Copy = Callable[[str], Path]


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(autouse=True)
def no_network(cache: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Also a try whose failure a library hides is a failure here."""
    tried: list[object] = []

    def refuse(*words: object, **_: object) -> None:
        tried.append(words)
        raise OSError("no network in tests")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setenv("LMMS_EVAL_DATASETS_CACHE", str(cache))
    yield
    assert tried == []


@pytest.fixture
def says(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[tuple[str, int]]]:
    """``says(*replies)``: the model gives them in turn; returned is what it was asked, and of how many tokens."""

    def install(*replies: str) -> list[tuple[str, int]]:
        requests: list[tuple[str, int]] = []

        def answer_ids(
            model: object, tokenizer: Tokenizer, questions: Sequence[tuple[np.ndarray | None, str]], limit: int, batch_tokens: int
        ) -> list[list[int]]:
            assert all(image is not None and image.shape == (32, 32, 3) for image, _ in questions)
            start = len(requests)
            requests.extend((text, limit) for _, text in questions)
            return [tokenizer.encode(reply) for reply in replies[start : len(requests)]]

        monkeypatch.setattr(asking, "answer_ids", answer_ids)
        return requests

    return install


def judged_by(monkeypatch: pytest.MonkeyPatch, ask: Callable[[str], str]) -> None:
    for name, value in {URL: "http://127.0.0.1:9/v1", KEY: "key", MODEL: "judge"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(Endpoint, "ask", lambda endpoint, text, images, whole: ask(text))


def one(subject: Subject, data: Path, task: str, **settings: Any) -> Measure:
    (piece,) = pieces(PublishedSettings(data=str(data), tasks=[task], **settings))
    return piece.measure(subject)[0]


# Task, tokens of a reply, then a reply an item (right, wrong, malformed) and what it counts.
CASES: list[tuple[str, int, list[str], list[int]]] = [
    ("gqa", 16, ["Yes.", "a car"], [1, 0]),
    ("realworldqa", 16, ["A", "0."], [1, 1]),
    ("realworldqa", 16, ["(B) Right", ""], [0, 0]),
    ("mmmu_val", 128, ["(A)", "The answer is 7"], [1, 1]),
    ("mmmu_val", 128, ["B", "8"], [0, 0]),
    ("mmvp", 16, ["A", "(B)", "A", "A"], [1, 1, 0, 1]),
    ("mmvp", 16, ["(B)", "?", "", "no"], [0, 0, 0, 0]),
    ("seedbench_2_plus", 16, ["B", "A", "?"], [1, 0, 0]),
    ("ai2d", 16, ["B. root", "leaf"], [1, 0]),
    ("chartqa", 16, ["14.5", "Africa"], [1, 0]),
    ("chartqa", 16, ["15", "asia"], [0, 1]),
    ("ocrbench", 128, ["the Centre", "x"], [1, 0]),
    ("ocrbench", 128, ["", "x^2"], [0, 1]),
    ("vstar_bench", 16, ["A", "I see nothing"], [1, 0]),
    ("countbench", 16, ["five", "3"], [1, 0]),
    ("visulogic", 64, ["The answer is A", "D"], [1, 0]),
    ("visulogic", 64, ["", "\\boxed{C}"], [0, 1]),
]

# By the paper's rules, where there are two.
PUBLISHED_ITEMS = {
    ("realworldqa", (1, 1)): [1, 1],
    ("realworldqa", (0, 0)): [0, 0],
    ("mmmu_val", (1, 1)): [1, 0],
    ("mmmu_val", (0, 0)): [0, 0],
    ("ocrbench", (1, 0)): [1, 0],
    ("ocrbench", (0, 1)): [0, 1],
}


@pytest.mark.parametrize(("task", "limit", "replies", "items"), CASES, ids=[f"{case[0]}{case[3]}" for case in CASES])
def test_right_wrong_and_malformed_replies(subject, copy, says, task, limit, replies, items):
    requests = says(*replies)
    found = one(subject, copy(task), task, rules="stock")
    assert found.benchmark == BENCHMARKS[task].title and found.items == items and found.n == len(items)
    assert [tokens for _, tokens in requests] == [limit] * len(items)


@pytest.mark.parametrize(("task", "limit", "replies", "items"), CASES, ids=[f"{case[0]}{case[3]}" for case in CASES])
def test_both_rules_of_one_set_of_replies(subject, copy, says, task, limit, replies, items):
    """On nine benchmarks there is one rule; on three the paper's stands before that of 0.7.3, and the model is run once."""
    requests = says(*replies)
    (piece,) = pieces(PublishedSettings(data=str(copy(task)), tasks=[task]))
    first, *further = piece.measure(subject)
    assert [tokens for _, tokens in requests] == [limit] * len(items)
    if task not in RULED:
        assert first.metric == "accuracy" and first.items == items
        return
    (stock,) = further
    assert stock.metric == "accuracy (stock rules)" and stock.items == items
    assert first.metric == "accuracy (published rules)" and first.items == PUBLISHED_ITEMS[task, tuple(items)]


def test_stock_scores_of_the_golden_replies_are_those_of_the_installed_lmms_eval(monkeypatch):
    """By the functions that its tasks name; with it the rule of letters that both share, on random replies."""
    from lmms_eval.tasks._task_utils import mmmu_mcq_utils
    from lmms_eval.tasks.ocrbench.utils import ocrbench_process_results
    from lmms_eval.tasks.realworldqa.utils import realworldqa_process_results

    drawn: list[object] = []
    monkeypatch.setattr(mmmu_mcq_utils.random, "choice", lambda letters: drawn.append(letters) or letters[0])
    scored = {
        "mmmu_val": lambda doc, reply: mmmu(doc, [reply])["mmmu_acc"]["score"],
        "ocrbench": lambda doc, reply: ocrbench_process_results(doc, [reply])["ocrbench_accuracy"]["score"],
        "realworldqa": lambda doc, reply: realworldqa_process_results(doc, [reply])["exact_match"],
    }
    different = []
    for task, doc, reply, by_rules in golden_replies():
        drawn.clear()
        score = scored[task](doc, reply)
        if (DRAWN if drawn else score) != by_rules["stock"]:
            different.append((task, doc, reply, score))
    assert different == []
    generator = random.Random(0)
    words = [
        "A",
        "B",
        "(A)",
        "(C",
        "C.",
        "B)",
        "D:",
        "a cat",
        "the dog",
        "B cells",
        "12 m",
        "so",
        "it is",
        ".",
        "'",
        "\n",
        "not",
        "surely",
    ]
    options = ["a cat", "the dog", "B cells", "12 m"]
    for _ in range(3000):
        reply = generator.choice(["", " "]).join(generator.choices(words, k=generator.randint(0, 8)))
        drawn.clear()
        letter = mmmu_mcq_utils.parse_mmmu_multi_choice_response(reply, list("ABCD"), dict(zip("ABCD", options)))
        assert read_letter(reply, options) == (None if drawn else letter), reply


@pytest.mark.parametrize("task", list(BENCHMARKS))
def test_a_tiny_model_end_to_end(subject, copy, monkeypatch, task):
    judged_by(monkeypatch, lambda text: "0.0")
    found = one(subject, copy(task), task)
    assert found.n == len(rows().get(task, "AC")) and 0 <= found.value <= 1 and found.failures == 0


def test_a_task_that_fails_costs_no_other_and_is_measured_when_it_can_be(subject, copy, says):
    data = copy("ai2d")
    copy("mmvp")
    replies = says("B. root", "leaf")
    settings = EvaluationSettings(published=PublishedSettings(data=str(data), tasks=["gqa", "ai2d"]))
    recorded: list[str] = []

    def evaluate() -> tuple[list[str], dict[str, str]]:
        results, errors = evaluate_parts(
            subject, settings, ["published"], lambda text: None, lambda result: recorded.append(result.part)
        )
        return [result.part for result in results], errors

    done, errors = evaluate()
    assert (
        done == recorded == ["published-ai2d"]
        and list(errors) == ["published-gqa"]
        and "has no folder gqa" in errors["published-gqa"]
    )
    settings.published.tasks = ["ai2d", "mmvp"]
    says(*"ABAA")
    assert evaluate() == (["published-ai2d", "published-mmvp"], {}) and len(replies) == 2, "ai2d is not asked again"


SCORES = [
    "0.5",
    " 1.0\n",
    "0 because",
    "Score: 1",
    "0.5\n because",
    "0.5\nbecause",
    "0.5.",
    "1e-1",
    "+.3 ",
    "50%",
    "\t0.2\tgood",
    "1",
    ".",
]


@pytest.mark.parametrize("answer", SCORES)
def test_a_judges_score_is_read_as_by_the_stock_task(answer, monkeypatch):
    """What that task cannot read it asks for again, and counts 0 at last."""
    monkeypatch.setenv("API_TYPE", "dummy")
    from lmms_eval.tasks.mmvet import utils

    monkeypatch.setattr(utils, "get_chat_response", lambda prompt, temperature: (answer.strip(), "judge"))
    monkeypatch.setattr(utils.time, "sleep", lambda seconds: None)
    doc = {"question_id": "v1_0", "question": "?", "answer": "7", "capability": "ocr"}
    stock = utils.mmvet_process_results(doc, ["7"])["gpt_eval_score"]["score"]
    assert stock == (read_score(answer) or 0.0)


@pytest.mark.parametrize("rules", RULES)
def test_mmvet_asks_the_judge_and_counts_its_failures(subject, copy, says, monkeypatch, rules):
    requests = says("x = -1", "x = 3", "hm")

    def ask(text: str) -> str:
        assert "What is x? | -1 <AND> -5 | " in text
        if "| x = 3 |" in text.splitlines()[-1]:
            raise NoAnswer("timeout")
        return "0.5" if "| x = -1 |" in text.splitlines()[-1] else "no idea"

    judged_by(monkeypatch, ask)
    found = one(subject, copy("mmvet"), "mmvet", rules=rules)
    assert found.value == 0.5 and found.n == 1 and found.failures == 2 and found.note == "judged by judge"
    assert requests[0][1] == 1024 and requests[0][0].endswith("What is x?")


def test_a_judge_that_cannot_be_asked_is_one_line(subject, copy, says, monkeypatch):
    def ask(text: str) -> str:
        raise UserError("the judge judge at http://127.0.0.1:9/v1 cannot be asked: no such model")

    says("a", "b", "c")
    judged_by(monkeypatch, ask)
    with pytest.raises(UserError, match="^the judge judge at .* cannot be asked: no such model$"):
        one(subject, copy("mmvet"), "mmvet")
    for name in (URL, KEY, MODEL):
        monkeypatch.delenv(name)
    with pytest.raises(UserError, match=f"not set: {URL}, {KEY}, {MODEL}$"):
        one(subject, subject.folder.parent / "data", "mmvet")


def test_limit_and_pairs(subject, copy, says):
    says("A", "B", "?")
    (piece,) = pieces(PublishedSettings(data=str(copy("mmvp")), tasks=["mmvp"], limit=3))
    questions, pairs = piece.measure(subject)
    assert questions.items == [1, 1, 0] and pairs.items == [1]


def test_guesses_of_mmmu_are_the_same_every_time(subject, copy, says, tmp_path, monkeypatch):
    data = copy("mmmu_val")
    state = random.getstate()
    found = []
    for number in range(2):
        folder = tmp_path / f"{number}"
        folder.mkdir()
        says("?", "?")
        found.append(one(Subject(**{**vars(subject), "folder": folder}), data, "mmmu_val").items)
        random.random()
    assert found[0] == found[1]
    random.setstate(state)


def test_gqa_as_it_lies_on_the_hub(subject, tmp_path, says, monkeypatch):
    joined = rows()["gqa"]
    questions = [{name: value for name, value in row.items() if name != "image"} for row in joined]
    images = [{"id": row["imageId"], "image": row["image"]} for row in reversed(joined)]
    for kind, held in (("instructions", questions), ("images", images)):
        folder = tmp_path / "data" / "gqa" / f"testdev_balanced_{kind}"
        folder.mkdir(parents=True)
        table(held).to_parquet(folder / "testdev-00000-of-00001.parquet")
    shown: list[np.ndarray] = []

    def fit(image: Any, buckets: object) -> np.ndarray:
        shown.append(np.asarray(image))
        return np.zeros((32, 32, 3), np.uint8)

    monkeypatch.setattr(asking, "fit", fit)
    says("yes", "car")
    assert one(subject, tmp_path / "data", "gqa").items == [1, 1]
    for image, number in zip(shown, (1, 2), strict=True):
        reference = picture(1) if number == 1 else picture(2, 24, 40)
        np.testing.assert_array_equal(image, np.asarray(reference))


def test_a_copy_written_by_save_to_disk(subject, tmp_path, says):
    from datasets import DatasetDict

    DatasetDict({"test": table(rows()["chartqa"])}).save_to_disk(tmp_path / "data" / "chartqa")
    says("14", "Asia")
    assert one(subject, tmp_path / "data", "chartqa").items == [1, 1]


def test_data_of_another_form_is_one_line(subject, tmp_path):
    for task, column in (("chartqa", "question"), ("countbench", "image")):
        folder = tmp_path / "data" / task
        folder.mkdir(parents=True)
        held = [{name: value for name, value in row.items() if name != column} for row in rows()[task]]
        table(held).to_parquet(folder / "test-00000-of-00001.parquet")
        with pytest.raises(UserError, match=f"^{task}: .*{task} is no copy of {BENCHMARKS[task].source}: KeyError: '{column}'$"):
            one(subject, tmp_path / "data", task)
    (tmp_path / "data" / "ai2d").mkdir()
    with pytest.raises(UserError, match=r"^ai2d: .* is no copy of lmms-lab-encoder/ai2d: "):
        one(subject, tmp_path / "data", "ai2d")


def test_nothing_of_other_libraries_stays_changed(subject, copy, says):
    import huggingface_hub

    before = huggingface_hub.snapshot_download, huggingface_hub.constants.HF_HUB_OFFLINE, random.getstate()
    says("five", "2")
    one(subject, copy("countbench"), "countbench")
    assert before == (huggingface_hub.snapshot_download, huggingface_hub.constants.HF_HUB_OFFLINE, random.getstate())
    assert not ImageFile.LOAD_TRUNCATED_IMAGES


def test_the_program_of_lmms_eval_runs_the_ready_files_on_a_model_by_name(subject, copy, says, monkeypatch, tmp_path):
    from lmms_eval.evaluator import simple_evaluate
    from lmms_eval.models import get_model
    from lmms_eval.tasks import TaskManager

    from tunalab.interop.lmms import model as lmms

    assert get_model("tunalab") is lmms.TrainedModel  # through the entry point
    loaded = SimpleNamespace(model=subject.model, tokenizer=subject.tokenizer, config=subject.config, origin={})
    monkeypatch.setattr(lmms, "load", lambda path, device: loaded)
    write_ready(copy("countbench"), "countbench", tmp_path / "tasks")
    manager = TaskManager(include_path=str(tmp_path / "tasks"))  # beside the stock tasks, as the program does it
    says("five", "3")
    found = simple_evaluate(
        model="tunalab", model_args="run=runs/x", tasks=["countbench_local"], task_manager=manager, batch_size=1, limit=2
    )
    (accuracy,) = measures(found)
    assert accuracy.items == [1, 0] and accuracy.benchmark == "CountBench"
