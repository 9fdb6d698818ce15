"""Weights by official names to weights by ours and back: every tensor has its place, or the call is refused.

``own`` is what our model of the same sizes holds, by name: shapes are all that is looked at, so it may be on the meta device.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from torch import Tensor

from tunalab.errors import UserError
from tunalab.official.files import shorten
from tunalab.official.layout import LM_HEAD
from tunalab.official.names import counterpart

MASK_TOKEN = "mask_token.token_D"  # the released Tuna-R and Tuna have none
TIED = "decoder.lm_head.weight"  # with tied embeddings a second name of the input table


@dataclass(frozen=True, eq=False)
class Converted:
    """``weights`` by our names, a tied table once; ``missing``: ours that the checkpoint lacks, as it was allowed to."""

    weights: dict[str, Tensor]
    missing: list[str]


def to_ours(
    tensors: Mapping[str, Tensor], own: Mapping[str, Tensor], tied: bool, allow_missing: Sequence[str], what: str
) -> Converted:
    """Raises UserError, one line, naming what is missing, unexpected or of another shape; ``what`` names the checkpoint.

    ``allow_missing``: patterns (``*`` for any letters) of names, official or ours, that may be absent.
    """
    rest = dict(tensors)
    if tied:
        rest.pop(LM_HEAD, None)
    weights: dict[str, Tensor] = {}
    allowed: list[str] = []
    missing: list[str] = []
    shapes: list[str] = []
    for name, mine in own.items():
        if tied and name == TIED:
            continue
        place = counterpart(name)
        if place is None:
            raise UserError(f"{name} of this model has nothing like it in an official checkpoint: {what} cannot be converted to it")
        absent = [theirs for theirs in place.names if theirs not in rest]
        if not absent:
            weights[name] = place.form.to_ours([rest.pop(theirs) for theirs in place.names])
            if weights[name].shape != mine.shape:
                shapes.append(f"{' + '.join(place.names)} {tuple(weights[name].shape)} for {tuple(mine.shape)}")
        elif len(absent) == len(place.names) and may_be_missing(name, place.names, allow_missing):
            allowed.append(name)
        else:
            missing += absent
            for theirs in place.names:
                rest.pop(theirs, None)
    _refuse(what, {"missing": missing, "unexpected": sorted(rest), "of another shape": shapes})
    return Converted(weights, allowed)


def match_ours(
    weights: Mapping[str, Tensor], own: Mapping[str, Tensor], tied: bool, allow_missing: Sequence[str], what: str
) -> Converted:
    """The same for weights that go by our names already."""
    due = {name: tensor for name, tensor in own.items() if not (tied and name == TIED)}
    absent = [name for name in due if name not in weights]
    allowed = [name for name in absent if any(fnmatchcase(name, pattern) for pattern in allow_missing)]
    shapes = [
        f"{name} {tuple(weights[name].shape)} for {tuple(mine.shape)}"
        for name, mine in due.items()
        if name in weights and weights[name].shape != mine.shape
    ]
    missing = [name for name in absent if name not in allowed]
    _refuse(what, {"missing": missing, "unexpected": sorted(weights.keys() - due.keys()), "of another shape": shapes})
    return Converted(dict(weights), allowed)


def may_be_missing(ours: str, official: Sequence[str], allow_missing: Sequence[str]) -> bool:
    names = (ours, *official)
    return ours == MASK_TOKEN or any(fnmatchcase(name, pattern) for name in names for pattern in allow_missing)


def to_official(weights: Mapping[str, Tensor], tied: bool) -> dict[str, Tensor]:
    """The same weights under official names, a tied table under both of its names.

    Raises UserError listing our parameters that the official models do not have.
    """
    places = {name: counterpart(name) for name in weights}
    homeless = sorted(name for name, place in places.items() if place is None)
    if homeless:
        raise UserError(f"no official layout holds {len(homeless)} of the model's parameters: {shorten(homeless)}")
    official = {
        theirs: part
        for name, place in places.items()
        if place is not None
        for theirs, part in zip(place.names, place.form.to_official(weights[name]), strict=True)
    }
    if tied:
        official[LM_HEAD] = weights["decoder.model.embed_tokens.weight"]
    return official


def _refuse(what: str, sides: Mapping[str, list[str]]) -> None:
    told = "; ".join(f"{len(names)} {title}: {shorten(names)}" for title, names in sides.items() if names)
    if told:
        raise UserError(f"{what} does not fit: {told}")
