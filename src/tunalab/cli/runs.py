"""Commands on one run: `tunalab train`, `settings`, `plan`, `data`, `fetch`, `ladder` and `check-frontend`."""

import argparse
import json
import os
import shlex
from contextlib import AbstractContextManager
from dataclasses import asdict
from pathlib import Path
from typing import IO, TYPE_CHECKING

from tunalab.cli.common import add_command, add_settings, check_out, positive
from tunalab.errors import UserError
from tunalab.files import write_atomically
from tunalab.library import attempt, check_named, inspect_data, prepared, try_steps
from tunalab.library import plan as make_plan
from tunalab.redaction import restored

if TYPE_CHECKING:
    from tunalab.cli.common import Commands
    from tunalab.settings.schema import RunConfig

MISTAKE = 2  # the exit code of a UserError
EXPERIMENT, VARIANT = "scenes", "tuna2"
MANIFESTS = (".jsonl", ".ndjson", ".json")  # what their names end in


def add(commands: "Commands") -> None:
    sub = add_command(commands, train, "train one run, or resume it")
    sub.add_argument("--experiment", help=f"a file of experiments/ (default: {EXPERIMENT})")
    sub.add_argument("--variant", help=f"a file of variants/ (default: {VARIANT})")
    sub.add_argument("--config", type=Path, help="a run's saved config.yaml: train the same run again, in another directory")
    sub.add_argument("--run-dir", type=_named, help="default: runs/<experiment>/<variant>-seed<seed>, with --config also its hash")
    words = "run directory of a sweep's trunk: where it ends this run begins, if they share all until there"
    sub.add_argument("--trunk", type=Path, metavar="DIR", help=words)
    words = "be such a trunk: end before the first step of the stage that has this share of its tokens behind it"
    sub.add_argument("--until", metavar="STAGE@SHARE", help=words)
    add_settings(sub)

    sub = add_command(commands, settings, "print the settings of a run: value, source, range or choices, help")
    words = "part of a name, or a pattern with *; settings over the files"
    sub.add_argument("settings", nargs="*", metavar="PATTERN | key=value", help=words)
    sub.add_argument("--experiment", default=EXPERIMENT, help="a file of experiments/ (default: %(default)s)")
    sub.add_argument("--variant", default=VARIANT, help="a file of variants/ (default: %(default)s)")
    sub.add_argument("--markdown", action="store_true", help="print the reference page, docs/settings.md")

    text = "estimate the cost of a run (parameters, FLOPs, memory, days, price) or of a sweep (GPU-hours, storage, price)"
    sub = add_command(commands, plan, f"{text}; no weights, no data, no network")
    words = "a file of experiments/ and one of variants/, or a file of sweeps/ alone; then settings over them"
    sub.add_argument("settings", nargs="*", metavar="EXPERIMENT VARIANT | SWEEP [key=value]", help=words)
    sub.add_argument("--gpus", type=int, default=1, help="GPUs per run (default: 1)")
    sub.add_argument("--gpu", help="by name, for its rate, memory and price: rtx4090, l40s, a100, h100, ... (default: h100)")
    sub.add_argument("--gpu-flops", type=float, help="FLOPs per second in dense bfloat16, instead of a named GPU's")
    sub.add_argument("--utilisation", type=float, default=0.4, help="share of that rate that training reaches (default: 0.4)")
    sub.add_argument("--sharding", choices=("none", "ddp", "fsdp2"), help="default: distribution.strategy of the experiment")
    sub.add_argument("--price", type=float, help="dollars per GPU-hour (default: the named GPU's, a round figure for a rented one)")
    sub.add_argument("--sample", action="store_true", help="read the run's own data instead of assuming lengths of documents")
    sub.add_argument("--json", action="store_true", help="print everything as JSON")
    words = "also take a step of a slice of the model (its widths, a few layers) on this machine's CPU, on a row of each length "
    words += "(default: the run's), and print memory as planned and as measured; takes minutes"
    sub.add_argument("--try", type=int, nargs="*", dest="tried", metavar="TOKENS", help=words)

    text = "look at the data of a run before it is trained: rejects, lengths, pictures, the mix by tokens, copies of benchmarks"
    sub = add_command(commands, data, f"{text}; exit code 2 if a run would stop at them")
    words = f"a file of experiments/ and one of variants/ (default: {VARIANT}), or JSONL manifests; then settings over them"
    sub.add_argument("settings", nargs="*", metavar="EXPERIMENT [VARIANT] | FILE.jsonl ... [key=value]", help=words)
    sub.add_argument("--html", type=Path, metavar="FILE", help="also write a page with pictures, as the model gets them")
    words = "manifest whose pictures are looked for in the training data (may be given several times)"
    sub.add_argument("--held-out", type=Path, action="append", default=[], metavar="FILE.jsonl", help=words)
    sub.add_argument("--limit", type=int, metavar="N", help="documents read of each source (default: 2000)")
    sub.add_argument("--json", action="store_true", help="print everything as JSON")

    text = (
        "bring everything that an experiment takes from the Hub into a folder, for nodes without network; called again, it goes on"
    )
    sub = add_command(commands, fetch, text)
    words = "a file of experiments/ and any of variants/ (default: all it is for), or a file of sweeps/; then settings over them"
    sub.add_argument("settings", nargs="*", metavar="EXPERIMENT [VARIANT ...] | SWEEP [key=value]", help=words)
    sub.add_argument("--to", type=_named, required=True, metavar="DIR", help="the folder")
    sub.add_argument("--limit", type=int, metavar="N", help="the first N shards of every address (default: all)")
    words = "published benchmarks by name, or all, as folders for `tunalab evaluate`"
    sub.add_argument("--benchmarks", nargs="+", default=[], metavar="NAME", help=words)

    sub = add_command(commands, ladder, "print what each size of machine can run, for how long and at what price; a minute or two")
    words = "files whose tables between the markers of `make ladder` are written anew, instead of printing them"
    sub.add_argument("--into", type=Path, nargs="+", default=[], metavar="FILE", help=words)

    sub = add_command(commands, check_frontend, "run the contract's checks on a front-end")
    sub.add_argument("name", help="my_package.module:Class, path/to/file.py:Class, or a name that is registered")
    sub.add_argument("settings", nargs="*", default=[], metavar="key=value", help="its settings, such as frontend.patch=16")
    sub.add_argument("--width", type=int, default=24, help="of the decoder (default: 24)")


