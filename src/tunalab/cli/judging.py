"""`tunalab judge`: which of several models' images a vision-language model finds best, or most varied."""

import argparse
import json
import os
import sys
import time
from dataclasses import asdict, dataclass
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunalab.cli.common import add_command
from tunalab.errors import UserError
from tunalab.terminal import progress_bar

if TYPE_CHECKING:
    from tunalab.cli.common import Commands
    from tunalab.evaluation.measure import Measure
    from tunalab.interop.endpoint import Endpoint
    from tunalab.interop.judge import Place

CHOICES = ("quality", "diversity")


def add(commands: "Commands") -> None:
    text = "put images of several models to a judge: any OpenAI-compatible endpoint (TUNALAB_JUDGE_URL, _KEY, _MODEL)"
    sub = add_command(commands, judge, text)
    sub.add_argument("settings", nargs="+", metavar="CANDIDATE", help="run directories, or folders made by `tunalab generate`")
    sub.add_argument("--question", choices=CHOICES, help="default: both")
    sub.add_argument("--pairwise", action="store_true", help="every two candidates by themselves, not the best of all at once")
    sub.add_argument("--prompts", type=int, default=100, help="of run directories: held-out captions of scenes (default: 100)")
    sub.add_argument("--n", type=int, default=4, help="of run directories: images a prompt (default: 4)")
    sub.add_argument("--out", type=Path, default=Path("judged"), help="folder of answers and result (default: judged)")
    sub.add_argument("--timeout", type=float, default=120.0, help="seconds a try (default: 120)")
    sub.add_argument("--retries", type=int, default=4, help="after a failed try (default: 4)")
    sub.add_argument("--temperature", type=float, default=0.0, help="of the judge (default: 0)")
    limit = "tokens of an answer, with the thoughts of a judge that reasons (default: 4096)"
    sub.add_argument("--max-tokens", type=int, default=4096, help=limit)
    sub.add_argument("--threads", type=int, default=4, help="questions asked at a time (default: 4)")


def judge(arguments: argparse.Namespace) -> int:
    paths = [Path(word) for word in arguments.settings]
    for name in ("prompts", "n", "threads", "max_tokens"):
        if getattr(arguments, name) < 1:
            raise UserError(f"--{name.replace('_', '-')}={getattr(arguments, name)} is out of range (from 1)")
    if not 0 <= arguments.temperature <= 2:
        raise UserError(f"--temperature={arguments.temperature:g} is out of range (0 to 2)")
    if arguments.timeout <= 0 or arguments.retries < 0:
        raise UserError(
            f"--timeout={arguments.timeout:g} --retries={arguments.retries}: a time above 0 and a count from 0 are needed"
        )
    from tunalab.evaluation.whole import Evaluated
    from tunalab.interop.endpoint import Endpoint
    from tunalab.interop.judge import LETTERS, matched, read_folder, unequal
    from tunalab.records.record import RECORD_FILE, add_evaluation

    runs = [path.resolve().name for path in paths]
    if not 2 <= len(paths) <= len(LETTERS):
        raise UserError(f"a vote needs 2 to {len(LETTERS)} candidates, not {len(paths)}")
    if len(set(runs)) < len(runs):
        raise UserError(f"candidates are told apart by the names of their folders: {', '.join(runs)}")
    how = arguments.timeout, arguments.retries, arguments.temperature, arguments.max_tokens
    endpoint = Endpoint.from_environment(os.environ, arguments.out / "answers", *how)
    made = [_made(path, arguments.prompts, arguments.n) for path in paths]
    names = [run if one.variant is None else one.variant for run, one in zip(runs, made, strict=True)]
    if len(set(names)) < len(names):  # two runs of one variant against each other
        names = runs
    folders = [read_folder(one.folder) for one in made]
    prompts = matched(runs, folders)
    for line in unequal(runs, folders):
        print(f"warning: {line}", file=sys.stderr)
    settings = {"judge": endpoint.model, "candidates": names, "prompts": len(prompts), "pairwise": arguments.pairwise}
    settings |= {"temperature": endpoint.temperature, "max_tokens": endpoint.max_tokens}
    for question in [arguments.question] if arguments.question else CHOICES:
        began, before = time.perf_counter(), dict(endpoint.usage)
        votes, places, rates = _vote(arguments, question, endpoint, names, folders, prompts)
        used = {name: count - before[name] for name, count in endpoint.usage.items()}
        told = {"question": question, "settings": settings, "runs": runs, "usage": used}
        told |= {"asked_with": endpoint.asked_with, "refused": endpoint.refused, "places": places, "votes": votes}
        _write(arguments.out / f"{question}.json", told, rates)
        for path, name, one in zip(paths, names, made, strict=True):
            if one.origin is not None and (path / RECORD_FILE).is_file():
                result = Evaluated(f"judge {question}", settings, one.origin, time.perf_counter() - began, rates[name])
                add_evaluation(path / RECORD_FILE, [result])
        tokens = f"{used['prompt_tokens']:,} tokens read, {used['completion_tokens']:,} written"
        print(f"{used['asked']} questions asked, {used['kept']} answered before; {tokens} in all")
        print(f"wrote {arguments.out / f'{question}.json'}")
    return 0


