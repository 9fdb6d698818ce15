"""The unified model: front-end -> decoder -> hidden states at labelled tokens, and flow head over the documents that generate.

Images of one size are one tensor: a list holds one for every group of the batch. The front-end and the last layer of the head run
once a group, the decoder and the blocks of the head once. How often the front-end runs therefore differs from rank to rank: sharded
training must not gather its parameters call by call.

Shapes: B rows, L tokens, N images, n images of a group, m generating ones among them, T visual tokens of an image, D width,
V vocabulary, K labelled tokens, P token_dim; S tokens of generating documents.
"""

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from tunalab.data.packing import PackedBatch
from tunalab.errors import UserError
from tunalab.frontends.components.store import Components
from tunalab.frontends.contract import VisualFrontEnd, from_raster, unpatchify
from tunalab.frontends.loading import Weight
from tunalab.frontends.registry import build_frontend
from tunalab.model.attention import AttentionBackend, Layout, make_backend
from tunalab.model.decoder import build_decoder, hidden_states, open_decoder, sincos_positions
from tunalab.model.deferred import Deferred
from tunalab.model.flow_head import FlowHead, TimeEmbedding, rotary_tables
from tunalab.model.masking import MaskToken
from tunalab.settings.schema import DecoderConfig, RunConfig


@dataclass(eq=False)
class ModelOutput:
    """``hidden_KD``: the decoder's output at the batch's ``logit_K``, which ``table`` turns into logits; ``prediction_mChw``
    (x or v) for the images that generate, in their order, float32 whatever was computed in.
    """

    hidden_KD: Tensor
    table: nn.Linear
    prediction_mChw: list[Tensor]

    @property
    def logits_KV(self) -> Tensor:
        """Float32, all at once: training never asks for them (text_loss.py)."""
        return self.table(self.hidden_KD).float()


