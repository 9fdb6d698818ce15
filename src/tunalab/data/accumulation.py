"""How many micro-batches make an optimiser step."""

from tunalab.config import DataConfig
from tunalab.errors import UserError


def micro_batches(data: DataConfig, world_size: int) -> int:
    """Of each rank: the same for all, for they work in step.

    With ``data.step_tokens`` a step has that many places for tokens at any number of ranks (about a twentieth of them is padding).
    Raises UserError when micro-batches do not come to it exactly, or when both settings speak.
    """
    if not data.step_tokens:
        return data.accumulate
    at_once = world_size * data.rows * data.row_tokens
    if data.step_tokens % at_once:
        raise UserError(
            f"data.step_tokens={data.step_tokens} is not a multiple of {at_once} "
            f"({world_size} ranks x data.rows={data.rows} x data.row_tokens={data.row_tokens})"
        )
    if data.accumulate != 1:
        raise UserError(
            f"data.accumulate={data.accumulate} and data.step_tokens={data.step_tokens} both set a step's size: keep one"
        )
    return data.step_tokens // at_once
