"""The commands that make each number of a report again."""

import json
import shlex
from collections.abc import Sequence
from pathlib import Path

from tunalab.config import NOT_IDENTITY, NOT_IDENTITY_INSIDE, config_hash, from_plain, load_config, to_plain
from tunalab.errors import UserError
from tunalab.files import below
from tunalab.results.analysis.fairness import revision
from tunalab.results.records import Record
from tunalab.results.report.document import Section
from tunalab.results.settings import leaves


def reproduce(records: Sequence[Record], sweeps: Sequence[str], folder: Path, root: Path) -> Section:
    """By what each part of the report is made again: tables and figures from the records, the records by training."""
    steps = {
        "This report": f"tunalab report --records {folder}",
        "Figures": f"tunalab figure curves --records {folder}",
        "Tables of accuracy, cost and evaluations": f"tunalab table --records {folder}",
    }
    if len(records) > 1:
        steps["How two runs differ"] = f"tunalab diff {folder / records[0].run.name}.json {folder / records[1].run.name}.json"
    if any(record.evaluation for record in records):
        steps["Evaluations of a finished model, after training"] = (
            f"tunalab evaluate runs/{sweeps[0] if len(sweeps) == 1 else records[0].run.experiment}/NAME"
        )
    here = [name for name in sweeps if (file := below(root / "sweeps", f"{name}.yaml", links=True)) and file.is_file()]
    if here:
        steps["All runs that have no record here"] = "\n".join(f"tunalab sweep {name}" for name in here)
    blocks = [f"{what}:\n\n```\n{command}\n```" for what, command in steps.items()]
    code = "; ".join(dict.fromkeys(revision(record) for record in records))
    lines = "\n".join(run_command(record, root) for record in records)
    made = f"The records were made at commit {code}. `git checkout` it for the code of that day"
    made += ", without what was modified, which is not on record." if any(r.environment.get("dirty") for r in records) else "."
    blocks.append(f"{made} Each run alone:\n\n```\n{lines}\n```")
    return Section("Commands", "\n\n".join(blocks))


def run_command(record: Record, root: Path) -> str:
    """A call of `tunalab train` that resolves to the record's configuration under today's files; a comment where none does."""
    run = record.run
    experiment = below(root / "experiments", f"{run.experiment}.yaml", links=True)
    files = experiment or Path(), below(root / "variants", f"{run.variant}.yaml", links=True) or Path()  # no file: refused below
    try:
        wanted = from_plain(record.config)
        words = _settings(to_plain(load_config(*files, [])), to_plain(wanted))
        if config_hash(load_config(*files, words)) == config_hash(wanted):
            call = ["tunalab", "train", "--experiment", run.experiment, "--variant", run.variant, *words]
            return " ".join(shlex.quote(word) for word in call)
    except UserError as error:
        return f"# {run.name}: today's settings refuse its configuration ({error})"
    return f"# {run.name}: no settings over {run.experiment} and {run.variant} give its configuration, which its record holds"


def _settings(base: dict[str, object], wanted: dict[str, object]) -> list[str]:
    """``key=value`` for all in which two configurations differ, the seed always; what changes no result is left out."""
    old, new = dict(leaves(base)), dict(leaves(wanted))
    left_out = {*NOT_IDENTITY_INSIDE, "seed"}
    differ = [key for key in new if new[key] != old.get(key) and key.split(".")[0] not in NOT_IDENTITY and key not in left_out]
    return [*(f"{key}={_written(new[key])}" for key in differ), f"seed={new['seed']}"]


def _written(value: object) -> str:
    """As the command line reads it back: lists are JSON already."""
    return value if isinstance(value, str) and value else json.dumps(value)
