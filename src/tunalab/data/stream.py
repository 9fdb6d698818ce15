"""The training stream: stages of a mix, read, tokenised and packed, one optimiser step at a time, resumable exactly."""

from collections.abc import Callable, Iterator
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any

from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from tunalab.config import DataConfig, RunConfig, StageConfig
from tunalab.data.accumulation import micro_batches
from tunalab.data.buckets import check_buckets
from tunalab.data.documents import Corpus, Reject, Unfit, fingerprint_of
from tunalab.data.mixing import Mixer, Pick
from tunalab.data.packing import PackedBatch, Placed, collate, fill_row
from tunalab.data.rejects import RejectLog
from tunalab.data.sequence import to_sequence
from tunalab.data.sources import SourceSettings, build_source
from tunalab.data.tokenizer import Tokenizer
from tunalab.errors import UserError


@dataclass(eq=False)
class Step:
    """What one optimiser step trains on: micro-batches, and the stage they belong to.

    ``stage_step`` counts steps since the stage began, over all lanes; ``stage_progress`` is the share of the stage's tokens
    already seen.
    ``lane_state`` is the stream's state right after this step, so that a checkpoint knows what was trained on and not what a
    loader has read ahead; ``lane`` is the data process it belongs to.
    """

    stage: str
    stage_step: int
    stage_progress: float
    batches: list[PackedBatch]
    lane: int
    lane_state: dict[str, Any]

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


