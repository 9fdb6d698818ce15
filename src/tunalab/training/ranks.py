"""What the processes of a run tell each other besides gradients: a few numbers and words a step.

It goes over the CPU, in groups of its own: the GPUs need not be waited for.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from tunalab.errors import UserError

# A process that died is noticed at once, by its closed connections. Waiting finds the one that hangs, or whose machine is gone.
PATIENCE = timedelta(minutes=30)
LONG_PATIENCE = timedelta(hours=12)  # while the first rank evaluates, or shards are indexed
T = TypeVar("T")


class RankFailed(Exception):
    """Another rank could not go on; its own error is on its own output."""


class ToldByFirst(UserError):
    """A mistake that the first rank raises too: this one has nothing to add but its exit code."""


@dataclass(frozen=True, eq=False)
class Ranks:
    """This process among ``world_size``. Every method is called by all of them, in the same order.

    ``group`` is for what all do at about the same time, ``patient`` for waiting.
    """

    rank: int = 0
    world_size: int = 1
    group: "dist.ProcessGroup | None" = None
    patient: "dist.ProcessGroup | None" = None

    @classmethod
    def of_processes(cls) -> "Ranks":
        """All processes of the initialised default group."""
        group, patient = (dist.new_group(backend="gloo", timeout=timeout) for timeout in (PATIENCE, LONG_PATIENCE))
        assert isinstance(group, dist.ProcessGroup) and isinstance(patient, dist.ProcessGroup)  # this process is a member
        return cls(dist.get_rank(), dist.get_world_size(), group, patient)

    @property
    def first(self) -> bool:
        return self.rank == 0

    def gather(self, value: T, patient: bool = False) -> list[T]:
        """The value of every rank: anything that can be pickled."""
        if self.world_size == 1:
            return [value]
        values: list[T | None] = [None] * self.world_size
        dist.all_gather_object(values, value, group=self.patient if patient else self.group)
        return values  # type: ignore[return-value]  # all of them are there now

    def broadcast(self, value: T) -> T:
        """The first rank's value."""
        if self.world_size == 1:
            return value
        values = [value]
        dist.broadcast_object_list(values, src=0, group=self.group)
        return values[0]

    def numbers(self, values: Sequence[float]) -> Tensor:
        """(ranks, len(values)), float64: exact for whole numbers below 2^53."""
        own = torch.tensor(values, dtype=torch.float64)
        if self.world_size == 1:
            return own[None]
        gathered = [torch.empty_like(own) for _ in range(self.world_size)]
        dist.all_gather(gathered, own, group=self.group)
        return torch.stack(gathered)

    @contextmanager
    def together(self, patient: bool = False) -> Iterator[None]:
        """What one rank cannot do, none has done: an error of any rank inside ends it on every rank. ``patient``: it may take
        some of them hours.

        Raises the rank's own error there, elsewhere RankFailed; but a UserError is raised as one by the first rank, for all to
        tell it once, and as ToldByFirst by all others. Without an error all ranks leave together.
        """
        try:
            yield
        except BaseException as error:
            self.gather((type(error).__name__, str(error), isinstance(error, UserError)), patient)
            if isinstance(error, UserError) and not self.first:
                raise ToldByFirst(str(error)) from error
            raise
        failures = self.gather(("", "", False), patient)
        for rank, (kind, message, is_users) in enumerate(failures):
            if is_users:
                raise (UserError if self.first else ToldByFirst)(f"rank {rank}: {message}")
            if kind:
                raise RankFailed(f"rank {rank}: {kind}: {message}")


ALONE = Ranks()
