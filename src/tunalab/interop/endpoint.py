"""An OpenAI-compatible endpoint that reads images: requests with retries, answers kept on disk, tokens counted."""

import base64
import hashlib
import json
import re
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from openai import (
    APIError,
    APIStatusError,
    APITimeoutError,
    BadRequestError,
    DefaultHttpxClient,
    InternalServerError,
    OpenAI,
    OpenAIError,
    RateLimitError,
    UnprocessableEntityError,
)

from tunalab.errors import UserError
from tunalab.files import write_atomically
from tunalab.redaction import MARK, redacted, redacted_settings

URL, KEY, MODEL = "TUNALAB_JUDGE_URL", "TUNALAB_JUDGE_KEY", "TUNALAB_JUDGE_MODEL"
# May be over by the next question; anything else (a wrong key, an unknown model, no server) is the same for every question.
_PASSING = (APITimeoutError, RateLimitError, InternalServerError)
# A quota or a credit that is used up has the status of too many questions a minute, and is over by no later question.
_USED_UP = re.compile(r"insufficient_quota|billing_(hard_limit|not_active)|credit balance", re.IGNORECASE)
_BILLING = re.compile(r"quota[^.]*(plan|billing)", re.IGNORECASE)  # also said of a minute's quota, with the time to wait
_THIS_QUESTION = (400, 413, 422)  # refused for what it shows or for its size; another may pass
# What takes the place of a parameter that an endpoint does not take; nothing at last.
_INSTEAD = {"max_tokens": "max_completion_tokens", "max_completion_tokens": "", "temperature": ""}
# Said of a value that is too large for the question or out of range, not of a parameter that is never taken.
_TOO_LARGE = re.compile(r"too (large|long|many)|context (length|window)|at most|less than|exceed", re.IGNORECASE)


class NoAnswer(Exception):
    """This question was not answered; others may be."""


def _warn(line: str) -> None:
    print(f"warning: {line}", file=sys.stderr, flush=True)


