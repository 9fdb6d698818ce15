"""The judge over a loopback server that speaks the OpenAI protocol as far as it is used."""

import base64
import io
import json
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tunalab.cli import main
from tunalab.errors import UserError
from tunalab.inference.images import read_settings, save_image
from tunalab.interop.endpoint import KEY, MODEL, URL, Endpoint
from tunalab.interop.judge import SMALLEST_SIDE, Place, compare, picture, read_folder, unequal

NAMES = ["red", "green", "blue"]
COLOURS = {"red": (250, 0, 0), "green": (0, 250, 0), "blue": (0, 0, 250)}
Judge = Callable[[str, list[np.ndarray]], str | int | tuple[int, dict]]


class Server(ThreadingHTTPServer):
    """``judge``: text and pictures to an answer, to an HTTP status, or to a status and a body."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.judge: Judge = lambda text, pictures: '{"best": "A"}'
        self.requests: list[str] = []
        self.parameters: list[dict[str, object]] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/v1"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_POST(self) -> None:
        requests = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        content = requests["messages"][0]["content"]
        text = content[0]["text"]
        self.server.requests.append(text)
        self.server.parameters.append({name: value for name, value in requests.items() if name not in ("model", "messages")})
        urls = [part["image_url"]["url"] for part in content if part["type"] == "image_url"]
        assert all(url.startswith("data:image/png;base64,") for url in urls)
        pictures = [np.asarray(Image.open(io.BytesIO(base64.b64decode(url.split(",")[1])))) for url in urls]
        answer = self.server.judge(text, pictures)
        if isinstance(answer, tuple):
            self.reply(*answer)
            return
        if isinstance(answer, int):
            self.reply(answer, {"error": {"message": "not today", "type": "x", "code": answer}})
            return
        if answer.startswith("raw "):
            self.reply(200, answer.removeprefix("raw "))
            return
        choice = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": answer}}
        usage = {"prompt_tokens": 100, "completion_tokens": 5, "total_tokens": 105}
        self.reply(200, {"id": "1", "object": "chat.completion", "created": 0, "model": "m", "choices": [choice], "usage": usage})

    def reply(self, status: int, plain: dict | str) -> None:
        body = (plain if isinstance(plain, str) else json.dumps(plain)).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        if status >= 400:
            self.send_header("retry-after-ms", "1")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *words: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as made:
        thread = threading.Thread(target=made.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        yield made
        made.shutdown()


@pytest.fixture
def endpoint(server, tmp_path) -> Endpoint:
    return Endpoint(server.url, "key", "judge-1", tmp_path / "answers", timeout=5, retries=1)


def images(candidate: int, prompt: int) -> np.ndarray:
    shade = np.array(COLOURS[NAMES[candidate]], dtype=np.uint8) - np.uint8(0)
    made = np.broadcast_to(shade, (2, 8, 8, 3)).copy()
    made[:, 0, 0] = prompt % 250  # no two prompts have the same picture
    return made


def likes(colour: str) -> Judge:
    def judge(text: str, pictures: list[np.ndarray]) -> str:
        means = [picture.reshape(-1, 3)[:, NAMES.index(colour)].mean() for picture in pictures]
        others = [picture.reshape(-1, 3).mean() for picture in pictures]
        best = int(np.argmax([mean - other for mean, other in zip(means, others, strict=True)]))
        return json.dumps({"best": "ABC"[best]})

    return judge


PROMPTS = [f"prompt {number}" for number in range(30)]


def test_the_better_one_wins_wherever_it_stands(server, endpoint):
    server.judge = likes("green")
    outcome = compare(endpoint, "quality", PROMPTS, images, NAMES)
    assert [rate.value for rate in outcome.rates] == [0, 1, 0]
    assert outcome.places == [[Place(10, 10 * (who == 1), 0)] * 3 for who in range(3)] and outcome.failures == 0
    assert outcome.rates[1].n == 30 and outcome.rates[1].split == ""
    assert endpoint.usage == {"asked": 30, "kept": 0, "prompt_tokens": 3000, "completion_tokens": 150}


def test_a_judge_that_looks_at_places_alone_finds_all_equal(server, endpoint):
    outcome = compare(endpoint, "quality", PROMPTS, images, NAMES)
    assert [rate.value for rate in outcome.rates] == pytest.approx([1 / 3] * 3)
    assert outcome.places == [[Place(10, 10, 0), Place(10, 0, 0), Place(10, 0, 0)]] * 3
    assert all(rate.low < 1 / 3 < rate.high for rate in outcome.rates)


def test_ties_are_shared(server, endpoint):
    server.judge = lambda text, pictures: '{"best": "tie"}'
    outcome = compare(endpoint, "diversity", PROMPTS, images, NAMES)
    assert outcome.ties == 30 and [rate.value for rate in outcome.rates] == pytest.approx([1 / 3] * 3)


def test_garbage_is_asked_again_then_counted_never_scored(server, endpoint):
    def judge(text: str, pictures: list[np.ndarray]) -> str:
        number = int(re.search(r"prompt (\d+)", text)[1])
        if number < 10:
            return "What lovely images!"
        if number < 20 and "could not be read" not in text:
            return "Hm."
        return likes("red")(text, pictures)

    server.judge = judge
    outcome = compare(endpoint, "quality", PROMPTS, images, NAMES)
    assert outcome.failures == 10 and [rate.failures for rate in outcome.rates] == [10] * 3
    assert [rate.n for rate in outcome.rates] == [20] * 3 and [rate.value for rate in outcome.rates] == [1, 0, 0]
    server.judge = lambda text, pictures: "no"
    with pytest.raises(UserError, match="no readable answer to any of 2 questions"):
        compare(endpoint, "quality", ["prompt 100", "prompt 101"], images, NAMES)


@pytest.mark.parametrize(
    "answer", ["raw <html>502</html>", "raw [1]", 'raw {"choices": [{}]}', 'raw {"choices": []}', "raw {", "", 400, 413]
)
def test_an_answer_that_is_none_is_a_failure_of_that_question(server, endpoint, answer):
    server.judge = lambda text, pictures: answer if "prompt 0" in text else likes("red")(text, pictures)
    outcome = compare(endpoint, "quality", PROMPTS[:3], images, NAMES)
    assert outcome.failures == 1 and outcome.rates[0].value == 1 and outcome.rates[0].n == 2 and outcome.rates[0].items == []


def answered(**message: object) -> tuple[int, dict]:
    ended = message.pop("ended", "stop")
    return 200, {"choices": [{"finish_reason": ended, "message": {"role": "assistant", **message}}]}


LOGIN = "raw <!doctype html><html><head><title>Sign in to\n the lab</title></head></html>"


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (answered(content=None, ended="length"), "an answer without text (finish_reason length)"),
        (answered(content="", ended="content_filter"), "an answer without text (finish_reason content_filter)"),
        (answered(content=None, refusal="I can't judge\npeople."), "refused: I can't judge people."),
        ((200, {"choices": [], "error": "busy"}), 'an answer without choices: \'{"choices": [], "error": "busy"}\''),
        ((200, {"choices": None}), "an answer without choices"),
        (LOGIN, "a web page 'Sign in to the lab' instead of an answer: a login page, or TUNALAB_JUDGE_URL is not"),
        ("raw [1]", "no answer of the protocol: '[1]'"),
        ("What lovely images!", "no candidate named in 'What lovely images!'"),
        ((429, {"error": {"message": "Rate limit reached", "code": "rate_limit_exceeded"}}), "Rate limit reached"),
        ((400, {"error": {"message": "image too large for k3y-of-mine"}}), "image too large for ***"),
    ],
)
def test_why_there_is_no_answer_stands_in_the_message(server, tmp_path, answer, reason):
    server.judge = lambda text, pictures: answer
    endpoint = Endpoint(server.url, "k3y-of-mine", "judge-1", tmp_path / "answers", timeout=5, retries=0)
    with pytest.raises(UserError, match="no readable answer to any of 2 questions: ") as error:
        compare(endpoint, "quality", PROMPTS[:2], images, NAMES)
    assert reason in str(error.value) and str(error.value).endswith("(2 times)") and "\n" not in str(error.value)


def unknown(name: str, instead: str = "") -> tuple[int, dict]:
    hint = f" Use '{instead}' instead." if instead else ""
    messages = {"message": f"Unsupported parameter: '{name}' is not supported with this model.{hint}", "param": name}
    return 400, {"error": messages | {"type": "invalid_request_error", "code": "unsupported_parameter"}}


FIXED = "Unsupported value: 'temperature' does not support 0 with this model. Only the default (1) value is supported."
FORBIDDEN = {"detail": [{"type": "extra_forbidden", "loc": ["body", "max_tokens"], "msg": "Extra inputs are not permitted"}]}


@pytest.mark.parametrize(
    ("refusals", "then", "said"),
    [
        ({}, {"temperature": 0, "max_tokens": 4096}, []),
        (
            {"max_tokens": unknown("max_tokens", "max_completion_tokens")},
            {"temperature": 0, "max_completion_tokens": 4096},
            ["max_tokens"],
        ),
        ({"temperature": (400, {"error": {"message": FIXED}})}, {"max_tokens": 4096}, ["temperature"]),
        (
            {"max_tokens": (422, FORBIDDEN), "max_completion_tokens": unknown("max_completion_tokens")},
            {"temperature": 0},
            ["max_tokens", "max_completion_tokens"],
        ),
        (
            {"temperature": (400, {"error": "temperature is not allowed"}), "max_tokens": unknown("max_tokens")},
            {"max_completion_tokens": 4096},
            ["temperature", "max_tokens"],
        ),
    ],
)
def test_what_an_endpoint_does_not_take_is_said_once_and_left_out(server, endpoint, capsys, refusals, then, said):
    def judge(text: str, pictures: list[np.ndarray]) -> str | tuple[int, dict]:
        for name, refusal in refusals.items():
            if any(name in parameters for parameters in server.parameters[-1:]):
                return refusal
        return likes("red")(text, pictures)

    server.judge = judge
    outcome = compare(endpoint, "quality", PROMPTS[:4], images, NAMES, threads=1)
    assert outcome.failures == 0 and outcome.rates[0].value == 1
    assert server.parameters[-4:] == [then] * 4 and len(server.parameters) == 4 + len(said)
    lines = capsys.readouterr().err.splitlines()
    assert [line.split(" does not take ")[1].split(" ")[0] for line in lines] == said
    assert all(line.startswith("warning: the judge judge-1 does not take") for line in lines)
    assert list(endpoint.refused) == said and endpoint.parameters == then
    assert ("without temperature" in outcome.rates[0].note) == ("temperature" in said)


def test_a_limit_too_large_for_one_question_is_no_parameter_that_is_never_taken(server, endpoint, capsys):
    large = "'max_tokens' is too large: 4096. This model's maximum context length is 4096 tokens."
    server.judge = lambda text, pictures: (
        (400, {"error": {"message": large, "param": "max_tokens"}}) if "prompt 1" in text else likes("red")(text, pictures)
    )
    outcome = compare(endpoint, "quality", PROMPTS[:3], images, NAMES)
    assert outcome.failures == 1 and endpoint.refused == {} and capsys.readouterr().err == ""


def test_an_answer_that_the_limit_cut_off_is_none(server, endpoint, tmp_path):
    early = 'At first sight {"best": "A"}, but looking closer'
    server.judge = lambda text, pictures: (
        answered(content=early, ended="length") if "prompt 0" in text else likes("red")(text, pictures)
    )
    for requests in (endpoint, Endpoint(server.url, "key", "judge-1", tmp_path / "answers", timeout=5, retries=0)):  # and when kept
        outcome = compare(requests, "quality", PROMPTS[:3], images, NAMES)
        (failed,) = [vote for vote in outcome.votes if vote.winner is None]
        assert failed.ballot.prompt == "prompt 0" and failed.reason.startswith("cut off at the limit of tokens (4096): ")
    assert len(server.requests) == 3


def test_answers_asked_for_in_another_way_are_others(server, tmp_path):
    for count, how in enumerate([{}, {}, {"temperature": 1.0}, {"max_tokens": 7}]):
        requests = Endpoint(server.url, "key", "judge-1", tmp_path / "answers", timeout=5, retries=0, **how)
        compare(requests, "quality", PROMPTS[:1], images, NAMES)
        assert len(server.requests) == max(1, count)
    assert server.parameters[-1] == {"temperature": 0, "max_tokens": 7}


def test_a_judge_that_refuses_one_candidate_in_one_place_is_seen(server, endpoint):
    def judge(text: str, pictures: list[np.ndarray]) -> str | tuple[int, dict]:
        first_is_green = pictures[0].reshape(-1, 3).mean(axis=0).argmax() == 1
        return answered(content=None, refusal="no") if first_is_green else likes("green")(text, pictures)

    server.judge = judge
    outcome = compare(endpoint, "quality", PROMPTS, images, NAMES)
    assert outcome.places[1] == [Place(10, 0, 10), Place(10, 10, 0), Place(10, 10, 0)]
    assert [sum(place.failures for place in row) for row in outcome.places] == [10] * 3 and outcome.places[0][0].failures == 0
    assert outcome.rates[1].note.endswith("without an answer by its place: A 10, B 0, C 0")


def test_text_in_parts_is_read(server, endpoint):
    parts = [{"type": "text", "text": '{"best": '}, {"type": "text", "text": '"A"}'}]
    server.judge = lambda text, pictures: answered(content=parts)
    assert compare(endpoint, "quality", PROMPTS[:2], images, NAMES).failures == 0


@pytest.mark.parametrize(
    "error",
    [
        {"message": "You exceeded your current quota, please check your plan and billing details.", "code": "insufficient_quota"},
        {"message": "You exceeded your current quota, please check your plan and billing details."},
        {"message": "Your credit balance is too low", "type": "x"},
        {"message": "stop", "type": "billing_hard_limit_reached"},
    ],
)
def test_a_used_up_quota_is_asked_once(server, tmp_path, error):
    server.judge = lambda text, pictures: (429, {"error": error})
    endpoint = Endpoint(server.url, "key", "judge-1", tmp_path / "answers", timeout=5, retries=4)
    with pytest.raises(UserError, match=f"cannot be asked: its quota is used up: .*{error['message']}"):
        compare(endpoint, "quality", PROMPTS, images, NAMES, threads=4)
    assert len(server.requests) == 1


def test_a_quota_of_a_minute_is_waited_for(server, endpoint):
    wait = "You exceeded your current quota, please check your plan and billing details. Please retry in 20s."
    observed = []

    def judge(text: str, pictures: list[np.ndarray]) -> str | tuple[int, dict]:
        observed.append(text)
        return (429, {"error": {"message": wait}}) if len(observed) == 1 else likes("red")(text, pictures)

    server.judge = judge
    assert compare(endpoint, "quality", PROMPTS[:2], images, NAMES).failures == 0 and len(observed) == 3


def test_a_wrong_key_is_found_out_once_and_not_shown(server, tmp_path):
    server.judge = lambda text, pictures: (401, {"error": {"message": "Incorrect API key provided: sk-s3cret"}})
    url = server.url.replace("//", "//user:passw0rd@") + "?token=t0ken"
    endpoint = Endpoint(url, "sk-s3cret", "judge-1", tmp_path / "answers", timeout=5, retries=0)
    with pytest.raises(UserError, match="Incorrect API key") as error:
        compare(endpoint, "quality", PROMPTS, images, NAMES, threads=4)
    assert len(server.requests) == 1 and not re.search("s3cret|passw0rd|t0ken", str(error.value))


def test_kept_answers_are_utf8_whatever_the_locale(server, endpoint, tmp_path):
    server.judge = lambda text, pictures: 'très «bien» {"best": "A"}'
    compare(endpoint, "quality", ["pâté"], images, NAMES)
    code = (
        "import sys; from pathlib import Path; from tunalab.interop.endpoint import Endpoint, _kept\n"
        "(path,) = Path(sys.argv[1]).iterdir()\nassert _kept(path)['answer'].startswith('tr\\xe8s \\xabbien')"
    )
    environment = {**os.environ, "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "answers")], env=environment, check=True)
    (path,) = (tmp_path / "answers").iterdir()
    path.write_text("{", encoding="utf-8")  # damaged: asked for again
    compare(endpoint, "quality", ["pâté"], images, NAMES)
    assert len(server.requests) == 2


def test_a_server_that_is_busy_now_and_then_is_asked_again(server, endpoint):
    observed: dict[str, int] = {}

    def judge(text: str, pictures: list[np.ndarray]) -> str | int:
        observed[text] = observed.get(text, 0) + 1
        return 503 if observed[text] == 1 else likes("blue")(text, pictures)

    server.judge = judge
    outcome = compare(endpoint, "quality", PROMPTS[:6], images, NAMES)
    assert outcome.failures == 0 and outcome.rates[2].value == 1


def test_a_judge_that_never_answers_is_a_failure_not_a_loss(server, tmp_path):
    def judge(text: str, pictures: list[np.ndarray]) -> str:
        if "prompt 1" in text:
            time.sleep(2)
        return likes("red")(text, pictures)

    server.judge = judge
    slow = Endpoint(server.url, "key", "judge-1", tmp_path / "answers", timeout=0.5, retries=0)
    outcome = compare(slow, "quality", PROMPTS[:3], images, NAMES)
    assert outcome.failures == 1 and outcome.rates[0].value == 1 and outcome.rates[0].n == 2


def test_answers_are_kept_and_never_asked_for_twice(server, endpoint, tmp_path):
    server.judge = likes("red")
    first = compare(endpoint, "quality", PROMPTS[:8], images, NAMES)
    requests = len(server.requests)
    again = Endpoint(server.url, "key", "judge-1", tmp_path / "answers", timeout=5, retries=0)
    assert compare(again, "quality", PROMPTS[:8], images, NAMES) == first
    assert len(server.requests) == requests == 8 and again.usage["kept"] == 8
    compare(again, "diversity", PROMPTS[:8], images, NAMES)  # another question is another answer
    assert len(server.requests) == 16


def test_a_wrong_key_ends_it_and_keeps_the_answers(server, tmp_path):
    def judge(text: str, pictures: list[np.ndarray]) -> str | int:
        return 401 if "prompt 5" in text else likes("red")(text, pictures)

    server.judge = judge
    endpoint = Endpoint(server.url, "key", "judge-1", tmp_path / "answers", timeout=5, retries=0)
    with pytest.raises(UserError, match=r"judge-1 at .* cannot be asked.*kept in"):
        compare(endpoint, "quality", PROMPTS[:6], images, NAMES, threads=1)
    assert len(list((tmp_path / "answers").iterdir())) == 5


def test_nobody_there_is_one_line(tmp_path):
    endpoint = Endpoint("http://127.0.0.1:9/v1", "key", "judge-1", tmp_path / "answers", timeout=1, retries=0)
    with pytest.raises(UserError, match="cannot be asked: Connection error"):
        compare(endpoint, "quality", PROMPTS[:2], images, NAMES)


def test_small_images_are_enlarged_for_the_judge():
    shown = np.asarray(Image.open(io.BytesIO(picture(images(0, 0)))))
    assert shown.shape == (SMALLEST_SIDE, 2 * SMALLEST_SIDE + 8, 3)


@pytest.fixture
def folders(tmp_path) -> list[str]:
    for number, name in enumerate(NAMES):
        for prompt in range(6):
            for seed, pixels_HWC in enumerate(images(number, prompt)):
                path = tmp_path / name / f"{prompt:04d}-seed{seed}.png"
                save_image(path, pixels_HWC, {"prompt": f"prompt {prompt}", "seed": seed})
    return [str(tmp_path / name) for name in NAMES]


def test_the_command(server, folders, tmp_path, monkeypatch, capsys):
    for name, value in ((URL, server.url), (KEY, "key"), (MODEL, "judge-1")):
        monkeypatch.setenv(name, value)
    server.judge = likes("blue")
    assert main(["judge", *folders, "--question", "quality", "--out", str(tmp_path / "judged")]) == 0
    out = capsys.readouterr().out
    assert "blue: 1.000, n 6" in out and "wins by place shown: A 2 of 2, B 2 of 2, C 2 of 2" in out
    messages = json.loads((tmp_path / "judged" / "quality.json").read_text())
    assert messages["asked_with"] == {"temperature": 0, "max_tokens": 4096} and messages["refused"] == {}
    assert [row["candidate"] for row in messages["places"]] == NAMES
    assert messages["places"][2]["places"] == [{"shown": 2, "wins": 2, "failures": 0}] * 3
    assert (
        messages["usage"]["asked"] == 6 and len(messages["votes"]) == 6 and all(vote["winner"] == 2 for vote in messages["votes"])
    )
    assert main(["judge", *folders, "--pairwise", "--out", str(tmp_path / "judged")]) == 0
    for question in ("quality", "diversity"):
        rates = json.loads((tmp_path / "judged" / f"{question}.json").read_text())["rates"]
        assert [rate["split"] for rate in rates["red"]] == ["against green", "against blue"]


def test_images_made_differently_are_told(folders, tmp_path):
    for path in (tmp_path / "blue").iterdir():
        settings = read_settings(path)
        save_image(path, images(2, 0)[0], {**settings, "guidance": 4.0})
    messages = unequal(NAMES, [read_folder(Path(folder)) for folder in folders])
    assert messages == ["guidance differs: red None, green None, blue 4.0"]


def test_mistakes_of_the_command(server, folders, tmp_path, monkeypatch, capsys):
    def told(*words: str) -> str:
        assert main(["judge", *words, "--out", str(tmp_path / "judged")]) == 2
        return capsys.readouterr().err

    for name in (URL, KEY, MODEL):
        monkeypatch.delenv(name, raising=False)
    assert "not set: TUNALAB_JUDGE_URL, TUNALAB_JUDGE_KEY, TUNALAB_JUDGE_MODEL" in told(*folders)
    for name, value in ((URL, server.url), (KEY, "key"), (MODEL, "judge-1")):
        monkeypatch.setenv(name, value)
    assert "a vote needs 2 to 8 candidates, not 1" in told(folders[0])
    assert "no such folder of images" in told(folders[0], str(tmp_path / "nowhere"))
    (tmp_path / "green" / "0003-seed1.png").unlink()
    assert "red has 2 images of 'prompt 3' and green 1" in told(*folders)
    assert "--n=0 is out of range" in told(*folders, "--n", "0")
    assert "--max-tokens=0 is out of range (from 1)" in told(*folders, "--max-tokens", "0")
    assert "--temperature=-1 is out of range (0 to 2)" in told(*folders, "--temperature", "-1")
    assert "--temperature=nan is out of range (0 to 2)" in told(*folders, "--temperature", "nan")
    assert not server.requests
