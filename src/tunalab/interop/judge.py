"""A vote on images of several models: candidates, ballots, and how often each one wins, with intervals.

A judge prefers places (the first, the last) whatever stands there. So places are dealt out
equally often: place and candidate are independent, and a judge that looks at places alone finds
every candidate equally good.

Shapes: N images, H W C image pixels and channels.
"""

import io
import json
import random
import re
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from itertools import combinations, permutations
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from tunalab.errors import UserError
from tunalab.evaluation.along import held_out, prompt_of
from tunalab.evaluation.measure import Measure, mean
from tunalab.evaluation.whole import Evaluated
from tunalab.files import listed, write_atomically
from tunalab.inference.images import read_settings
from tunalab.inference.requests import GenerationRequest
from tunalab.interop.endpoint import Endpoint, NoAnswer
from tunalab.records.record import CONFIG_FILE, RECORD_FILE, add_evaluation
from tunalab.terminal import progress_bar
from tunalab.trained.model import load


@dataclass(frozen=True)
class Candidate:
    """``images``: of every prompt its files. Of a run directory also which variant made them, and the model's origin."""

    path: Path
    images: dict[str, list[Path]]
    variant: str | None = None
    origin: dict[str, Any] | None = None

    @property
    def run(self) -> str:
        return self.path.resolve().name


def judge(
    candidates: Sequence[str | Path],
    endpoint: Endpoint,
    out: Path,
    questions: Sequence[str] = (),
    prompts: int = 100,
    n: int = 4,
    pairwise: bool = False,
    threads: int = 4,
) -> dict[str, dict[str, list[Measure]]]:
    """Put images of several models to a judge; win rates by question (quality | diversity, by default both) and candidate.

    ``candidates``: folders of images made by `tunalab generate`, or run directories, whose models make ``n`` images of each of
    ``prompts`` held-out captions first. ``pairwise``: every two of them by themselves, else the best of all at once. ``threads``:
    questions at a time. Results are printed, written to ``out``/QUESTION.json and to the records of run directories.

    Raises UserError: too few or too many candidates, candidates of one name, images that cannot be compared, the judge does
    not answer.
    """
    paths = [Path(path) for path in candidates]
    runs = [path.resolve().name for path in paths]
    if not 2 <= len(paths) <= len(LETTERS):
        raise UserError(f"a vote needs 2 to {len(LETTERS)} candidates, not {len(paths)}")
    if len(set(runs)) < len(runs):
        raise UserError(f"candidates are told apart by the names of their folders: {', '.join(runs)}")
    found = [_candidate(path, prompts, n) for path in paths]
    names = [one.variant or one.run for one in found]
    if len(set(names)) < len(names):  # two runs of one variant against each other
        names = runs
    folders = [one.images for one in found]
    common = matched(runs, folders)
    for line in unequal(runs, folders):
        print(f"warning: {line}", file=sys.stderr)
    settings = {"judge": endpoint.model, "candidates": names, "prompts": len(common), "pairwise": pairwise}
    settings |= {"temperature": endpoint.temperature, "max_tokens": endpoint.max_tokens}
    results: dict[str, dict[str, list[Measure]]] = {}
    for question in questions or QUESTIONS:
        began, before = time.perf_counter(), dict(endpoint.usage)
        votes, places, rates = _vote(endpoint, question, common, names, folders, pairwise, threads)
        used = {name: count - before[name] for name, count in endpoint.usage.items()}
        plain = {
            **{"question": question, "settings": settings, "runs": runs, "usage": used},
            **{"asked_with": endpoint.parameters, "refused": endpoint.refused, "places": places, "votes": votes},
            "rates": {name: [asdict(rate) for rate in measures] for name, measures in rates.items()},
        }
        write_atomically(out / f"{question}.json", json.dumps(plain, ensure_ascii=False, indent=1) + "\n")
        for one, name in zip(found, names, strict=True):
            if one.origin is not None and (one.path / RECORD_FILE).is_file():
                result = Evaluated(f"judge {question}", settings, one.origin, time.perf_counter() - began, rates[name])
                add_evaluation(one.path / RECORD_FILE, [result])
        tokens = f"{used['prompt_tokens']:,} tokens read, {used['completion_tokens']:,} written"
        print(f"{used['asked']} questions asked, {used['kept']} answered before; {tokens} in all")
        print(f"wrote {out / f'{question}.json'}")
        results[question] = rates
    return results


def _candidate(path: Path, prompts: int, n: int) -> Candidate:
    if not (path / CONFIG_FILE).is_file():
        return Candidate(path, read_folder(path))
    model = load(path)
    texts = list(dict.fromkeys(prompt_of(document) for document in held_out("text_to_image", prompts, model.config)))
    folder = path / "evaluation" / f"judged-{prompts}x{n}-{model.origin['tokens']}"
    model.write_images(texts, GenerationRequest(n), folder)
    return Candidate(path, read_folder(folder), model.config.variant, model.origin)


