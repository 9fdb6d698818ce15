"""What becomes of the lanes of a stream when their number changes: a run goes on with more or fewer processes.

With the same ranks and data processes a stream continues exactly. With others it cannot: which document a lane reads next, and
which ones share a row, are functions of the number of lanes. The rule then:

- No document is read twice. The new lanes begin where the furthest old lane was, in the positions of the mix and in every
  source; what slower lanes had left before that point is skipped (a small share of one pass, for lanes run almost level).
- Documents that were read and waited for a row are dealt out to the new lanes.
- Tokens seen, and so the place in the stages, are shared out evenly. The budget stays what it was.
- Counts of rejects go to the first lane.
"""

from collections.abc import Mapping, Sequence
from typing import Any

State = dict[str, Any]
KNOWN = {"sources", "mixer", "waiting", "tokens", "stage_start", "stage_step", "rejects"}
SAME = "sources"  # what the files were: the same for every lane, and not yet in the first checkpoints
SHARED = "shared"  # where the lanes of a rank were together, of several lanes: number of the stage, tokens before it, steps in it


def deal_lanes(old: Sequence[Mapping[int, State]], world_size: int, workers: int, budgets: Sequence[int]) -> list[dict[int, State]]:
    """States of TrainingStream's lanes, one mapping a rank (data process -> state), for ``world_size`` ranks.

    ``workers``: data processes a rank, before and after. ``budgets``: tokens of every stage.

    Raises ValueError when a state holds something that this rule does not know.
    """
    per_rank = max(1, workers)
    before, now = len(old) * per_rank, world_size * per_rank
    states = {rank * per_rank + lane: state for rank, lanes in enumerate(old) for lane, state in lanes.items()}
    for state in states.values():
        if state.keys() - {SHARED} | {SAME} != KNOWN:
            raise ValueError(f"lanes cannot be dealt again: their states differ in {sorted(state.keys() ^ KNOWN)}")
    if not states:
        return [{} for _ in range(world_size)]
    any_state = next(iter(states.values()))
    block = -(-max(state["mixer"]["position"] for state in states.values()) // now)
    counts = {name: -(-_read(states, name, before) // now) for name in any_state["mixer"]["counts"]}
    waiting = sorted(pick for state in states.values() for pick in map(tuple, state["waiting"]))
    tokens = sum(state["tokens"] for state in states.values()) // now
    stage, began = _stage(tokens, [budget // now for budget in budgets])
    steps = 0
    if stage == max(state["stage_start"][0] for state in states.values()):
        steps = max(_steps(lanes, stage) for lanes in old) // per_rank
    same = {SAME: any_state[SAME]} if SAME in any_state else {}
    dealt = [
        {
            **same,
            "mixer": {"position": block * now + lane, "counts": dict(counts)},
            "waiting": waiting[lane::now],
            "tokens": tokens,
            "stage_start": (stage, began),
            "stage_step": steps,
            "rejects": _rejects(states) if lane == 0 else {"seen": {}, "rejected": {}, "unfit": {}, "last_reason": {}},
        }
        for lane in range(now)
    ]
    return [{lane: dealt[rank * per_rank + lane] for lane in range(per_rank)} for rank in range(world_size)]


def _read(states: Mapping[int, State], source: str, lanes: int) -> int:
    """One past the highest index of a source that any lane has read; a lane reads every ``lanes``-th."""
    counts = {lane: state["mixer"]["counts"][source] for lane, state in states.items()}
    return max((count - 1) * lanes + lane + 1 if count else 0 for lane, count in counts.items())


def _stage(tokens: int, budgets: Sequence[int]) -> tuple[int, int]:
    """The stage that a lane is in after ``tokens``, and its tokens when it began."""
    number, began = 0, 0
    while number < len(budgets) - 1 and tokens - began >= budgets[number]:
        number, began = number + 1, began + budgets[number]
    return number, began


def _steps(lanes: Mapping[int, State], stage: int) -> int:
    return sum(state["stage_step"] for state in lanes.values() if state["stage_start"][0] == stage)


def _rejects(states: Mapping[int, State]) -> State:
    merged: State = {"seen": {}, "rejected": {}, "unfit": {}, "last_reason": {}}
    for state in states.values():
        for name in ("seen", "rejected", "unfit"):  # the first checkpoints have no "unfit"
            for source, count in state["rejects"].get(name, {}).items():
                merged[name][source] = merged[name].get(source, 0) + count
        merged["last_reason"] |= state["rejects"]["last_reason"]
    return merged