@dataclass(eq=False)
class Endpoint:
    """``kept``: folder of answers, by hash of the question and how it was put; no question is paid for twice.

    Requests have a ``temperature`` and a limit of ``max_tokens`` tokens. Where an endpoint takes a parameter under another name, or
    not at all, later requests do so too; ``warn`` reports it once, and ``refused`` holds why by the name of the parameter.
    Safe to use from several threads.
    """

    url: str
    key: str
    model: str
    kept: Path
    timeout: float = 120.0  # seconds a try
    retries: int = 4  # after the first try, with growing pauses (of the openai client)
    temperature: float = 0.0
    max_tokens: int = 4096  # thoughts of a judge that reasons count
    warn: Callable[[str], None] = _warn
    usage: dict[str, int] = field(default_factory=lambda: {"asked": 0, "kept": 0, "prompt_tokens": 0, "completion_tokens": 0})

    def __post_init__(self) -> None:
        self._lock, self._first = threading.Lock(), threading.Lock()
        self._works, self._refusal = False, ""
        self.refused: dict[str, str] = {}
        self._parameters: dict[str, float] = {"temperature": self.temperature, "max_tokens": self.max_tokens}
        client = DefaultHttpxClient(event_hooks={"response": [_no_retries_of_a_used_up_quota]})
        self._client = OpenAI(
            base_url=self.url, api_key=self.key, timeout=self.timeout, max_retries=self.retries, http_client=client
        )

    @classmethod
    def from_environment(cls, environment: Mapping[str, str], kept: Path, **how: Any) -> "Endpoint":
        """``how``: timeout, retries, temperature, max_tokens. Raises UserError naming the variables that are not set."""
        missing = [name for name in (URL, KEY, MODEL) if not environment.get(name)]
        if missing:
            raise UserError(
                f"the judge is an OpenAI-compatible endpoint, set by {URL}, {KEY} and {MODEL}; not set: {', '.join(missing)}"
            )
        return cls(environment[URL], environment[KEY], environment[MODEL], kept, **how)

    @property
    def parameters(self) -> dict[str, float]:
        """The parameters that the endpoint takes."""
        with self._lock:
            return dict(self._parameters)

    @property
    def described(self) -> str:
        """The model, and the parameters that it does not take."""
        without = [name for name in ("temperature", "max_completion_tokens") if name in self.refused]
        return f"{self.model} without {' and '.join(without)}, which it does not take" if without else self.model

    def ask(self, text: str, images: Sequence[tuple[str, bytes]], whole: bool = True) -> str:
        """The answer to a text with images, each a caption and a PNG. With ``whole`` one that the limit cut off is none.

        Raises:
            NoAnswer: the endpoint did not answer in time, not at all this time, without text, or without end; says why.
            UserError: it will not answer any question (a wrong key or model, a used-up quota, nobody there).
        """
        about = [redacted_settings(self.url), self.model, text, self.temperature, self.max_tokens]
        name = hashlib.sha256(json.dumps(about).encode())
        for caption, png in images:
            name.update(caption.encode() + b"\0" + hashlib.sha256(png).digest())
        path = self.kept / f"{name.hexdigest()[:32]}.json"
        kept = _kept(path)
        if kept is not None:
            self._count(kept=1, prompt_tokens=kept["prompt_tokens"], completion_tokens=kept["completion_tokens"])
            answer, cut = str(kept["answer"]), bool(kept.get("cut"))
        else:
            answer, reason, tokens, cut = self._answered(text, images)
            self._count(asked=1, **tokens)
            if not answer:
                raise NoAnswer(reason)
            self.kept.mkdir(parents=True, exist_ok=True)
            plain = {"model": self.model, "question": text, "answer": answer, "cut": cut, **self.parameters, **tokens}
            write_atomically(path, json.dumps(plain, ensure_ascii=False) + "\n")
        if cut and whole:
            raise NoAnswer(f"cut off at the limit of tokens ({self.max_tokens}): {' '.join(answer.split())[-40:]!r}")
        return answer

    def _answered(self, text: str, images: Sequence[tuple[str, bytes]]) -> "Answer":
        """The first question goes alone: what no question will be answered for is found out once, not by every thread."""
        if self._works:
            return self._request(text, images)
        with self._first:
            if self._refusal:
                raise UserError(self._refusal)
            try:
                answer = self._request(text, images)
            except UserError as error:
                self._refusal = str(error)
                raise
            except NoAnswer:
                self._works = True  # perhaps slow, but there
                raise
            self._works = True
            return answer

    def _request(self, text: str, images: Sequence[tuple[str, bytes]]) -> "Answer":
        content: list[dict[str, object]] = [{"type": "text", "text": text}]
        for caption, png in images:
            url = "data:image/png;base64," + base64.b64encode(png).decode()
            content += [{"type": "text", "text": caption}, {"type": "image_url", "image_url": {"url": url}}]
        while True:
            parameters = self.parameters
            try:
                answered = self._client.chat.completions.with_raw_response.create(
                    model=self.model,
                    messages=[{"role": "user", "content": content}],  # type: ignore[misc, list-item]
                    extra_body=parameters,
                )
            except (BadRequestError, UnprocessableEntityError) as error:
                if not self._does_without(parameters, error):
                    raise NoAnswer(self._shown(str(error))) from error
            except (APIError, OpenAIError) as error:
                raise self._failure(error) from error
            else:
                return _read(answered.text)

    def _does_without(self, parameters: Mapping[str, float], error: APIStatusError) -> bool:
        """Whether the endpoint does not take one of the parameters; then the next request says it in another way, or not at all."""
        name = _refused_parameter(error, parameters)
        if name is None:
            return False
        with self._lock:
            if name not in self._parameters:  # another thread was faster
                return True
            value, instead = self._parameters.pop(name), _INSTEAD[name]
            if instead:
                self._parameters[instead] = value
            why = self.refused[name] = self._shown(str(error))
        how = (
            f"with {instead}"
            if instead
            else "without it" + ("; its answers may differ from time to time" * (name == "temperature"))
        )
        self.warn(f"the judge {self.model} does not take {name} ({why}): asked {how}")
        return True

    def _failure(self, error: OpenAIError) -> Exception:
        """What becomes of an error: of this question alone, or of all."""
        message = self._shown(str(error))
        used_up = isinstance(error, RateLimitError) and _is_used_up(error.response.text)
        if isinstance(error, APITimeoutError):
            return NoAnswer(f"no answer within {self.timeout:g} s")
        if isinstance(error, _PASSING) and not used_up:
            return NoAnswer(message)
        if isinstance(error, APIStatusError) and error.status_code in _THIS_QUESTION:
            return NoAnswer(message)
        reason = f"its quota is used up: {message}" if used_up else message
        return UserError(
            f"the judge {self.model} at {redacted_settings(self.url)} cannot be asked: {reason}; answers so far are kept in "
            f"{self.kept}"
        )

    def _shown(self, message: str) -> str:
        """A message of a server in one line, without the key that it may quote."""
        shown = redacted(" ".join(message.split()), self.url)
        return (shown.replace(self.key, MARK) if len(self.key) > 3 else shown)[:200]

    def _count(self, **counts: int) -> None:
        with self._lock:
            for name, count in counts.items():
                self.usage[name] += count


