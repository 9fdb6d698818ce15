"""`tunalab judge`: which of several models' images a vision-language model finds best, or most varied."""

import argparse
import json
import os
import time
from dataclasses import asdict
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunalab.cli.common import add_command
from tunalab.errors import UserError

if TYPE_CHECKING:
    from tunalab.cli.common import Commands
    from tunalab.evaluation.measure import Measure

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
    sub.add_argument("--threads", type=int, default=4, help="questions asked at a time (default: 4)")


def judge(arguments: argparse.Namespace) -> int:
    paths = [Path(word) for word in arguments.settings]
    for name, value in (("--prompts", arguments.prompts), ("--n", arguments.n), ("--threads", arguments.threads)):
        if value < 1:
            raise UserError(f"{name}={value} is out of range (from 1)")
    if arguments.timeout <= 0 or arguments.retries < 0:
        raise UserError(
            f"--timeout={arguments.timeout:g} --retries={arguments.retries}: a time above 0 and a count from 0 are needed"
        )
    from tunalab.evaluation.judging.ballots import LETTERS
    from tunalab.evaluation.judging.candidates import matched, read_folder
    from tunalab.evaluation.judging.endpoint import Endpoint
    from tunalab.evaluation.whole import Evaluated
    from tunalab.results.records import RECORD_FILE, add_evaluation

    began = time.perf_counter()
    names = [path.resolve().name for path in paths]
    if not 2 <= len(paths) <= len(LETTERS):
        raise UserError(f"a vote needs 2 to {len(LETTERS)} candidates, not {len(paths)}")
    if len(set(names)) < len(names):
        raise UserError(f"candidates are told apart by the names of their folders: {', '.join(names)}")
    endpoint = Endpoint.from_environment(os.environ, arguments.out / "answers", arguments.timeout, arguments.retries)
    made = [_folder(path, arguments.prompts, arguments.n) for path in paths]
    folders = [read_folder(folder) for folder, _ in made]
    prompts = matched(names, folders)
    votes, rates = _vote(arguments, endpoint, names, folders, prompts)
    settings = {"judge": endpoint.model, "candidates": names, "prompts": len(prompts), "pairwise": arguments.pairwise}
    _write(arguments.out / "judge.json", {"settings": settings, "usage": endpoint.usage, "votes": votes}, rates)
    for path, name, (_, origin) in zip(paths, names, made, strict=True):
        if origin is not None and (path / RECORD_FILE).is_file():
            add_evaluation(path / RECORD_FILE, [Evaluated("judge", settings, origin, time.perf_counter() - began, rates[name])])
    used = endpoint.usage
    tokens = f"{used['prompt_tokens']:,} tokens read, {used['completion_tokens']:,} written"
    print(f"{used['asked']} questions asked ({tokens}), {used['kept']} answered before")
    print(f"wrote {arguments.out / 'judge.json'}")
    return 0


def _vote(
    arguments: argparse.Namespace, endpoint: Any, names: list[str], folders: list[dict[str, list[Path]]], prompts: list[str]
) -> "tuple[list[dict[str, Any]], dict[str, list[Measure]]]":
    from tqdm import tqdm

    from tunalab.evaluation.judging.candidates import read_images
    from tunalab.evaluation.judging.comparison import compare

    groups = list(combinations(range(len(names)), 2)) if arguments.pairwise else [tuple(range(len(names)))]
    asked = [arguments.question] if arguments.question else list(CHOICES)
    votes: list[dict[str, Any]] = []
    rates: dict[str, list[Measure]] = {name: [] for name in names}
    with tqdm(total=len(groups) * len(asked) * len(prompts), desc="votes", disable=None, leave=False) as bar:
        for question in asked:
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
                places = ", ".join(f"{share:.2f}" for share in outcome.places)
                print(f"{question}: {outcome.ties} ties, {outcome.failures} not readable; wins by place shown: {places}")
                for name, rate in zip(chosen, outcome.rates, strict=True):
                    interval = "" if rate.low is None else f" [{rate.low:.3f}, {rate.high:.3f}]"
                    print(f"  {name}: {rate.value:.3f}{interval}{' ' * bool(rate.split)}{rate.split}, n {rate.n}")
                    rates[name].append(rate)
                votes += [{"question": question, "candidates": chosen, **asdict(vote)} for vote in outcome.votes]
    return votes, rates


def _folder(path: Path, count: int, n: int) -> tuple[Path, dict[str, Any] | None]:
    """A folder of images as it is; of a run directory the images its model makes of held-out captions, and the model's origin."""
    from tunalab.results.records import CONFIG_FILE

    if not (path / CONFIG_FILE).is_file():
        return path, None
    from tunalab.evaluation.held_out import held_out, prompt_of
    from tunalab.exporting import load_run
    from tunalab.inference.orders import ImageOrder, make_images, output_size
    from tunalab.inference.precision import find_device, precision

    device = find_device(None)
    loaded = load_run(path, device)
    config = loaded.config
    texts = list(dict.fromkeys(prompt_of(document) for document in held_out("text_to_image", count, config)))
    order = ImageOrder(loaded.identity, texts, range(n), output_size(config.data, None), config.sampling, precision(config, device))
    folder = path / "evaluation" / f"judged-{count}x{n}-{loaded.origin['tokens']}"
    make_images(loaded.model, loaded.tokenizer, config.objective, order, folder)
    return folder, loaded.origin


def _write(path: Path, told: dict[str, Any], rates: "dict[str, list[Measure]]") -> None:
    from tunalab.files import write_atomically

    plain = {**told, "rates": {name: [asdict(rate) for rate in measures] for name, measures in rates.items()}}
    write_atomically(path, json.dumps(plain, ensure_ascii=False, indent=1) + "\n")
