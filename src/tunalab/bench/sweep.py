"""What `make sweep VARIANT=tuna2` took and reached, from its committed records: minutes, memory, benchmarks above chance."""

from collections.abc import Sequence
from typing import Any

from tunalab.errors import UserError
from tunalab.results.analysis.curves import align_tokens, curves
from tunalab.results.analysis.statistics import above_chance
from tunalab.results.records import Record
from tunalab.results.settings import told_apart

REQUIRED_MINUTES, REQUIRED_GB, REQUIRED_ABOVE = 20.0, 4.0, 5


def bench_sweep(records: Sequence[Record], variant: str = "tuna2") -> dict[str, Any]:
    """Figures of the finished runs of one variant. Harder levels (``count@3``) are not among the benchmarks that are counted.

    Minutes are those of training, as records hold no others: starts and evaluations come on top.

    Raises:
        UserError: no run of the variant is finished.
    """
    runs = [record for record in records if record.run.variant == variant and record.run.finished]
    if not runs:
        raise UserError(f"no finished record of {variant}: train the sweep and publish it first")
    parallel = min(len(runs), *(_at_a_time(record.environment) for record in runs))
    minutes = sum(record.totals.seconds for record in runs) / 60
    reached = above_chance(align_tokens(curves(runs)))
    settings = sorted(set(told_apart(runs)), key=lambda setting: setting.place)
    above = {
        setting.label: sorted(name for name, above in reached[variant, setting.label].items() if above and "@" not in name)
        for setting in settings
    }
    return {
        "variant": variant,
        "runs": len(runs),
        "parallel": parallel,
        "training_minutes_of_all_runs": minutes,
        "minutes": minutes / parallel,
        "required_minutes": REQUIRED_MINUTES,
        "peak_memory_gb": max(record.totals.peak_memory_bytes for record in runs) / 1e9,
        "required_memory_gb": REQUIRED_GB,
        "above_chance": above,
        "fewest_above_chance": min(map(len, above.values())),
        "required_above_chance": REQUIRED_ABOVE,
    }


def _at_a_time(environment: dict[str, Any]) -> int:
    """Runs side by side on the machine of a record: by its cores, or one where it is an accelerator's."""
    return 1 if environment.get("accelerator") else max(1, environment["cores"] // environment["threads"])