def _named(path: str) -> Path:
    """An empty name (of a variable that is not set, say) is no folder: to pathlib it is this one."""
    if not path:
        raise argparse.ArgumentTypeError("the name is empty")
    return Path(path)


def train(arguments: argparse.Namespace) -> int:
    from tunalab.training import several_started

    if several_started():
        return _train_together(arguments)
    config, run_dir, lock = _prepared(arguments)
    with lock as held:
        return attempt(config, run_dir, held, trunk=arguments.trunk, until=arguments.until)


def _train_together(arguments: argparse.Namespace) -> int:
    """As one of the processes that a launcher has started: they meet first, so that a mistake is printed once and ends all."""
    from tunalab.training.distribution import ReportedByFirst, joined

    try:
        with joined() as ranks:
            with ranks.together(patient=True):  # the first start indexes the shards, which may take hours
                config, run_dir, lock = _prepared(arguments, locks=ranks.first)
            with lock as held:
                return attempt(config, run_dir, held, trunk=arguments.trunk, until=arguments.until)
    except ReportedByFirst:
        return MISTAKE


def _prepared(
    arguments: argparse.Namespace, locks: bool = True
) -> "tuple[RunConfig, Path, AbstractContextManager[IO[str] | None]]":
    words = restored(arguments.settings, os.environ)
    if arguments.config is not None:
        for name in ("experiment", "variant"):
            if getattr(arguments, name):
                raise UserError(f"--config {arguments.config} replays a run as it was: leave out '--{name}'")
    experiment, variant = arguments.experiment or EXPERIMENT, arguments.variant or VARIANT
    return prepared(experiment, variant, words, arguments.run_dir, arguments.config, locks)


def settings(arguments: argparse.Namespace) -> int:
    from tunalab.evaluation.parts import EvaluationSettings
    from tunalab.settings.reference import in_force, markdown, matching, table

    patterns = [word for word in arguments.settings if "=" not in word]
    overrides = [word for word in arguments.settings if "=" in word]
    if arguments.markdown:
        if arguments.settings:
            raise UserError(f"--markdown prints all settings at their defaults: leave out '{arguments.settings[0]}'")
        print(markdown(EvaluationSettings), end="")
        return 0
    check_named(overrides)
    from tunalab.settings.layers import run_files

    files = run_files(arguments.experiment, arguments.variant)
    print(table(matching(patterns, in_force(*files, overrides))))
    return 0


def plan(arguments: argparse.Namespace) -> int:
    names = [word for word in arguments.settings if "=" not in word]
    words = [word for word in arguments.settings if "=" in word]
    if len(names) not in (1, 2):
        raise UserError(f"EXPERIMENT VARIANT, or a SWEEP alone, is to be planned, not {' '.join(names) or 'nothing'}")
    of = ("gpus", "gpu", "gpu_flops", "utilisation", "sharding", "sample", "price")
    variant = names[1] if len(names) == 2 else None
    tried = arguments.tried
    if tried is not None and variant is None:
        raise UserError("--try is for one run: EXPERIMENT VARIANT")
    for tokens in tried or []:
        positive("--try", tokens)
    made = make_plan(names[0], variant, words, **{name: getattr(arguments, name) for name in of})
    from tunalab.planning.plan import Plan, to_plain, to_text
    from tunalab.planning.sweep import to_plain_sweep, to_text_sweep

    if isinstance(made, Plan):
        if not arguments.json:
            print(to_text(made), flush=True)  # trying takes a while, and may fail
        trials = [] if tried is None or variant is None else try_steps(names[0], variant, words, tried)
        if arguments.json:
            print(json.dumps({**to_plain(made), **({"trials": [asdict(one) for one in trials]} if trials else {})}, indent=1))
        else:
            print("".join(f"\n{one}\n" for one in trials), end="")
    else:
        print(json.dumps(to_plain_sweep(made), indent=1) if arguments.json else to_text_sweep(made))
    return 0