class UnifiedModel(nn.Module):
    """One model class for every front-end and size.

    Children: ``frontend``, ``mask_token``, ``time``, ``decoder``, ``head``. Everything but ``frontend`` is equal for all variants.

    ``every_part``: front-end and head take part in every forward pass, with a gradient of zero where a batch has nothing for them.
    Processes that train together need it: each waits for the others' share of every gradient.
    """

    every_part = False
    fused_text_loss = False  # in training alone, where there is a CUDA device (objective.fused_text_loss)

    def __init__(self, config: RunConfig, frontend: VisualFrontEnd, vocabulary: int) -> None:
        super().__init__()
        width = config.decoder.width
        self.frontend = frontend
        self.mask_token = MaskToken(width)
        self.time = TimeEmbedding(width)
        self.decoder = build_decoder(config.decoder, vocabulary)
        self.head = FlowHead(width, frontend.space.token_dim, config.head)
        self.head.initialise(config.decoder.init_std)
        self.image_positions = config.decoder.image_positions
        self.target_layout = config.objective.target_layout
        self.attention: str | Callable[[Layout], AttentionBackend] = config.attention
        self.frontend.freeze()

    def forward(self, batch: PackedBatch, x_t_nChw: list[Tensor], t_N: Tensor, mask_nT: list[Tensor]) -> ModelOutput:
        """``x_t_nChw``: the batch's images in the target space, clean (t = 1) or noisy; ``mask_nT``: masked visual tokens."""
        layout = Layout(batch.document_BL, batch.span_BL, batch.start_D, batch.length_D)
        time_ND = self.time(t_N)
        slots = [group.span_n_1T for group in batch.groups]
        h_BLD = self.embed(batch.ids_BL, slots, x_t_nChw, batch.by_group(time_ND), mask_nT)
        if self.every_part and not batch.groups:
            h_BLD = h_BLD + zero_through(self.frontend, self.mask_token, self.time)
        h_BLD = hidden_states(self.decoder, h_BLD, batch.position_BL, make_backend(self.attention, layout))
        hidden_KD = h_BLD.flatten(0, 1)[batch.logit_K]
        prediction_mChw = self._generate(h_BLD, batch, time_ND, x_t_nChw)
        if self.every_part and not batch.generate_N.any():
            hidden_KD = hidden_KD + self._idle_head(h_BLD, batch, time_ND)
        return ModelOutput(hidden_KD, self.decoder.lm_head, prediction_mChw)

    def grid(self, x_NChw: Tensor) -> tuple[int, int]:
        """Rows and columns of visual tokens."""
        patch = self.frontend.space.patch
        return x_NChw.shape[-2] // patch, x_NChw.shape[-1] // patch

    def embed(
        self, ids_BL: Tensor, span_n_1T: list[Tensor], x_nChw: list[Tensor], time_nD: list[Tensor], mask_nT: list[Tensor]
    ) -> Tensor:
        """Input embeddings (B, L, D): text by table, image slots by scattering time tokens and visual tokens.

        Raises ValueError when the front-end's tokens and the batch's slots do not match in number.
        """
        h_BLD = self.decoder.model.embed_tokens(ids_BL)
        visual_nTD = [self.visual(x, mask) for x, mask in zip(x_nChw, mask_nT, strict=True)]
        return self.scatter(h_BLD, span_n_1T, visual_nTD, time_nD)

    def visual(self, x_NChw: Tensor, mask_NT: Tensor) -> Tensor:
        """Visual tokens (N, T, D) as the decoder sees them: front-end, mask token, positions."""
        h_NTD = self.mask_token(self.frontend.embed(x_NChw), mask_NT)
        if self.image_positions == "sincos2d":
            h_NTD = h_NTD + sincos_positions(*self.grid(x_NChw), h_NTD.shape[-1], h_NTD.device).to(h_NTD.dtype)
        return h_NTD

    @staticmethod
    def scatter(h_BLD: Tensor, span_n_1T: list[Tensor], visual_nTD: list[Tensor], time_nD: list[Tensor]) -> Tensor:
        slots, values = [], []
        for span, visual, time in zip(span_n_1T, visual_nTD, time_nD, strict=True):
            if span.shape != (visual.shape[0], visual.shape[1] + 1):
                raise ValueError(
                    f"the batch has slots for {tuple(span.shape)} (images, 1 + tokens), "
                    f"the front-end made {tuple(visual.shape[:2])}"
                )
            slots.append(span.flatten())
            values.append(torch.cat([time[:, None], visual], dim=1).to(h_BLD.dtype).flatten(0, 1))
        if not slots:
            return h_BLD
        return h_BLD.flatten(0, 1).index_copy(0, torch.cat(slots), torch.cat(values)).view_as(h_BLD)

    def to_image(self, tokens_NTP: Tensor, grid: tuple[int, int]) -> Tensor:
        """The head's outputs laid out as x (N, C, h, w), by the target layout of the objective."""
        lay_out = unpatchify if self.target_layout == "patch" else from_raster
        return lay_out(tokens_NTP, self.frontend.space.patch, grid)

    def _generate(self, h_BLD: Tensor, batch: PackedBatch, time_ND: Tensor, x_t_nChw: list[Tensor]) -> list[Tensor]:
        """Predictions for the generating images. The head runs on their documents alone, gathered into one row."""
        if not batch.generate_N.any():
            return [x[:0] for x in x_t_nChw]
        device = h_BLD.device
        generating_BL = torch.where(batch.document_BL >= 0, batch.generates_D[batch.document_BL], False)
        kept_S = generating_BL.flatten().nonzero().squeeze(1)
        new_place = torch.full((h_BLD.shape[0] * h_BLD.shape[1],), -1, dtype=torch.int64, device=device)
        new_place[kept_S] = torch.arange(len(kept_S), device=device)
        document, span, position = (
            field.flatten()[kept_S][None] for field in (batch.document_BL, batch.span_BL, batch.position_BL)
        )
        patch, columns = torch.full_like(new_place, -1), torch.ones_like(new_place)
        for group, x in zip(batch.groups, x_t_nChw, strict=True):
            slots = group.span_n_1T[:, 1:].flatten()
            patch[slots] = torch.arange(group.tokens, device=device).repeat(len(group))
            columns[slots] = self.grid(x)[1]
        rotary = rotary_tables(position, span >= 0, patch[kept_S][None], columns[kept_S][None], self.head.head_dim)
        layout = Layout(document, span, new_place[batch.start_D[batch.generates_D]], batch.length_D[batch.generates_D])
        h_SD = h_BLD.flatten(0, 1)[kept_S]
        h_SD = self.head(h_SD[None], time_ND, span, rotary, make_backend(self.attention, layout))[0]
        predictions = []
        by_group = (batch.by_group(values) for values in (batch.generate_N, time_ND))
        for group, x, generate_n, time_nD in zip(batch.groups, x_t_nChw, *by_group, strict=True):
            slots_mT = new_place[group.span_n_1T[generate_n, 1:]]
            tokens_mTP = self.head.predict(h_SD[slots_mT], time_nD[generate_n]).float()
            predictions.append(self.to_image(tokens_mTP, self.grid(x)))
        return predictions

    def _idle_head(self, h_BLD: Tensor, batch: PackedBatch, time_ND: Tensor) -> Tensor:
        """Zero, by way of every parameter of the head: the first row as text."""
        text_1L = torch.full_like(batch.span_BL[:1], -1)
        rotary = rotary_tables(batch.position_BL[:1], text_1L >= 0, text_1L, torch.ones_like(text_1L), self.head.head_dim)
        in_row_D = batch.start_D < text_1L.shape[1]
        layout = Layout(batch.document_BL[:1], text_1L, batch.start_D[in_row_D], batch.length_D[in_row_D])
        h_1LD = self.head(h_BLD[:1], time_ND, text_1L, rotary, make_backend(self.attention, layout))
        return 0 * h_1LD.sum() + zero_through(self.head.final_norm, self.head.final_modulation, self.head.output)


