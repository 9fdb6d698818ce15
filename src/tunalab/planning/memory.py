"""Memory of one GPU in training, by what fills it.

Weights, gradients, AdamW's two averages and the EMA are kept in float32. In bfloat16 training autocast keeps a copy of every weight
it casts until the step ends; sharded training (FSDP2) instead gathers decoder layers and flow-head blocks in bfloat16, one in use
and the next one on its way, and the rest in float32 for the whole step.

Not counted: the CUDA context, communication buffers, fragmentation, and the passing workspace of a frozen VAE: leave a tenth.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from tunalab.data.documents import Kind
from tunalab.model.text_loss import CHUNK
from tunalab.planning.activations import Activations
from tunalab.planning.parameters import Totals

FLOAT, HALF = 4, 2  # bytes
# Besides what is saved, the loss holds the gradients of the log-softmax and of the logits, in float32.
LOSS_WORKSPACE = 2 * FLOAT


@dataclass(frozen=True)
class Sharding:
    """``strategy``: none | ddp | fsdp2; ``shards``: ranks that hold one copy of the parameters between them; ``accumulates``:
    whether whole gradients wait for the last of several micro-batches.
    """

    strategy: str
    ranks: int
    shards: int
    accumulates: bool = False


@dataclass(frozen=True)
class Memory:
    """Bytes. ``states``: what every step needs, by kind; ``activations``: the most that a row needs, ``row`` the kind of document
    that fills such a row; both without and with activation checkpointing.
    """

    states: dict[str, int]
    activations: dict[str, int]
    row: dict[str, Kind]

    def total(self, checkpointing: bool) -> int:
        return sum(self.states.values()) + self.activations[WITH if checkpointing else WITHOUT]


WITHOUT, WITH = "without checkpointing", "with checkpointing"


def memory(
    count: Totals,
    traced: Activations,
    rows: Mapping[Kind, Mapping[str, float]],
    labels: int,
    vocabulary: int,
    sharding: Sharding,
    largest_block: int,
    bf16: bool,
) -> Memory:
    """``rows``: for each kind of document the share of a rank's tokens that every part works on (workload.row_share); ``labels``:
    how many there are if every token is labelled; ``largest_block``: parameters of the largest decoder layer or head block.
    """
    activations, row = {}, {}
    for name, checkpointing in ((WITHOUT, False), (WITH, True)):
        by_kind = {kind: row_bytes(traced, shares, labels, vocabulary, checkpointing) for kind, shares in rows.items()}
        row[name] = max(by_kind, key=lambda kind: by_kind[kind])
        activations[name] = by_kind[row[name]]
    return Memory(state_bytes(count, traced, sharding, largest_block, bf16), activations, row)


def state_bytes(count: Totals, traced: Activations, sharding: Sharding, largest_block: int, bf16: bool) -> dict[str, int]:
    """Of one rank, by kind."""
    shards = sharding.shards if sharding.strategy == "fsdp2" else 1
    share = -(-count.trained // shards)
    states = {
        "weights": FLOAT * (share + -(-count.frozen // shards)),
        "gradients": FLOAT * share,
        "optimiser": 2 * FLOAT * share,
        "EMA": FLOAT * share,
    }
    if sharding.strategy == "fsdp2":
        rest = count.trained + count.frozen - count.in_blocks
        gathered = FLOAT * rest + 2 * (HALF if bf16 else FLOAT) * largest_block
        states["gathered weights"] = gathered + traced.other_copies
        if sharding.accumulates:
            states["whole gradients"] = (HALF if bf16 else FLOAT) * count.in_blocks + FLOAT * (rest - count.frozen)
    else:
        states["weights cast"] = traced.block_copies + traced.other_copies
    return {kind: size for kind, size in states.items() if size}


def row_bytes(traced: Activations, shares: Mapping[str, float], labels: int, vocabulary: int, checkpointing: bool) -> int:
    """What a rank keeps at the peak, which is where the text loss goes backward, for tokens of one kind of document.

    With checkpointing a unit is computed again after the loss has let go of its logits, so only the larger of both counts.
    """
    alive = min(shares["labels"], CHUNK / labels)
    loss = alive * (traced.logits + LOSS_WORKSPACE * labels * vocabulary)
    by_part = traced.kept if checkpointing else traced.saved
    kept = sum(size * shares[part] for part, size in by_part.items())
    if not checkpointing:
        return round(kept + loss)
    unit = max((size * shares[part] for part, size in traced.unit.items()), default=0)
    return round(kept + max(loss, unit))