def data(arguments: argparse.Namespace) -> int:
    names = [word for word in arguments.settings if "=" not in word]
    words = [word for word in arguments.settings if "=" in word]
    manifests = [name for name in names if name.endswith(MANIFESTS)]
    if not names or (manifests and len(manifests) < len(names)) or (not manifests and len(names) > 2):
        needed = f"EXPERIMENT [VARIANT], or manifests ({', '.join(MANIFESTS)})"
        raise UserError(f"{needed}, are to be looked at, not {' '.join(names) or 'nothing'}")
    if arguments.html is not None:
        check_out(arguments.html, option="--html")
    limit = None if arguments.limit is None else positive("--limit", arguments.limit)
    experiment, variant = (EXPERIMENT, VARIANT) if manifests else (*names, VARIANT)[:2]
    found = inspect_data(experiment, variant, words, manifests, arguments.held_out, limit)
    from tunalab.analysis.data_page import to_html, to_plain, to_text

    print(json.dumps(to_plain(found), indent=1) if arguments.json else to_text(found))
    if arguments.html is not None:
        write_atomically(arguments.html, to_html(found))
        if not arguments.json:
            print(f"wrote {arguments.html}")
    if found.problems:
        raise UserError(found.problems[0] + (f" (and {len(found.problems) - 1} more)" if len(found.problems) > 1 else ""))
    return 0


def fetch(arguments: argparse.Namespace) -> int:
    """Exit code 1 where something that the runs need is not on the Hub."""
    names = [word for word in arguments.settings if "=" not in word]
    words = [word for word in arguments.settings if "=" in word]
    if not names:
        raise UserError("EXPERIMENT [VARIANT ...], or a SWEEP, is to be fetched, not nothing")
    from tunalab.library import fetch as bring

    done = bring(names[0], names[1:], arguments.to, words, arguments.limit, arguments.benchmarks)
    print(f"{done.files} files, {done.size / 1e9:,.3g} GB in {done.folder}: each as the Hub states it")
    for line in done.left:
        print(f"not fetched: {line}")
    variables = " ".join(f"{name}={shlex.quote(value)}" for name, value in done.variables.items())
    print(f"without network: export {variables}")
    if done.settings:
        print(f"with the settings: {' '.join(map(shlex.quote, done.settings))}")
    if arguments.benchmarks:
        print(f"`tunalab evaluate` reads the benchmarks with published.data={shlex.quote(str(done.folder / 'benchmarks'))}")
    return 1 if done.left else 0


def ladder(arguments: argparse.Namespace) -> int:
    for file in arguments.into:
        if not file.is_file():
            raise UserError(f"--into {file}: there is no such file")
    from tunalab.analysis.power import power_table
    from tunalab.collection import records
    from tunalab.library import ladder as make_ladder
    from tunalab.planning.ladder import SEEDS_RECORDS, long_table, seeds_table, short_table, write_blocks

    costs = make_ladder()
    if not arguments.into:
        print(long_table(costs))
        return 0
    try:
        seeds = seeds_table(power_table([*records(SEEDS_RECORDS, evaluation=False)]))
    except UserError as error:  # of one seed nothing can be planned
        seeds = f"Not yet: {error}."
    blocks = {"ladder": long_table(costs), "short ladder": short_table(costs), "seeds": seeds}
    for file in arguments.into:
        print(f"{file}: {', '.join(write_blocks(file, blocks)) or 'nothing'} changed")
    return 0


def check_frontend(arguments: argparse.Namespace) -> int:
    """A line per check; exit code 1 where one fails."""
    from tunalab.frontends.checks import run_checks
    from tunalab.frontends.registry import build_frontend, look_of
    from tunalab.settings.loading import check, from_plain, laid_over, to_plain
    from tunalab.settings.schema import REVISION, RunConfig, StageConfig

    blank = RunConfig(revision=REVISION, variant="", stages={"pretrain": StageConfig(mix={"scenes/caption": 1.0})})
    config = from_plain(to_plain(blank))
    for setting in (f"frontend.name={arguments.name}", *arguments.settings):
        config = laid_over(config, setting)
    check(config)
    positive("--width", arguments.width)
    side = build_frontend(config.frontend, arguments.width, 0).space.token_pixels
    look = look_of(config)
    print(f"{look.label} ({look.source}): {', '.join(f'{name} {level}' for name, level in look.factors.items())}")
    failed = 0
    for name, wrong in run_checks(lambda: build_frontend(config.frontend, arguments.width, 4 * side)):
        print(f"{'failed' if wrong else 'ok':>6}  {name}{f': {wrong}' if wrong else ''}")
        failed += bool(wrong)
    return 1 if failed else 0