def zero_through(*modules: nn.Module) -> Tensor:
    """Zero, with a gradient of zero for every parameter that learns."""
    parameters = [p for module in modules for p in module.parameters() if p.requires_grad]
    return 0 * torch.stack([p.flatten()[0].float() for p in parameters]).sum() if parameters else torch.zeros(())


def build_model(
    config: RunConfig, components: Components | None, vocabulary: int, deferred: Deferred | None = None
) -> UnifiedModel:
    """The model of a run, initialised from ``config.seed``.

    Front-end and shared parts draw from separate generators: otherwise a front-end with more parameters would shift the
    decoder's initial weights, and variants would not start equal. Under ``torch.device("meta")`` only the architecture is built.
    ``vocabulary``: ids of the tokenizer. ``deferred``: what is not of the front-end is made later (:func:`build_deferred`).
    Raises UserError for parts that are missing or do not fit.
    """
    rows = table_rows(config.decoder, vocabulary)
    with torch.random.fork_rng():
        torch.manual_seed(config.seed + 1_000_003)
        frontend = build_frontend(config.frontend, config.decoder.width, config.data.image_size, components)
        torch.manual_seed(config.seed)
        with nullcontext() if deferred is None else deferred.recording():
            return UnifiedModel(config, frontend, rows)


def build_deferred(config: RunConfig, components: Components, vocabulary: int) -> tuple[UnifiedModel, dict[str, Weight]]:
    """What :func:`build_model` makes, without memory for decoder and head: their large tensors are on the meta device. And the
    weights that make it the same model, by name, each read or drawn when it is asked for.

    Raises UserError as :func:`build_model`; for values of a checkpoint that are not finite, when they are read.
    """
    deferred = Deferred()
    model = build_model(config, components, vocabulary, deferred)
    tensors = [*model.named_parameters(), *model.named_buffers()]
    weights: dict[str, Weight] = {name: deferred.later(tensor) for name, tensor in tensors if tensor.is_meta}
    if config.decoder.pretrained:
        rows = table_rows(config.decoder, vocabulary)
        weights |= {f"decoder.{name}": weight for name, weight in open_decoder(config.decoder, rows, model.decoder).items()}
    return model, weights


def table_rows(config: DecoderConfig, vocabulary: int) -> int:
    """Rows of the embedding table for a tokenizer of ``vocabulary`` ids. Raises UserError when they are fewer than the ids."""
    if config.vocabulary and config.vocabulary < vocabulary:
        raise UserError(f"decoder.vocabulary={config.vocabulary} is less than the tokenizer's {vocabulary} ids")
    return config.vocabulary or vocabulary


def parameter_counts(model: UnifiedModel) -> dict[str, int]:
    """Parameters by part; ``trainable`` leaves the frozen parts of the front-end out."""
    parts = {
        "frontend": model.frontend,
        "decoder": model.decoder,
        "flow_head": model.head,
        "time_embedding": model.time,
        "mask_token": model.mask_token,
    }
    counts = {name: sum(p.numel() for p in part.parameters()) for name, part in parts.items()}
    return {**counts, "trainable": sum(p.numel() for p in model.parameters() if p.requires_grad)}
