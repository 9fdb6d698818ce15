"""The training stream: stages of a mix, read, tokenised and packed, resumable exactly.

With the same ranks and data processes a stream continues exactly. With others it cannot: which
document a lane reads next, and which ones share a row, are functions of the number of lanes. The
rule then:

- No document is read twice. The new lanes begin where the furthest old lane was, in the positions of the mix and in every
  source; what slower lanes had left before that point is skipped (a small share of one pass, for lanes run almost level).
- Documents that were read and waited for a row are dealt out to the new lanes.
- Tokens seen, and so the place in the stages, are shared out evenly. The budget stays what it was.
- Counts of rejects go to the first lane.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import astuple, dataclass, field
from pathlib import Path
from typing import Any

from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from tunalab.data.buckets import check_buckets
from tunalab.data.documents import Corpus, Reject, Unfit, fingerprint_of
from tunalab.data.mixing import Mixer, Pick
from tunalab.data.packing import PackedBatch, Placed, collate, fill_row, micro_batches
from tunalab.data.rejects import RejectLog
from tunalab.data.sequence import TokenSequence, to_sequence
from tunalab.data.sources import build_source
from tunalab.data.tokenizer import Tokenizer
from tunalab.errors import UserError
from tunalab.settings.loading import sources_of
from tunalab.settings.schema import DataConfig, RunConfig, StageConfig

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


# What is counted of every source: documents and tokens that are trained on; documents asked for, and of these the broken ones and
# those that do not fit (documents.py, Unfit), which are left out.
COUNTS = ("documents", "tokens", "asked", "broken", "unfit")


@dataclass(eq=False)
class Step:
    """What one optimiser step trains on: micro-batches, and the stage they belong to.

    ``stage_step`` counts steps since the stage began, over all lanes; ``stage_progress`` is the share of the stage's tokens
    already seen.
    ``lane_state`` is the stream's state right after this step, so that a checkpoint knows what was trained on and not what a
    loader has read ahead; ``lane`` is the data process it belongs to. ``read``: source -> what of it the step holds and, since the
    lane's step before, how much was asked for and left out (a number for each of :data:`COUNTS`).
    """

    stage: str
    stage_step: int
    stage_progress: float
    batches: list[PackedBatch]
    lane: int
    lane_state: dict[str, Any]
    read: dict[str, tuple[int, ...]] = field(default_factory=dict)

    @property
    def tokens(self) -> int:
        return sum(batch.tokens for batch in self.batches)

    @property
    def images(self) -> int:
        return sum(len(batch.generate_N) for batch in self.batches)


@dataclass(frozen=True)
class Failure:
    """A UserError of a data process on its way to the main process."""

    message: str


@dataclass
class Schedule:
    """Where in the stages a sequence of steps is: by its ``tokens`` alone, so that stages change at the same document for every
    front-end. ``start``: number of the stage, and tokens when it began; ``step``: steps since then.
    """

    budgets: list[int]
    tokens: int = 0
    start: tuple[int, int] = (0, 0)
    step: int = 0

    def enter(self, endless: bool = False) -> bool:
        """Here a stage ends and the next begins: go to the stage that the next step belongs to.

        False behind the last one, which has no end where ``endless``.
        """
        number, began = self.start
        while self.tokens - began >= self.budgets[number]:
            if endless and any(self.budgets) and not any(self.budgets[number + 1 :]):
                return True
            # The surplus of the last row counts for the next stage, so that the total does not drift with rows' lengths.
            number, began = number + 1, began + self.budgets[number]
            if number == len(self.budgets):
                return False
            self.start, self.step = (number, began), 0
        return True

    @property
    def progress(self) -> float:
        """The share of the stage's tokens already seen."""
        number, began = self.start
        return (self.tokens - began) / self.budgets[number]

    def add(self, tokens: int) -> None:
        self.tokens += tokens
        self.step += 1


