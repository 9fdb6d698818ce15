"""Ballots: one prompt, the images that every candidate made of it, and the order in which the judge sees the candidates.

A judge prefers places (the first, the last) whatever stands there. So places are dealt out equally often: place and candidate
are independent, and a judge that looks at places alone finds every candidate equally good.
"""

import json
import random
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import permutations
from typing import Any

QUESTIONS = {
    "quality": "Which candidate's images show what the prompt says most faithfully and look best?",
    "diversity": "Which candidate's images differ most from each other while each of them still shows what the prompt says?",
}
LETTERS = "ABCDEFGH"
TIE = "tie"
BLANK = "LETTER"  # in the example of an answer: a judge that repeats its question votes for nobody

# A judge that thinks aloud does so before its answer; of some servers only the end of the thoughts is marked.
_THOUGHTS = re.compile(r"<(think|thinking|thought|reasoning|reflection|analysis)>.*?(</\1>|\Z)", re.DOTALL | re.IGNORECASE)
_END_OF_THOUGHTS = re.compile(r"</(think|thinking|thought|reasoning|reflection|analysis)>", re.IGNORECASE)
_ANSWER = re.compile(r"</?(answer|final|output)>", re.IGNORECASE)
_MARKS = " \t\n\r\"'`*_().,:;!?[]"
_PREFIX = (
    r"(?:(?:my |the )?(?:final |overall )?(?:answer|best|choice|verdict|winner|vote)(?: one| candidate)?\W*(?:(?:is|goes to)\W+)?)?"
)
_NAMED = re.compile(_PREFIX + r"(?:(?:candidate|option|model|letter)[\W_]*)?([a-z])", re.IGNORECASE)
_TIED = re.compile(
    _PREFIX + r"(?:(?:it'?s|it is|there is|this is|overall) )?(?:an? )?(?:tie|tied|draw|equal|equally good|none is better)",
    re.IGNORECASE,
)
# A bare capital: "best: a vivid picture" and "best: A vivid picture" name nobody.
_LATER_WORD = re.compile(
    r"(?<!second )(?<!third )"
    r"\b(?:answer|best|choice|verdict|winner|vote)\W{1,4}(?:is\W+)?(?:candidate\W+)?((?-i:A(?!\s+[a-z])|[B-H])|tie)\b",
    re.IGNORECASE,
)


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
            f'Answer with JSON alone: {{"best": "{BLANK}"}}, with one of {", ".join(letters)}, or "{TIE}" if none is better.'
        )


def deal(prompts: Sequence[str], candidates: int, seed: int = 0) -> list[Ballot]:
    """A ballot a prompt. Each candidate stands in each place equally often up to one, whatever the two numbers are.

    Orders come in squares of ``candidates`` rows, each the one before turned by a place: a square has every candidate once in every
    place, and the beginning of one at most once. All squares come before one comes again, so in the long run all orders are equally
    frequent. Squares and their rows are shuffled by ``seed``.
    """
    generator = random.Random(seed)
    squares = [(0, *rest) for rest in permutations(range(1, candidates))]
    dealt: list[tuple[int, ...]] = []
    while len(dealt) < len(prompts):
        generator.shuffle(squares)
        for first in squares[: -(-(len(prompts) - len(dealt)) // candidates)]:
            rows = [first[turn:] + first[:turn] for turn in range(candidates)]
            generator.shuffle(rows)
            dealt += rows
    return [Ballot(prompt, order) for prompt, order in zip(prompts, dealt[: len(prompts)], strict=True)]


def read_choice(answer: str, candidates: int) -> str | None:
    """The letter that an answer names, or ``tie``; None where it names none, more than one, or contradicts itself.

    What stands in marks of thinking does not count. The last whole JSON object with the key "best", itself or in an object
    within it, counts, so that a judge may think aloud or repeat its question before; without one, an answer that is nothing but a
    letter or the word tie. An object before words that name another candidate, or before a broken object, is no answer.
    """
    letters = LETTERS[:candidates]
    answer = _END_OF_THOUGHTS.split(_THOUGHTS.sub(" ", answer))[-1]
    answer = _ANSWER.sub(" ", answer)
    found = [(end, choice) for end, plain in _objects(answer) for choice in [_chosen(plain)] if choice is not None]
    answers = [(end, choice) for end, choice in found if choice != [BLANK]]
    if not answers:
        return None if found else _legal(answer, letters)
    end, chosen = answers[-1]
    choices = {_legal(word, letters) for word in chosen}
    if len(choices) > 1:
        return None
    (choice,) = choices
    later = answer[end:]
    named = {word.casefold() for word in _LATER_WORD.findall(later)}
    broken = '"best"' in later and found[-1][0] == end  # and no later object of ours: one that was cut off
    return None if choice is None or broken or named - {choice.casefold()} else choice


def _objects(text: str) -> Iterator[tuple[int, Any]]:
    """Every whole JSON object that is in no other one, with the place behind it."""
    decoder, place = json.JSONDecoder(), text.find("{")
    while place >= 0:
        try:
            plain, end = decoder.raw_decode(text, place)
            yield end, plain
        except (ValueError, RecursionError):
            end = place + 1
        place = text.find("{", end)


def _chosen(plain: Any) -> list[str] | None:
    """What the key "best" says: its own, or those of all the objects within; None where there is no such key."""
    if isinstance(plain, str) and plain.strip()[:1] == "{":  # an object written into a text
        plain = next((inner for _, inner in _objects(plain)), None)
    if isinstance(plain, list):
        inside = plain
    elif isinstance(plain, dict):
        own = [value for key, value in plain.items() if key.strip().casefold() == "best"]
        if own and not isinstance(own[-1], dict):
            return [str(own[-1])]
        inside = own or list(plain.values())
    else:
        return None
    found = [choice for value in inside for choice in [_chosen(value)] if choice is not None]
    return [word for words in found for word in words] if found else None


def _legal(words: str, letters: str) -> str | None:
    """The letter or the tie that words are, but for marks around them and words such as "Candidate"."""
    words = " ".join(words.split()).strip(_MARKS)
    if _TIED.fullmatch(words):
        return TIE
    named = _NAMED.fullmatch(words)
    return named[1].upper() if named and named[1].upper() in letters else None
