"""Rejected documents: counted, written down with their reason, and too many of them stop the run."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from scipy.special import betainc

from tunalab.errors import UserError
from tunalab.files import append_line, appended_lines

# A reason may quote the data, and the data may be anything.
_REASON_CHARACTERS = 500

ERROR = 1e-12  # of one look at one corpus
MINIMUM = 100  # documents before the first look: damage comes in blocks, and the first few documents are of one
HOPELESS = 1000  # documents of a corpus of which none could be used


def clearly_above(limit: float, rejected: Any, requested: Any) -> Any:
    """Whether ``rejected`` of ``seen`` documents prove that more than the share ``limit`` of all is broken (numbers or arrays).

    One-sided exact binomial test at the level :data:`ERROR`, for damage that is strewn at random. A corpus is looked at after each
    of its rejects, in every lane: 10,000 lanes that meet 10,000 rejects each are 10^8 looks, so a run over a sound corpus stops
    with a probability below 10^-4.
    """
    # P(at least k of n) is the regularised incomplete beta function I_limit(k, n - k + 1).
    at_least_so_many = betainc(np.maximum(rejected, 1), np.subtract(requested, rejected) + 1, limit)
    return (np.asarray(rejected) > 0) & (at_least_so_many < ERROR)


class RejectLog:
    """Counts accepted and rejected documents of each corpus and appends the rejected ones to a JSONL file.

    A document is rejected because it is broken, or because it does not fit the settings (documents.py, Unfit). Each kind has a
    limit of its own. The run stops at a corpus

    - that one lane alone reads (``alone``) and has read to its end, if its share of either kind is above the limit;
    - that is longer or read by many lanes, so that a lane sees a sample of it: once the share is clearly above the limit
      (:func:`clearly_above`, from :data:`MINIMUM` documents on; at a limit of 1% for 30 of 581, not for 10 of 100);
    - of which none of the first :data:`HOPELESS` documents could be used, whatever the reasons.

    The share is taken per corpus: in a mix, a broken corpus of small weight would hide behind the sound ones.

    A document is written once, however often it comes back. This is what makes resuming exact: a run that goes on
    from a checkpoint meets again whatever was rejected between that checkpoint and its end, and finds it on file.

    Args:
        path: the file, usually ``rejects.jsonl`` in the run's folder; made at the first reject. None: nothing is written.
        limit: the largest share of broken documents.
        unfit_limit: the largest share of documents that do not fit.
        lengths: how many documents each corpus has; those missing or None count as endless.

    Raises:
        UserError: a limit is not a share, or the file holds something else than rejects.
    """

    def __init__(
        self,
        path: Path | None,
        limit: float = 0.01,
        unfit_limit: float = 1.0,
        lengths: Mapping[str, int | None] | None = None,
    ) -> None:
        for share in (limit, unfit_limit):
            if not 0 <= share <= 1:
                raise UserError(f"reject limit: {share} is not a share between 0 and 1")
        self.path = None if path is None else Path(path)
        self._listed = "" if path is None else f", listed in {path}"
        self.limit = limit
        self.unfit_limit = unfit_limit
        self.lengths = dict(lengths or {})
        self.alone = True
        self._requested: dict[str, int] = {}
        self._rejected: dict[str, int] = {}
        self._unfit: dict[str, int] = {}
        self._last_reason: dict[str, str] = {}
        self._last_unfit: dict[str, str] = {}  # of this start
        self._written = set() if self.path is None else _read_keys(self.path)

    @property
    def requested(self) -> int:
        """Documents asked for so far, over all corpora."""
        return sum(self._requested.values())

    @property
    def rejected(self) -> int:
        """Broken documents so far, over all corpora."""
        return sum(self._rejected.values())

    @property
    def unfit(self) -> int:
        """Documents so far that did not fit, over all corpora."""
        return sum(self._unfit.values())

    def accept(self, corpus: str) -> None:
        """Count a sound document.

        Raises:
            UserError: it was the last of a corpus, and too many were rejected before it.
        """
        self._requested[corpus] = self._requested.get(corpus, 0) + 1
        self._judge_whole(corpus)

    def reject(self, corpus: str, index: int, reason: str, fits: bool = True) -> None:
        """Count a rejected document and write it down. ``fits``: it is broken; else it is sound and does not fit.

        ``index`` is taken modulo the corpus' length, so that later epochs bring no new lines.

        Raises:
            UserError: too many documents of this corpus were broken or did not fit, or none could be used.
        """
        length = self.lengths.get(corpus)
        index = int(index) if length is None else int(index) % length
        reason = " ".join(reason.split())[:_REASON_CHARACTERS]
        if self.path is not None and (corpus, index) not in self._written:
            record = {"corpus": corpus, "index": index, "reason": reason}
            append_line(self.path, record if fits else {**record, "fits": False})
            self._written.add((corpus, index))
        self._requested[corpus] = self._requested.get(corpus, 0) + 1
        kind = self._rejected if fits else self._unfit
        kind[corpus] = kind.get(corpus, 0) + 1
        if fits:
            self._last_reason[corpus] = reason
        else:
            self._last_unfit[corpus] = reason
        self._judge_use(corpus, reason)
        if self._requested[corpus] >= MINIMUM:
            for limit, number, stop in self._kinds(corpus):
                if clearly_above(limit, number, self._requested[corpus]):
                    stop(corpus)
        self._judge_whole(corpus)

    def state_dict(self) -> dict[str, dict[str, Any]]:
        """The counts, as plain dictionaries. The limit is not among them: a setting, which a resumed run may change."""
        return {
            "seen": dict(self._requested),
            "rejected": dict(self._rejected),
            "unfit": dict(self._unfit),
            "last_reason": dict(self._last_reason),
        }

    def load_state_dict(self, state: dict[str, dict[str, Any]]) -> None:
        """Go on counting from a checkpoint; the first ones counted what does not fit among the broken.

        Raises:
            KeyError: the state lacks a part.
        """
        requested, rejected, last_reason = state["seen"], state["rejected"], state["last_reason"]
        self._requested, self._rejected, self._last_reason = dict(requested), dict(rejected), dict(last_reason)
        self._unfit = dict(state.get("unfit", {}))

    def _kinds(self, corpus: str) -> list[tuple[float, int, Callable[[str], None]]]:
        """Limit, number so far, and what to do above the limit, of broken documents and of those that do not fit.

        Where nothing could be used yet the latter are for :meth:`_judge_use`, which knows more to say.
        """
        broken, unfit = self._rejected.get(corpus, 0), self._unfit.get(corpus, 0)
        used = self._requested[corpus] > broken + unfit
        return [(self.limit, broken, self._stop), (self.unfit_limit, unfit if used else 0, self._stop_unfit)]

    def _judge_whole(self, corpus: str) -> None:
        length = self.lengths.get(corpus)
        if length is None or not self.alone or self._requested[corpus] < length:
            return
        epochs = -(-self._requested[corpus] // length)  # a broken document may come early in one, and has then come so many times
        for limit, number, stop in self._kinds(corpus):
            if number > limit * length * epochs:
                stop(corpus)

    def _judge_use(self, corpus: str, reason: str) -> None:
        requested, broken, unfit = self._requested[corpus], self._rejected.get(corpus, 0), self._unfit.get(corpus, 0)
        length = self.lengths.get(corpus)
        enough = HOPELESS if length is None or not self.alone else min(HOPELESS, length)
        if requested >= enough and broken + unfit == requested:
            raise UserError(
                f"{corpus}: none of {requested} documents can be used ({broken} broken, {unfit} do not fit)"
                f"{self._listed}; last reason: {reason}"
            )

    def _stop(self, corpus: str) -> None:
        requested, rejected = self._requested[corpus], self._rejected[corpus]
        raise UserError(
            f"{corpus}: {rejected} of {requested} documents rejected ({rejected / requested:.1%}, limit "
            f"data.reject_share={self.limit:.1%}){self._listed}; last reason: {self._last_reason[corpus]}"
        )

    def _stop_unfit(self, corpus: str) -> None:
        requested, unfit = self._requested[corpus], self._unfit[corpus]
        last = f"; last reason: {self._last_unfit[corpus]}" if corpus in self._last_unfit else ""
        raise UserError(
            f"{corpus}: {unfit} of {requested} documents do not fit and are left out ({unfit / requested:.1%}, limit "
            f"data.unfit_share={self.unfit_limit:.1%}){self._listed}{last}"
        )


def _read_keys(path: Path) -> set[tuple[str, int]]:
    keys: set[tuple[str, int]] = set()
    for number, line in enumerate(appended_lines(path, torn="cut"), start=1):  # the document of a torn one comes back on resuming
        try:
            record = json.loads(line)
            keys.add((str(record["corpus"]), int(record["index"])))
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"{path}: line {number} is no record of a rejected document") from error
    return keys