def _vote(
    arguments: argparse.Namespace,
    question: str,
    endpoint: "Endpoint",
    names: list[str],
    folders: list[dict[str, list[Path]]],
    prompts: list[str],
) -> "tuple[list[dict[str, Any]], list[dict[str, Any]], dict[str, list[Measure]]]":
    """All votes, and what came of every candidate in every place, plain; and the win rates of every candidate."""
    from tunalab.interop.judge import LETTERS, compare, read_images, reasons

    groups = list(combinations(range(len(names)), 2)) if arguments.pairwise else [tuple(range(len(names)))]
    votes: list[dict[str, Any]] = []
    places: list[dict[str, Any]] = []
    rates: dict[str, list[Measure]] = {name: [] for name in names}
    with progress_bar(total=len(groups) * len(prompts), desc=question) as bar:
        for group in groups:
            chosen = [names[number] for number in group]
            outcome = compare(
                endpoint,
                question,
                prompts,
                lambda candidate, prompt, group=group: read_images(folders[group[candidate]][prompts[prompt]]),  # type: ignore[misc]
                chosen,
                threads=arguments.threads,
                watch=bar.update,
            )
            print(f"{question}: {outcome.ties} ties, {outcome.failures} without an answer")
            if outcome.failures:
                print(f"  without an answer: {reasons(outcome.votes)}")
            for name, rate, row in zip(chosen, outcome.rates, outcome.places, strict=True):
                interval = "" if rate.low is None else f" [{rate.low:.3f}, {rate.high:.3f}]"
                print(f"  {name}: {rate.value:.3f}{interval}{' ' * bool(rate.split)}{rate.split}, n {rate.n}")
                cells = [_cell(LETTERS[number], place) for number, place in enumerate(row)]
                print(f"    wins by place shown: {', '.join(cells)}")
                places.append({"candidates": chosen, "candidate": name, "places": [asdict(place) for place in row]})
                rates[name].append(rate)
            votes += [{"candidates": chosen, **asdict(vote)} for vote in outcome.votes]
    return votes, places, rates


def _cell(letter: str, place: "Place") -> str:
    """``A 3 of 10 (and 2 without an answer)``."""
    failed = f" (and {place.failures} without an answer)" if place.failures else ""
    return f"{letter} {place.wins} of {place.shown - place.failures}{failed}"


@dataclass(frozen=True)
class _Made:
    """A folder of images; of a run directory also which variant made them, and the model's origin."""

    folder: Path
    variant: str | None = None
    origin: dict[str, Any] | None = None


def _made(path: Path, count: int, n: int) -> _Made:
    """A folder of images as it is; of a run directory the images that its model makes of held-out captions."""
    from tunalab.records.record import CONFIG_FILE

    if not (path / CONFIG_FILE).is_file():
        return _Made(path)
    from tunalab.evaluation.along import held_out, prompt_of
    from tunalab.inference.orders import GenerationRequest, find_device
    from tunalab.trained.model import load_run

    loaded = load_run(path, find_device(None))
    config = loaded.config
    texts = list(dict.fromkeys(prompt_of(document) for document in held_out("text_to_image", count, config)))
    folder = path / "evaluation" / f"judged-{count}x{n}-{loaded.origin['tokens']}"
    loaded.write_images(loaded.order(texts, GenerationRequest(n)), folder)
    return _Made(folder, config.variant, loaded.origin)


def _write(path: Path, told: dict[str, Any], rates: "dict[str, list[Measure]]") -> None:
    from tunalab.files import write_atomically

    plain = {**told, "rates": {name: [asdict(rate) for rate in measures] for name, measures in rates.items()}}
    write_atomically(path, json.dumps(plain, ensure_ascii=False, indent=1) + "\n")
