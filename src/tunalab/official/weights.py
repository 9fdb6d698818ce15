"""Our parameter names and the official ones, parameter by parameter, with the change of form where there is one.

Shapes: D decoder width, C channels, p patch, V encoder width, N positions.
"""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase

import torch
from torch import Tensor

from tunalab.errors import UserError
from tunalab.frontends.components.store import Components
from tunalab.frontends.contract import RGB
from tunalab.frontends.encoder import BLOCK
from tunalab.frontends.loading import WHOLE, Held, Weight
from tunalab.model.masking import MaskToken
from tunalab.model.unified import build_deferred
from tunalab.official.layout import LM_HEAD, shorten
from tunalab.settings.schema import RunConfig


@dataclass(frozen=True)
class Form:
    """How one of our tensors stands in the official layout: as one tensor or, in order, as several. Bits are only moved."""

    to_ours: Callable[[Sequence[Tensor]], Tensor]
    to_official: Callable[[Tensor], list[Tensor]]


@dataclass(frozen=True, eq=False)
class _Formed:
    """One of ours that is made of official ones."""

    parts: list[Weight]
    form: Form

    @property
    def shape(self) -> torch.Size:
        return self.form.to_ours([torch.empty(part.shape, device="meta") for part in self.parts]).shape

    def __call__(self, rows: slice = WHOLE) -> Tensor:
        return self.form.to_ours([part() for part in self.parts])[rows]


