"""An OpenAI-compatible endpoint that looks at images: asked with retries, every answer kept on disk, tokens counted."""

import base64
import hashlib
import json
import re
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from openai import (
    APIError,
    APIStatusError,
    APITimeoutError,
    DefaultHttpxClient,
    InternalServerError,
    OpenAI,
    OpenAIError,
    RateLimitError,
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


class NoAnswer(Exception):
    """This question was not answered; others may be."""


@dataclass(eq=False)
class Endpoint:
    """``kept``: folder of answers, by hash of what was asked; the same question is never paid for twice.

    Safe to use from several threads.
    """

    url: str
    key: str
    model: str
    kept: Path
    timeout: float = 120.0  # seconds a try
    retries: int = 4  # after the first try, with growing pauses (of the openai client)
    usage: dict[str, int] = field(default_factory=lambda: {"asked": 0, "kept": 0, "prompt_tokens": 0, "completion_tokens": 0})

    def __post_init__(self) -> None:
        self._lock, self._first = threading.Lock(), threading.Lock()
        self._works, self._refusal = False, ""
        asked = DefaultHttpxClient(event_hooks={"response": [_no_retries_of_a_used_up_quota]})
        self._client = OpenAI(
            base_url=self.url, api_key=self.key, timeout=self.timeout, max_retries=self.retries, http_client=asked
        )

    @classmethod
    def from_environment(cls, environment: Mapping[str, str], kept: Path, timeout: float, retries: int) -> "Endpoint":
        """Raises UserError naming the variables that are not set."""
        missing = [name for name in (URL, KEY, MODEL) if not environment.get(name)]
        if missing:
            raise UserError(
                f"the judge is an OpenAI-compatible endpoint, set by {URL}, {KEY} and {MODEL}; not set: {', '.join(missing)}"
            )
        return cls(environment[URL], environment[KEY], environment[MODEL], kept, timeout, retries)

    def ask(self, text: str, images: Sequence[tuple[str, bytes]]) -> str:
        """The answer to a text with images, each a caption and a PNG.

        Raises:
            NoAnswer: the endpoint did not answer in time, not at all this time, or without text; says why.
            UserError: it will not answer any question (a wrong key or model, a used-up quota, nobody there).
        """
        name = hashlib.sha256(json.dumps([redacted_settings(self.url), self.model, text]).encode())
        for caption, png in images:
            name.update(caption.encode() + b"\0" + hashlib.sha256(png).digest())
        path = self.kept / f"{name.hexdigest()[:32]}.json"
        kept = _kept(path)
        if kept is not None:
            self._count(kept=1, prompt_tokens=kept["prompt_tokens"], completion_tokens=kept["completion_tokens"])
            return str(kept["answer"])
        answer, reason, tokens = self._answered(text, images)
        self._count(asked=1, **tokens)
        if not answer:
            raise NoAnswer(reason)
        self.kept.mkdir(parents=True, exist_ok=True)
        told = {"model": self.model, "question": text, "answer": answer, **tokens}
        write_atomically(path, json.dumps(told, ensure_ascii=False) + "\n")
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
        try:
            answered = self._client.chat.completions.with_raw_response.create(
                model=self.model,
                messages=[{"role": "user", "content": content}],  # type: ignore[misc, list-item]
            )
        except (APIError, OpenAIError) as error:
            said = self._shown(str(error))
            used_up = isinstance(error, RateLimitError) and _is_used_up(error.response.text)
            if isinstance(error, APITimeoutError):
                raise NoAnswer(f"no answer within {self.timeout:g} s") from error
            if isinstance(error, _PASSING) and not used_up:
                raise NoAnswer(said) from error
            if isinstance(error, APIStatusError) and error.status_code in _THIS_QUESTION:
                raise NoAnswer(said) from error
            reason = f"its quota is used up: {said}" if used_up else said
            raise UserError(
                f"the judge {self.model} at {redacted_settings(self.url)} cannot be asked: {reason}; answers so far are kept in "
                f"{self.kept}"
            ) from error
        return _read(answered.text)

    def _shown(self, said: str) -> str:
        """What a server said, in one line, without the key that it may quote."""
        shown = redacted(" ".join(said.split()), self.url)
        return (shown.replace(self.key, MARK) if len(self.key) > 3 else shown)[:200]

    def _count(self, **counts: int) -> None:
        with self._lock:
            for name, count in counts.items():
                self.usage[name] += count


Answer = tuple[str, str, dict[str, int]]  # text, why there is none, tokens


def _no_retries_of_a_used_up_quota(response: Any) -> None:
    if response.status_code == 429:
        response.read()
        if _is_used_up(response.text):
            response.headers["x-should-retry"] = "false"  # what openai's client obeys


def _is_used_up(body: str) -> bool:
    return bool(_USED_UP.search(body) or (_BILLING.search(body) and "retry" not in body.lower()))


def _kept(path: Path) -> dict[str, Any] | None:
    """An answer that is kept; None where there is none, or a damaged one, which is asked for again."""
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
        return "", f"refused: {' '.join(str(refused).split())[:120]}", tokens
    detail = f": {body[:80]!r}" if not choices else f" (finish_reason {ended})" if ended else ""
    return text, f"an answer without {'text' if choices else 'choices'}{detail}", tokens


def _text(content: Any) -> str:
    """Some servers send it in parts."""
    if isinstance(content, list):
        return "".join(str(part.get("text") or "") for part in content)
    return "" if content is None else str(content)