class TrainingStream(IterableDataset[Step]):
    """Yields Steps until the stages' budgets of tokens are spent.

    The stream alone decides which stage a step belongs to, by the tokens it has handed out: so stages change at the same
    document for every front-end. ``token_pixels``, the image pixels per visual token along a side, is equal for all front-ends (a
    fairness test keeps it so).

    Every rank reads ``max(1, config.workers)`` lanes of the one stream. ``resume`` (lane -> the ``lane_state`` of its last
    trained step) and ``next_lane`` continue exactly: torch's loader always asks its first worker first, so lanes are rotated.

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
    ) -> None:
        self.config = config
        self.stages = stages
        self.tokenizer = tokenizer
        self.token_pixels = token_pixels
        self.seed = seed
        self.rank = rank
        self.world_size = world_size
        self.micro_batches = micro_batches(config, world_size)
        names = sorted({name for stage in stages.values() for name, weight in stage.mix.items() if weight > 0})
        self.sources = {name: open_source(name) for name in names}
        lengths = {name: source.length for name, source in self.sources.items()}
        self.rejects = RejectLog(reject_path, config.reject_share, lengths=lengths)
        self._resume = resume or {}
        self._next_lane = next_lane
        self._mixer: Mixer | None = None
        self._waiting: list[Placed] = []
        self._picks: dict[int, Pick] = {}
        self._tokens = 0
        self._stage_start = (0, 0)  # (stage number, tokens when it began)
        self._stage_step = 0

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
        self._waiting, self._picks, self._tokens, self._stage_start, self._stage_step = [], {}, 0, (0, 0), 0
        self.rejects.load_state_dict({"seen": {}, "rejected": {}, "unfit": {}, "last_reason": {}})
        if lane in self._resume:
            self._restore(self._resume[lane])
        budgets = [stage.tokens // (lanes * self.world_size) for stage in self.stages.values()]
        names = list(self.stages)
        while True:
            number, began = self._stage_start
            while self._tokens - began >= budgets[number]:
                # The surplus of the last row counts for the next stage, so that the total does not drift with rows' lengths.
                number, began = number + 1, began + budgets[number]
                if number == len(names):
                    return
                self._stage_start, self._stage_step = (number, began), 0
            mix = self.stages[names[number]].mix
            progress = (self._tokens - began) / budgets[number]
            batches = [self._batch(mix) for _ in range(self.micro_batches)]
            self._tokens += sum(batch.tokens for batch in batches)
            self._stage_step += 1
            stage_step = (self._stage_step - 1) * lanes + lane
            yield Step(names[number], stage_step, progress, batches, lane, self._state())

    def _batch(self, mix: dict[str, float]) -> PackedBatch:
        rows = []
        for _ in range(self.config.rows):
            while len(self._waiting) < self.config.lookahead:
                self._waiting.append(self._next(mix))
            row = fill_row(self._waiting, self.config.row_tokens)
            for placed in row:
                del self._picks[placed.position]
            rows.append(row)
        return collate(rows, self.config.row_tokens, self.tokenizer.pad)

    def _next(self, mix: dict[str, float]) -> Placed:
        assert self._mixer is not None
        while True:
            pick = self._mixer.next(mix)
            try:
                placed = self._place(pick)
            except Reject as reject:
                self.rejects.reject(pick.source, pick.index, str(reject), fits=not isinstance(reject, Unfit))
                continue
            self.rejects.accept(pick.source)
            self._picks[pick.position] = pick
            return placed

    def _place(self, pick: Pick) -> Placed:
        document = self.sources[pick.source].document(pick.index)
        sequence = to_sequence(document, self.tokenizer, self.token_pixels, pick.uniform < self.config.caption_drop)
        if len(sequence.ids_L) > self.config.row_tokens:
            raise Unfit(f"document of {len(sequence.ids_L)} tokens is longer than a row of {self.config.row_tokens}")
        return Placed(pick.position, sequence)

    def _place_again(self, pick: Pick) -> Placed:
        try:
            return self._place(pick)
        except Reject as reject:
            raise UserError(f"{pick.source}: document {pick.index} was sound before this run stopped, now: {reject}") from reject

    def _state(self) -> dict[str, Any]:
        """Plain numbers and strings; waiting documents are kept as picks and read again."""
        assert self._mixer is not None
        return {
            "sources": {name: fingerprint_of(source) for name, source in self.sources.items()},
            "mixer": self._mixer.state_dict(),
            "waiting": [astuple(self._picks[placed.position]) for placed in self._waiting],
            "tokens": self._tokens,
            "stage_start": self._stage_start,
            "stage_step": self._stage_step,
            "rejects": self.rejects.state_dict(),
        }

    def _restore(self, state: dict[str, Any]) -> None:
        assert self._mixer is not None
        self._mixer.load_state_dict(state["mixer"])
        for name, known in state.get("sources", {}).items():  # checkpoints from before there were any have none
            if known != fingerprint_of(self.sources[name]):
                raise UserError(f"{name}: its files are not those this run began with: put them back, or start another run")
        picks = [Pick(*pick) for pick in state["waiting"]]
        self._picks = {pick.position: pick for pick in picks}
        self._waiting = [self._place_again(pick) for pick in picks]
        self._tokens = state["tokens"]
        self._stage_start = tuple(state["stage_start"])
        self._stage_step = state["stage_step"]
        self.rejects.load_state_dict(state["rejects"])


class StepLoader(DataLoader[Step]):
    """Reads a stream in ``workers`` data processes, or in this one. Raises a data process's UserError as it was."""

    def __init__(self, stream: TrainingStream, workers: int) -> None:
        super().__init__(stream, batch_size=None, num_workers=workers)

    def __iter__(self) -> Iterator[Step]:  # type: ignore[override]
        item: Step | Failure
        for item in super().__iter__():
            if isinstance(item, Failure):
                raise UserError(item.message)
            yield item


def open_stream(config: RunConfig, tokenizer: Tokenizer, token_pixels: int, reject_path: Path, **where: Any) -> TrainingStream:
    """The stream of a run, over the sources its stages name; ``where``: rank, world_size, resume, next_lane.

    Raises UserError for image sizes that do not fit ``token_pixels`` or the length of a row.
    """
    check_buckets(config.data, token_pixels)
    settings = SourceSettings.of(config.data, config.seed)
    return TrainingStream(
        config.data,
        config.stages,
        lambda name: build_source(name, settings),
        tokenizer,
        token_pixels,
        config.seed,
        reject_path,
        **where,
    )