def _vote(
    endpoint: Endpoint,
    question: str,
    prompts: list[str],
    names: list[str],
    folders: list[dict[str, list[Path]]],
    pairwise: bool,
    threads: int,
) -> tuple[list[dict[str, Any]], list[dict[str, Any]], dict[str, list[Measure]]]:
    """All votes, and what came of every candidate in every place, plain; and the win rates of every candidate."""
    groups = list(combinations(range(len(names)), 2)) if pairwise else [tuple(range(len(names)))]
    votes: list[dict[str, Any]] = []
    places: list[dict[str, Any]] = []
    rates: dict[str, list[Measure]] = {name: [] for name in names}
    with progress_bar(total=len(groups) * len(prompts), desc=question) as bar:
        for group in groups:
            chosen = [names[number] for number in group]

            def images(candidate: int, prompt: int, group: tuple[int, ...] = group) -> np.ndarray:
                return read_images(folders[group[candidate]][prompts[prompt]])

            outcome = compare(endpoint, question, prompts, images, chosen, threads=threads, watch=bar.update)
            print(f"{question}: {outcome.ties} ties, {outcome.failures} without an answer")
            if outcome.failures:
                print(f"  without an answer: {reasons(outcome.votes)}")
            for name, rate, row in zip(chosen, outcome.rates, outcome.places, strict=True):
                interval = "" if rate.low is None else f" [{rate.low:.3f}, {rate.high:.3f}]"
                print(f"  {name}: {rate.value:.3f}{interval}{' ' * bool(rate.split)}{rate.split}, n {rate.n}")
                cells = [f"{letter} {place.described}" for letter, place in zip(LETTERS[: len(row)], row, strict=True)]
                print(f"    wins by place shown: {', '.join(cells)}")
                places.append({"candidates": chosen, "candidate": name, "places": [asdict(place) for place in row]})
                rates[name].append(rate)
            votes += [{"candidates": chosen, **asdict(vote)} for vote in outcome.votes]
    return votes, places, rates


def read_folder(folder: Path) -> dict[str, list[Path]]:
    """Prompt -> the files of its images, both by file name. Raises UserError: no such folder, or no image with its prompt."""
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder of images")
    found: dict[str, list[Path]] = {}
    for path in listed(folder, "*.png"):
        settings = read_settings(path)
        if settings is not None and isinstance(settings.get("prompt"), str):
            found.setdefault(settings["prompt"], []).append(path)
    if not found:
        raise UserError(f"{folder} holds no PNG that says which prompt it was made of: make them with `tunalab generate`")
    return found


def matched(names: Sequence[str], folders: Sequence[dict[str, list[Path]]]) -> list[str]:
    """The prompts of all candidates, in the order of the first. Raises UserError: prompts or numbers of images differ."""
    first = folders[0]
    for name, files in zip(names[1:], folders[1:], strict=True):
        different = [prompt for prompt in [*first, *files] if len(first.get(prompt, ())) != len(files.get(prompt, ()))]
        if different:
            prompt = different[0]
            raise UserError(
                f"{names[0]} has {len(first.get(prompt, ()))} images of {prompt!r} and {name} {len(files.get(prompt, ()))}: "
                "a fair vote needs the same number"
            )
    return list(first)


def unequal(names: Sequence[str], folders: Sequence[dict[str, list[Path]]]) -> list[str]:
    """Settings in which candidates' images were made differently, a line each: a vote on them is not one on the models alone."""
    made = [read_settings(next(iter(files.values()))[0]) or {} for files in folders]
    lines = []
    for key in ("size", "sampler", "steps", "guidance"):
        values = [settings.get(key) for settings in made]
        if any(value != values[0] for value in values):
            lines.append(f"{key} differs: " + ", ".join(f"{name} {value}" for name, value in zip(names, values, strict=True)))
    return lines


def read_images(paths: Sequence[Path]) -> np.ndarray:
    """RGB uint8 (N, H, W, 3). Raises UserError when they differ in size."""
    images = []
    for path in paths:
        with Image.open(path) as image:
            images.append(np.asarray(image.convert("RGB")))
    if len({pixels_HWC.shape for pixels_HWC in images}) > 1:
        raise UserError(f"{paths[0].parent}: images of one prompt differ in size")
    return np.stack(images)


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
        """The question to the judge; the images follow, one picture per letter."""
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

    @property
    def described(self) -> str:
        """``3 of 10 (and 2 without an answer)``."""
        return f"{self.wins} of {self.shown - self.failures}" + (f" (and {self.failures} without an answer)" * bool(self.failures))


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

    A win counts 1 and a tie 1 / candidates for each. ``tries``: of a question whose answer cannot be read. ``watch`` is
    called after each ballot.

    Raises UserError: the judge does not answer, or gave no readable answer at all.
    """
    ballots = deal(prompts, len(names), seed)

    def vote(number: int) -> Vote:
        ballot = ballots[number]
        shown = [(f"Candidate {LETTERS[place]}:", picture(images(who, number))) for place, who in enumerate(ballot.order)]
        winner, reason = _winner(endpoint, ballot, question, shown, tries)
        watch()
        return Vote(ballot, winner, reason)

    with ThreadPoolExecutor(threads) as pool:
        votes = [pool.submit(vote, number) for number in range(len(ballots))]
        try:
            results = [future.result() for future in votes]
        except BaseException:
            pool.shutdown(wait=True, cancel_futures=True)  # questions already put are answered and kept, the rest is not begun
            raise
    return tally(results, question, names, endpoint.described)


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
        # Of two, the other one is part of the measure; of more, the best of all is one measure for all of them.
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


def _winner(
    endpoint: Endpoint, ballot: Ballot, question: str, shown: list[tuple[str, bytes]], tries: int
) -> tuple[int | None, str]:
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
