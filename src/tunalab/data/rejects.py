"""Rejected documents: counted, written down with their reason, and too many of them stop the run."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tunalab.errors import UserError

# A reason may quote the data, and the data may be anything.
_REASON_CHARACTERS = 500


class RejectLog:
    """Counts accepted and rejected documents of each corpus and appends the rejected ones to a JSONL file.

    The share is taken per corpus: in a mix, a broken corpus of small weight would hide behind the sound ones.

    A document is written once, however often it comes back. This is what makes resuming exact: a run that goes on
    from a checkpoint meets again whatever was rejected between that checkpoint and its end, and finds it on file.

    Args:
        path: the file, usually ``rejects.jsonl`` in the run's folder; made at the first reject.
        limit: the largest share of rejected documents.
        minimum: a corpus is judged once it has shown this many documents, or all it has.
        lengths: how many documents each corpus has; those missing or None count as endless.

    Raises:
        UserError: the limit is not a share, or the file holds something else than rejects.
    """

    def __init__(
        self,
        path: Path,
        limit: float = 0.01,
        minimum: int = 100,
        lengths: Mapping[str, int | None] | None = None,
    ) -> None:
        if not 0 <= limit <= 1:
            raise UserError(f"reject limit: {limit} is not a share between 0 and 1")
        if minimum < 1:
            raise UserError(f"reject minimum: {minimum} is not a positive count")
        self.path = Path(path)
        self.limit = limit
        self.minimum = minimum
        self.lengths = dict(lengths or {})
        self._seen: dict[str, int] = {}
        self._rejected: dict[str, int] = {}
        self._last_reason: dict[str, str] = {}
        self._written = _read_keys(self.path)

    @property
    def seen(self) -> int:
        """Documents asked for so far, over all corpora."""
        return sum(self._seen.values())

    @property
    def rejected(self) -> int:
        """Documents rejected so far, over all corpora."""
        return sum(self._rejected.values())

    def accept(self, corpus: str) -> None:
        """Count a sound document.

        Raises:
            UserError: it completed the count at which the corpus is judged, and too many were rejected before it.
        """
        self._seen[corpus] = self._seen.get(corpus, 0) + 1
        self._judge(corpus)

    def reject(self, corpus: str, index: int, reason: str) -> None:
        """Count a rejected document and write it down.

        ``index`` is taken modulo the corpus' length, so that later epochs bring no new lines.

        Raises:
            UserError: too many documents of this corpus were rejected.
        """
        length = self.lengths.get(corpus)
        index = int(index) if length is None else int(index) % length
        reason = " ".join(reason.split())[:_REASON_CHARACTERS]
        if (corpus, index) not in self._written:
            _append_line(self.path, {"corpus": corpus, "index": index, "reason": reason})
            self._written.add((corpus, index))
        self._seen[corpus] = self._seen.get(corpus, 0) + 1
        self._rejected[corpus] = self._rejected.get(corpus, 0) + 1
        self._last_reason[corpus] = reason
        self._judge(corpus)

    def state_dict(self) -> dict[str, dict[str, Any]]:
        """The counts, as plain dictionaries. The limit is not among them: a setting, which a resumed run may change."""
        return {"seen": dict(self._seen), "rejected": dict(self._rejected), "last_reason": dict(self._last_reason)}

    def load_state_dict(self, state: dict[str, dict[str, Any]]) -> None:
        """Go on counting from a checkpoint.

        Raises:
            KeyError: the state lacks a part.
        """
        seen, rejected, last_reason = state["seen"], state["rejected"], state["last_reason"]
        self._seen, self._rejected, self._last_reason = dict(seen), dict(rejected), dict(last_reason)

    def _judge(self, corpus: str) -> None:
        seen, rejected = self._seen[corpus], self._rejected.get(corpus, 0)
        length = self.lengths.get(corpus)
        enough = self.minimum if length is None else min(self.minimum, length)
        if seen >= enough and rejected > self.limit * seen:
            raise UserError(
                f"{corpus}: {rejected} of {seen} documents rejected ({rejected / seen:.1%}, limit "
                f"{self.limit:.1%}), listed in {self.path}; last reason: {self._last_reason[corpus]}"
            )


def _append_line(path: Path, record: dict[str, Any]) -> None:
    line = (json.dumps(record, ensure_ascii=True) + "\n").encode()
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        # One write in append mode lands whole or, on a full disk, torn: then it raises, and the next start cuts it.
        if os.write(descriptor, line) != len(line):
            raise OSError(f"{path}: the disk took only part of a line")
    finally:
        os.close(descriptor)


def _read_keys(path: Path) -> set[tuple[str, int]]:
    if not path.exists():
        return set()
    data = path.read_bytes()
    whole = data.rfind(b"\n") + 1
    if whole < len(data):  # torn by a crash; the document comes back on resuming and is written again
        os.truncate(path, whole)
    keys: set[tuple[str, int]] = set()
    for number, line in enumerate(data[:whole].splitlines(), start=1):
        try:
            record = json.loads(line)
            keys.add((str(record["corpus"]), int(record["index"])))
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"{path}: line {number} is no record of a rejected document") from error
    return keys
