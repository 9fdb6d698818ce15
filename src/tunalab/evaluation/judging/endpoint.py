"""An OpenAI-compatible endpoint that looks at images: asked with retries, every answer kept on disk, tokens counted."""

import base64
import hashlib
import json
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from openai import APIError, APIStatusError, APITimeoutError, InternalServerError, OpenAI, OpenAIError, RateLimitError

from tunalab.errors import UserError
from tunalab.files import write_atomically

URL, KEY, MODEL = "TUNALAB_JUDGE_URL", "TUNALAB_JUDGE_KEY", "TUNALAB_JUDGE_MODEL"
# May be over by the next question; anything else (a wrong key, an unknown model, no server) is the same for every question.
_PASSING = (APITimeoutError, RateLimitError, InternalServerError)
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
        self._lock = threading.Lock()
        self._client = OpenAI(base_url=self.url, api_key=self.key, timeout=self.timeout, max_retries=self.retries)

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
            NoAnswer: the endpoint did not answer in time, or not at all this time.
            UserError: it will not answer any question (a wrong key or model, nobody there).
        """
        name = hashlib.sha256(json.dumps([self.url, self.model, text]).encode())
        for caption, png in images:
            name.update(caption.encode() + b"\0" + hashlib.sha256(png).digest())
        path = self.kept / f"{name.hexdigest()[:32]}.json"
        if path.exists():
            kept = json.loads(path.read_text())
            self._count(kept=1, prompt_tokens=kept["prompt_tokens"], completion_tokens=kept["completion_tokens"])
            return str(kept["answer"])
        answer, tokens = self._request(text, images)
        self._count(asked=1, **tokens)
        if not answer:
            raise NoAnswer("an answer without text")
        self.kept.mkdir(parents=True, exist_ok=True)
        told = {"model": self.model, "question": text, "answer": answer, **tokens}
        write_atomically(path, json.dumps(told, ensure_ascii=False) + "\n")
        return answer

    def _request(self, text: str, images: Sequence[tuple[str, bytes]]) -> tuple[str, dict[str, int]]:
        content: list[dict[str, object]] = [{"type": "text", "text": text}]
        for caption, png in images:
            url = "data:image/png;base64," + base64.b64encode(png).decode()
            content += [{"type": "text", "text": caption}, {"type": "image_url", "image_url": {"url": url}}]
        try:
            answered = self._client.chat.completions.with_raw_response.create(
                model=self.model,
                messages=[{"role": "user", "content": content}],  # type: ignore[misc, list-item]
            )
        except _PASSING as error:
            raise NoAnswer(type(error).__name__) from error
        except (APIError, OpenAIError) as error:
            if isinstance(error, APIStatusError) and error.status_code in _THIS_QUESTION:
                raise NoAnswer(f"status {error.status_code}") from error
            reason = " ".join(str(error).split())[:200]
            raise UserError(
                f"the judge {self.model} at {self.url} cannot be asked: {reason}; answers so far are kept in {self.kept}"
            ) from error
        return _read(answered.text)

    def _count(self, **counts: int) -> None:
        with self._lock:
            for name, count in counts.items():
                self.usage[name] += count


def _read(body: str) -> tuple[str, dict[str, int]]:
    """Text and tokens of an answer. What a server sends with status 200 need not be one. Raises NoAnswer."""
    try:
        answered = json.loads(body)
        text = answered["choices"][0]["message"]["content"] or ""
        usage = answered.get("usage") or {}
        tokens = {name: int(usage.get(name) or 0) for name in ("prompt_tokens", "completion_tokens")}
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise NoAnswer(f"no answer of the protocol: {body[:80]!r}") from error
    return str(text), tokens