Answer = tuple[str, str, dict[str, int], bool]  # text, why there is none, tokens, whether the limit of tokens cut it off


def _refused_parameter(error: APIStatusError, parameters: Mapping[str, float]) -> str | None:
    """Which of the parameters of a request its refusal is about, by name; None where it is about something else."""
    message = error.response.text
    if _TOO_LARGE.search(message):
        return None
    named = [name for name in parameters if re.search(rf"\b{name}\b", message)]
    return named[0] if named else None


def _no_retries_of_a_used_up_quota(response: Any) -> None:
    if response.status_code == 429:
        response.read()
        if _is_used_up(response.text):
            response.headers["x-should-retry"] = "false"  # what openai's client obeys


def _is_used_up(body: str) -> bool:
    return bool(_USED_UP.search(body) or (_BILLING.search(body) and "retry" not in body.lower()))


def _kept(path: Path) -> dict[str, Any] | None:
    """An answer that is kept; None where there is none, or a damaged one, which is requested again."""
    try:
        kept = json.loads(path.read_text(encoding="utf-8"))
        return kept if {"answer", "prompt_tokens", "completion_tokens"} <= kept.keys() else None
    except (FileNotFoundError, ValueError, AttributeError):
        return None


def _read(body: str) -> Answer:
    """Text and tokens of an answer. What a server sends with status 200 need not be one. Raises NoAnswer."""
    if body.lstrip()[:1] == "<":
        title = re.search(r"<title[^>]*>([^<]*)", body, re.IGNORECASE)
        named = f" {' '.join(title[1].split())[:60]!r}" if title else ""
        raise NoAnswer(f"a web page{named} instead of an answer: a login page, or {URL} is not that of the API")
    try:
        answered = json.loads(body)
        usage = answered.get("usage") or {}
        tokens = {name: int(usage.get(name) or 0) for name in ("prompt_tokens", "completion_tokens")}
        choices = answered.get("choices") or []
        message = choices[0]["message"] if choices else {}
        text, refused = _text(message.get("content")), message.get("refusal")
        ended = choices[0].get("finish_reason") if choices else None
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise NoAnswer(f"no answer of the protocol: {body[:80]!r}") from error
    if refused:
        return "", f"refused: {' '.join(str(refused).split())[:120]}", tokens, False
    detail = f": {body[:80]!r}" if not choices else f" (finish_reason {ended})" if ended else ""
    return text, f"an answer without {'text' if choices else 'choices'}{detail}", tokens, ended == "length"


def _text(content: Any) -> str:
    """Some servers send it in parts."""
    if isinstance(content, list):
        return "".join(str(part.get("text") or "") for part in content)
    return "" if content is None else str(content)