class TrainingStream(IterableDataset[Step]):
    """Yields Steps until the stages' budgets of tokens are spent.

    The stream alone decides which stage a step belongs to (:class:`Schedule`). ``token_pixels``, the image pixels per visual token
    along a side, is equal for all front-ends (a fairness test keeps it so).

    Every rank reads ``max(1, config.workers)`` lanes of the one stream. ``resume`` (lane -> the ``lane_state`` of its last
    trained step) and ``next_lane`` continue exactly: torch's loader always asks its first worker first, so lanes are rotated.
    A lane of several has no end, and chooses its mix by its share of the tokens: which stage a step belongs to and where the run
    ends is for the StepLoader to say, which sees the steps of all lanes in their order. So a run has as many tokens, to within a
    step, with any number of lanes.

    ``accept_changed``: go on although files of sources are others than those that were read so far.

    Iterating raises UserError when a source holds too many broken documents, or none that fits; read through a StepLoader.
    """

    def __init__(
        self,
        config: DataConfig,
        stages: dict[str, StageConfig],
        open_source: Callable[[str], Corpus],
        tokenizer: Tokenizer,
        token_pixels: int,
        seed: int,
        reject_path: Path,
        rank: int = 0,
        world_size: int = 1,
        resume: dict[int, dict[str, Any]] | None = None,
        next_lane: int = 0,
        accept_changed: bool = False,
    ) -> None:
        self.config = config
        self.stages = stages
        self.tokenizer = tokenizer
        self.token_pixels = token_pixels
        self.seed = seed
        self.rank = rank
        self.world_size = world_size
        self.micro_batches = micro_batches(config, world_size)
        names = sorted(sources_of(stages))
        self.sources = {name: open_source(name) for name in names}
        lengths = {name: source.length for name, source in self.sources.items()}
        self.rejects = RejectLog(reject_path, config.reject_share, config.unfit_share, lengths)
        self._resume = resume or {}
        self._next_lane = next_lane
        self._accept_changed = accept_changed
        self._mixer: Mixer | None = None
        self._waiting: list[Placed] = []
        self._picks: dict[int, Pick] = {}
        self._schedule = Schedule([])
        self._read: dict[str, list[int]] = {}  # source -> documents and tokens of the step
        self._counted: dict[str, tuple[int, ...]] = {}  # source -> asked, broken and unfit up to the step before

    def __iter__(self) -> Iterator[Step]:
        if get_worker_info() is None:
            yield from self._steps()
            return
        try:
            yield from self._steps()
        except UserError as error:
            # Raised here it would arrive wrapped in this process's traceback.
            yield Failure(str(error))  # type: ignore[misc]  # for the StepLoader, which raises it

    def _steps(self) -> Iterator[Step]:
        worker = get_worker_info()
        lanes = worker.num_workers if worker else 1
        self.rejects.alone = lanes * self.world_size == 1
        lane = ((worker.id if worker else 0) + self._next_lane) % lanes
        lengths = {name: source.length for name, source in self.sources.items()}
        self._mixer = Mixer(lengths, self.seed, self.rank * lanes + lane, lanes * self.world_size)
        self._waiting, self._picks = [], {}
        # Rounded up for several lanes, else one that is smaller than their number would have no stage at all.
        self._schedule = Schedule([-(-budget // lanes) for budget in self.budgets()])
        self.rejects.load_state_dict({"seen": {}, "rejected": {}, "unfit": {}, "last_reason": {}})
        if lane in self._resume:
            self._restore(self._resume[lane])
        self._counted = self._totals()
        names, schedule = list(self.stages), self._schedule
        while schedule.enter(endless=lanes > 1):
            name, progress = names[schedule.start[0]], schedule.progress
            self._read = {source: [0, 0] for source in self.sources}
            batches = [self._batch(self.stages[name].mix) for _ in range(self.micro_batches)]
            stage_step = schedule.step * lanes + lane
            schedule.add(sum(batch.tokens for batch in batches))
            yield Step(name, stage_step, progress, batches, lane, self._state(), self._counts())

    def budgets(self) -> list[int]:
        """Tokens of every stage that this rank reads."""
        return [stage.tokens // self.world_size for stage in self.stages.values()]

    def schedule(self, lanes: int) -> Schedule:
        """Where all ``lanes`` together go on."""
        states = self._resume.values()
        schedule = Schedule(self.budgets(), sum(state["tokens"] for state in states))
        last = self._resume.get((self._next_lane - 1) % lanes, {})
        if SHARED in last:
            schedule.start, schedule.step = tuple(last[SHARED][:2]), last[SHARED][2]
        else:  # from before steps were counted together, or dealt out again
            schedule.enter(endless=True)
            schedule.step = sum(state["stage_step"] for state in states if state["stage_start"][0] == schedule.start[0])
        return schedule

    def _totals(self) -> dict[str, tuple[int, ...]]:
        counts = self.rejects.state_dict()
        return {name: tuple(counts[kind].get(name, 0) for kind in ("seen", "rejected", "unfit")) for name in self.sources}

    def _counts(self) -> dict[str, tuple[int, ...]]:
        before, self._counted = self._counted, self._totals()
        return {
            name: (*self._read[name], *(now - then for now, then in zip(self._counted[name], before[name], strict=True)))
            for name in self.sources
        }

    def _batch(self, mix: dict[str, float]) -> PackedBatch:
        rows = []
        for _ in range(self.config.rows):
            while len(self._waiting) < self.config.lookahead:
                self._waiting.append(self._next(mix))
            row = fill_row(self._waiting, self.config.row_tokens)
            for placed in row:
                read = self._read[self._picks.pop(placed.position).source]
                read[0] += 1
                read[1] += placed.length
            rows.append(row)
        return collate(rows, self.config.row_tokens, self.tokenizer.pad)

    def _next(self, mix: dict[str, float]) -> Placed:
        assert self._mixer is not None
        pick = self._mixer.next(mix)
        while True:
            try:
                placed = self._place(pick)
            except Reject as reject:
                self.rejects.reject(pick.source, pick.index, str(reject), fits=not isinstance(reject, Unfit))
                pick = self._mixer.instead(pick)
                continue
            self.rejects.accept(pick.source)
            self._picks[pick.position] = pick
            return placed

    def _place(self, pick: Pick) -> Placed:
        document = self.sources[pick.source].document(pick.index)
        sequence = to_sequence(document, self.tokenizer, self.token_pixels, pick.uniform < self.config.caption_drop)
        check_length(sequence, self.config.row_tokens)
        return Placed(pick.position, sequence)

    def _place_again(self, pick: Pick) -> Placed | None:
        try:
            return self._place(pick)
        except Reject as reject:
            if self._accept_changed:
                return None
            raise UserError(f"{pick.source}: document {pick.index} was sound before this run stopped, now: {reject}") from reject

    def _state(self) -> dict[str, Any]:
        """Plain numbers and strings; waiting documents are kept as picks and read again."""
        assert self._mixer is not None
        return {
            "sources": {name: fingerprint_of(source) for name, source in self.sources.items()},
            "mixer": self._mixer.state_dict(),
            "waiting": [astuple(self._picks[placed.position]) for placed in self._waiting],
            "tokens": self._schedule.tokens,
            "stage_start": self._schedule.start,
            "stage_step": self._schedule.step,
            "rejects": self.rejects.state_dict(),
        }

    def _restore(self, state: dict[str, Any]) -> None:
        assert self._mixer is not None
        self._mixer.load_state_dict(state["mixer"])
        for name, fingerprint in state.get("sources", {}).items():  # checkpoints from before there were any have none
            if fingerprint != fingerprint_of(self.sources[name]) and not self._accept_changed:
                raise UserError(
                    f"{name}: its files are not those this run began with: put them back, start another run, or go on with them by "
                    "start.accept_changed_data=true"
                )
        picks = [Pick(*pick) for pick in state["waiting"]]
        self._waiting = [placed for pick in picks if (placed := self._place_again(pick)) is not None]
        waiting = {placed.position for placed in self._waiting}
        self._picks = {pick.position: pick for pick in picks if pick.position in waiting}
        self._schedule.tokens, self._schedule.step = state["tokens"], state["stage_step"]
        self._schedule.start = tuple(state["stage_start"])
        self.rejects.load_state_dict(state["rejects"])


def check_length(sequence: TokenSequence, row_tokens: int) -> None:
    """Raises Unfit for a document that no row has place for: documents are never cut."""
    if len(sequence.ids_L) > row_tokens:
        raise Unfit(f"document of {len(sequence.ids_L)} tokens is longer than a row of {row_tokens}")


class StepLoader(DataLoader[Step]):
    """Reads a stream in ``workers`` data processes, or in this one. Raises a data process's UserError as it was.

    Of several lanes it says which stage a step belongs to, and ends when all of them together have read the budgets.
    """

    def __init__(self, stream: TrainingStream, workers: int) -> None:
        super().__init__(stream, batch_size=None, num_workers=workers)
        self.stream = stream

    def __iter__(self) -> Iterator[Step]:  # type: ignore[override]
        names, schedule = list(self.stream.stages), self.stream.schedule(max(1, self.num_workers))
        item: Step | Failure
        for item in super().__iter__():
            if self.num_workers > 1 and not schedule.enter():
                return  # before a failure behind the end is met
            if isinstance(item, Failure):
                raise UserError(item.message)
            if self.num_workers > 1:
                item.stage, item.stage_step = names[schedule.start[0]], schedule.step
                item.stage_progress = schedule.progress
                schedule.add(item.tokens)
                item.lane_state[SHARED] = [*schedule.start, schedule.step]
            yield item


def open_stream(config: RunConfig, tokenizer: Tokenizer, token_pixels: int, reject_path: Path, **where: Any) -> TrainingStream:
    """The stream of a run, over the sources its stages name; ``where``: rank, world_size, resume, next_lane.

    Raises UserError for image sizes that do not fit ``token_pixels`` or the length of a row.
    """
    check_buckets(config.data, token_pixels)
    return TrainingStream(
        config.data,
        config.stages,
        lambda name: build_source(name, config.data, config.seed),
        tokenizer,
        token_pixels,
        config.seed,
        reject_path,
        **where,
    )
