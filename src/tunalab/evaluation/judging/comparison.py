"""The vote: every ballot put to the judge, and how often each candidate wins, with an interval.

Shapes: N images, H W C image pixels and channels.
"""

import io
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import numpy as np
from PIL import Image

from tunalab.errors import UserError
from tunalab.evaluation.judging.ballots import LETTERS, TIE, Ballot, deal, read_choice
from tunalab.evaluation.judging.endpoint import Endpoint, NoAnswer
from tunalab.evaluation.measure import Measure, mean

KIND = "judge"
AGAIN = "\nYour answer could not be read. Answer with the JSON object alone."
SMALLEST_SIDE = 128  # pixels of an image as the judge sees it: what is smaller is enlarged without smoothing
GAP = 8


@dataclass(frozen=True)
class Vote:
    """The outcome of a ballot: the winner's number, -1 for a tie, None where the judge gave no readable answer, and why."""

    ballot: Ballot
    winner: int | None
    reason: str = ""


@dataclass(frozen=True)
class Place:
    """One candidate in one place of the order: how many ballots, how many of them it won, and how many have no answer.

    A judge that gives no answer where a candidate stands in one place costs it votes, or spares it defeats.
    """

    shown: int
    wins: int
    failures: int


@dataclass(frozen=True)
class Outcome:
    """``rates``: a measure a candidate, in their order; ``places``: a row of :class:`Place` a candidate."""

    rates: list[Measure]
    votes: list[Vote]
    ties: int
    failures: int
    places: list[list[Place]]


def compare(
    endpoint: Endpoint,
    question: str,
    prompts: Sequence[str],
    images: Callable[[int, int], np.ndarray],
    names: Sequence[str],
    *,
    tries: int = 2,
    threads: int = 4,
    seed: int = 0,
    watch: Callable[[], object] = lambda: None,
) -> Outcome:
    """Put one ballot a prompt to the judge. ``images(candidate, prompt)``: all images that it made of it, uint8 (N, H, W, 3).

    A win counts 1 and a tie 1 / candidates for each. ``tries``: how often an unreadable answer is asked for. ``watch`` is called
    after each ballot.

    Raises UserError: the judge cannot be asked, or gave no readable answer at all.
    """
    ballots = deal(prompts, len(names), seed)

    def vote(number: int) -> Vote:
        ballot = ballots[number]
        shown = [(f"Candidate {LETTERS[place]}:", picture(images(who, number))) for place, who in enumerate(ballot.order)]
        winner, reason = _ask(endpoint, ballot, question, shown, tries)
        watch()
        return Vote(ballot, winner, reason)

    with ThreadPoolExecutor(threads) as pool:
        asked = [pool.submit(vote, number) for number in range(len(ballots))]
        try:
            votes = [future.result() for future in asked]
        except BaseException:
            pool.shutdown(wait=True, cancel_futures=True)  # what is asked already is answered and kept, the rest is not begun
            raise
    return tally(votes, question, names, endpoint.described)


def tally(votes: Sequence[Vote], question: str, names: Sequence[str], judge: str) -> Outcome:
    """Win rates. Raises UserError when no ballot has a readable answer."""
    counted = [vote for vote in votes if vote.winner is not None]
    failures, ties = len(votes) - len(counted), sum(vote.winner == -1 for vote in counted)
    if not counted:
        raise UserError(f"the judge {judge} gave no readable answer to any of {len(votes)} questions: {reasons(votes)}")
    chance = 1 / len(names)
    places = [[_place(votes, candidate, place) for place in range(len(names))] for candidate in range(len(names))]
    rates = []
    for candidate in range(len(names)):
        # Of two, the other one says what was measured; of more, the best of all is asked for, which is one measure for all of them.
        split = f"against {names[1 - candidate]}" if len(names) == 2 else ""
        values = [chance if vote.winner == -1 else float(vote.winner == candidate) for vote in counted]
        note = f"judge {judge}: a win counts 1, a tie {chance:.2f}; {ties} ties"
        if failures:
            by_place = ", ".join(f"{LETTERS[number]} {place.failures}" for number, place in enumerate(places[candidate]))
            note += f"; without an answer by its place: {by_place}"
        rate = mean(KIND, question, values, metric="win rate", split=split, chance=chance, failures=failures, note=note)
        # Items are compared one by one with those of other votes, which they are not in line with when some are missing.
        rates.append(replace(rate, items=[]) if failures else rate)
    return Outcome(rates, list(votes), ties, failures, places)


def _place(votes: Sequence[Vote], candidate: int, place: int) -> Place:
    there = [vote for vote in votes if vote.ballot.order[place] == candidate]
    return Place(len(there), sum(vote.winner == candidate for vote in there), sum(vote.winner is None for vote in there))


def picture(images_NHWC: np.ndarray) -> bytes:
    """All images of one candidate side by side in one PNG."""
    N, height, width, _ = images_NHWC.shape
    scale = max(1, -(-SMALLEST_SIDE // min(height, width)))
    enlarged = images_NHWC.repeat(scale, axis=1).repeat(scale, axis=2)
    height, width = height * scale, width * scale
    row_HWC = np.full((height, N * width + (N - 1) * GAP, 3), 255, dtype=np.uint8)
    for n, pixels_HWC in enumerate(enlarged):
        row_HWC[:, n * (width + GAP) : n * (width + GAP) + width] = pixels_HWC
    png = io.BytesIO()
    Image.fromarray(row_HWC).save(png, "PNG")
    return png.getvalue()


def reasons(votes: Sequence[Vote], most: int = 3) -> str:
    """Why ballots have no winner, the most frequent first: ``refused: ... (12 times), ...``."""
    counts = Counter(vote.reason for vote in votes if vote.winner is None)
    shown = [f"{reason} ({count} times)" if count > 1 else reason for reason, count in counts.most_common(most)]
    return "; ".join([*shown, *([f"and {len(counts) - most} other reasons"] if len(counts) > most else [])])


def _ask(endpoint: Endpoint, ballot: Ballot, question: str, shown: list[tuple[str, bytes]], tries: int) -> tuple[int | None, str]:
    """The winner, or None and why."""
    text, answer = ballot.text(question), ""
    for attempt in range(tries):
        try:
            answer = endpoint.ask(text + AGAIN * attempt, shown)
        except NoAnswer as error:
            return None, str(error)
        choice = read_choice(answer, len(ballot.order))
        if choice is not None:
            return (-1 if choice == TIE else ballot.order[LETTERS.index(choice)]), ""
    return None, f"no candidate named in {' '.join(answer.split())[-60:]!r}"  # its end: thoughts come before