def _kernel(matrix_DP: Tensor) -> Tensor:
    """(D, p * p * 3), a patch flattened as (row, column, channel), as a strided convolution (D, 3, p, p)."""
    patch = math.isqrt(matrix_DP.shape[1] // RGB)
    return matrix_DP.unflatten(1, (patch, patch, RGB)).permute(0, 3, 1, 2).contiguous()


SAME = Form(lambda parts: parts[0], lambda ours: [ours])
PATCHES = Form(lambda parts: parts[0].permute(0, 2, 3, 1).flatten(1), lambda ours: [_kernel(ours)])
STACKED = Form(lambda parts: torch.cat(list(parts)), lambda ours: [part.clone() for part in ours.chunk(3)])
GRID = Form(lambda parts: parts[0][None], lambda ours: [ours[0]])  # (N, V) and (1, N, V)
TOKEN = Form(lambda parts: parts[0].flatten(), lambda ours: [ours[None, None]])  # (1, 1, D) and (D,)

HEAD_BLOCK = {
    "attention_norm": "input_layernorm",
    "mlp_norm": "post_attention_layernorm",
    "q": "self_attn.q_proj",
    "k": "self_attn.k_proj",
    "v": "self_attn.v_proj",
    "o": "self_attn.o_proj",
    "q_norm": "self_attn.q_norm",
    "k_norm": "self_attn.k_norm",
    "gate": "mlp.gate_proj",
    "up": "mlp.up_proj",
    "down": "mlp.down_proj",
    "modulation": "adaLN_modulation.1",
}
HEAD_END = {"final_norm": "norm_final", "output": "linear", "final_modulation": "adaLN_modulation.1"}
EMBEDDINGS, LAYER = "vision_model.embeddings", r"vision_model.encoder.layers.\1"
KIND = r"(weight|bias)"

# Our names, the official ones they stand for, the form. A name is looked for from above.
RULES: list[tuple[str, tuple[str, ...], Form]] = [
    (r"decoder\.(.+)", (r"tuna.\1",), SAME),
    (r"time\.(.+)", (r"time_embed.\1",), SAME),
    (r"mask_token\.token_D", ("mask_token",), TOKEN),
    *((rf"head\.blocks\.(\d+)\.{a}\.{KIND}", (rf"diffusion_head_a.\1.{b}.\2",), SAME) for a, b in HEAD_BLOCK.items()),
    *((rf"head\.{a}\.{KIND}", (rf"diffusion_head_b.{b}.\1",), SAME) for a, b in HEAD_END.items()),
    # Tuna-2
    (r"frontend\.projection\.weight", ("vision_encoder.patch_embedding.weight",), PATCHES),
    (r"frontend\.projection\.bias", ("vision_encoder.patch_embedding.bias",), SAME),
    (r"frontend\.norm\.weight", ("vision_encoder.norm.weight",), SAME),
    # Tuna-R and Tuna
    (rf"frontend\.patch_embedding\.{KIND}", (rf"{EMBEDDINGS}.patch_embedding.\1",), SAME),
    (r"frontend\.encoder\.pos_embed", (f"{EMBEDDINGS}.position_embedding.weight",), GRID),
    (
        rf"frontend\.encoder\.blocks\.(\d+)\.attn\.qkv\.{KIND}",
        tuple(rf"{LAYER}.self_attn.{part}_proj.\2" for part in "qkv"),
        STACKED,
    ),
    *((rf"frontend\.encoder\.blocks\.(\d+)\.{re.escape(a)}\.{KIND}", (rf"{LAYER}.{b}.\2",), SAME) for a, b in BLOCK.items()),
    (rf"frontend\.connector\.(\d)\.{KIND}", (r"siglip_proj.\1.\2",), SAME),
]


@dataclass(frozen=True)
class Counterpart:
    """The official tensors that one of ours is made of."""

    names: tuple[str, ...]
    form: Form


def counterpart(ours: str) -> Counterpart | None:
    """Of a parameter by our name; None where the official models have nothing like it."""
    for pattern, templates, form in RULES:
        match = re.fullmatch(pattern, ours)
        if match:
            return Counterpart(tuple(match.expand(template) for template in templates), form)
    return None


def architecture_config(config: RunConfig) -> RunConfig:
    """The same model, nothing of it read from where its pretrained parts once came from."""
    return replace(
        config,
        frontend=replace(config.frontend, encoder_pretrained=False),
        decoder=replace(config.decoder, pretrained=""),
    )


def initial_weights(config: RunConfig, components: Components, vocabulary: int, names: Sequence[str]) -> dict[str, Weight]:
    """The values with which :func:`build_model` starts parameters, by name, none of them pretrained.

    But for a mask token alone, all numbers of a second model are drawn for them.
    """
    if not names:
        return {}
    if list(names) == [MASK_TOKEN]:  # the first that it draws: no need to draw a whole model
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            return {MASK_TOKEN: Held(MaskToken(config.decoder.width).token_D.detach(), MASK_TOKEN, "")}
    model, later = build_deferred(architecture_config(config), components, vocabulary)
    state = model.state_dict()
    return {name: later[name] if name in later else Held(state[name], name, "") for name in names}


# Every tensor has its place, or the call is refused. ``own`` is what our model of the same sizes holds, by name, also on
# the meta device: only shapes are compared.

MASK_TOKEN = "mask_token.token_D"  # the released Tuna-R and Tuna have none
TIED = "decoder.lm_head.weight"  # with tied embeddings a second name of the input table


@dataclass(frozen=True, eq=False)
class Converted:
    """``weights`` by our names, a tied table once; ``missing``: ours that the checkpoint lacks, as it was allowed to."""

    weights: dict[str, Weight]
    missing: list[str]


def to_ours(
    tensors: Mapping[str, Weight], own: Mapping[str, Tensor], tied: bool, allow_missing: Sequence[str], what: str
) -> Converted:
    """Raises UserError, one line, naming what is missing, unexpected or of another shape; ``what`` names the checkpoint.

    ``allow_missing``: patterns (``*`` for any letters) of names, official or ours, that may be absent.
    """
    rest = dict(tensors)
    if tied:
        rest.pop(LM_HEAD, None)
    weights: dict[str, Weight] = {}
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
            parts = [rest.pop(theirs) for theirs in place.names]
            weights[name] = parts[0] if place.form is SAME else _Formed(parts, place.form)
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
    weights: Mapping[str, Weight], own: Mapping[str, Tensor], tied: bool, allow_missing: Sequence[str], what: str
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
    wrong = "; ".join(f"{len(names)} {title}: {shorten(names)}" for title, names in sides.items() if names)
    if wrong:
        raise UserError(f"{what} does not fit: {wrong}")
