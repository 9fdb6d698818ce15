"""Ballots: one prompt, the images that every candidate made of it, and the order in which the judge sees the candidates.

A judge prefers places (the first, the last) whatever stands there. So all orders are dealt out equally often: place and candidate
are independent, and a judge that looks at places alone finds every candidate equally good.
"""

import json
import random
import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import permutations

QUESTIONS = {
    "quality": "Which candidate's images show what the prompt says most faithfully and look best?",
    "diversity": "Which candidate's images differ most from each other while each of them still shows what the prompt says?",
}
LETTERS = "ABCDEFGH"
TIE = "tie"


@dataclass(frozen=True)
class Ballot:
    """``order``: numbers of the candidates in the order of the letters."""

    prompt: str
    order: tuple[int, ...]

    def text(self, question: str) -> str:
        """What the judge is asked; the images follow, a picture a letter."""
        letters = LETTERS[: len(self.order)]
        return (
            f"{len(self.order)} candidates ({', '.join(letters)}) each made images of the same prompt. One picture a candidate "
            f"follows, its images side by side.\nPrompt: {self.prompt}\n{QUESTIONS[question]}\n"
            f'Answer with JSON alone: {{"best": "{letters[0]}"}}, with one of {", ".join(letters)}, or "{TIE}" if none is better.'
        )


def deal(prompts: Sequence[str], candidates: int, seed: int = 0) -> list[Ballot]:
    """A ballot a prompt; each order of the candidates as often as any other (but for a remainder), shuffled by ``seed``."""
    orders = list(permutations(range(candidates)))
    generator = random.Random(seed)
    dealt: list[tuple[int, ...]] = []
    while len(dealt) < len(prompts):
        generator.shuffle(orders)
        dealt += orders
    return [Ballot(prompt, order) for prompt, order in zip(prompts, dealt[: len(prompts)], strict=True)]


def read_choice(answer: str, candidates: int) -> str | None:
    """The letter that an answer names, or ``tie``; None where it names none, or more than one.

    The last JSON object with the key "best" counts, so that a judge may think aloud before it; without one, an answer that is
    nothing but a letter or the word tie.
    """
    letters = LETTERS[:candidates]
    for found in reversed(re.findall(r"\{[^{}]*\}", answer)):
        try:
            best = json.loads(found).get("best")
        except (ValueError, AttributeError):
            continue
        if isinstance(best, str):
            return _legal(best, letters)
    return _legal(answer.strip().strip("\"'.*()`"), letters)


def _legal(word: str, letters: str) -> str | None:
    word = word.strip().removeprefix("Candidate ")
    if word.casefold() == TIE:
        return TIE
    return word.upper() if len(word) == 1 and word.upper() in letters else None
