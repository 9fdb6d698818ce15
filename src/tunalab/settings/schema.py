"""The settings of a run: dataclasses, and how layers of settings (layers.py) are laid over the defaults here.

Precedence: defaults <- experiment YAML <- variant YAML <- command line ``key=value``. Unknown keys, wrong types and values out of
range are refused (check.py), each in one line (UserError).
"""

import copy
import hashlib
import json
import re
from dataclasses import asdict, dataclass, field, fields, is_dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any, get_args, get_type_hints

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from tunalab.errors import UserError, first_line
from tunalab.redaction import redacted_settings
from tunalab.settings.check import check_settings, misfit
from tunalab.settings.layers import Layer, read_settings, settings_layers
from tunalab.settings.layers import read_yaml as read_yaml
from tunalab.settings.values import named_members, typed

# Raised whenever the same settings begin to compute something else (documents, draws, losses): earlier runs are then other runs.
REVISION = 2


@dataclass
class ManifestConfig:
    """A JSONL manifest as a source: ``manifest/<key>`` in a mix."""

    path: str = ""
    root: str = ""  # folder of relative image paths; empty: the manifest's own
    kind: str = "caption"  # what {"image", "caption"} lines become: caption | text_to_image


@dataclass
class ShardsConfig:
    """Files of a source, local or behind fsspec URLs; tar shards, row groups of Parquet and runs of JSON lines are its blocks.

    An epoch shuffles the blocks, then the rows of ``window`` blocks at a time: what a data process reads stays together.
    """

    urls: list[str] = field(default_factory=list)  # paths or URLs, with globs and {000..127} ranges
    window: int = 8  # blocks whose rows are shuffled together (and whose row groups stay in memory); 0: all rows, at random
    streams: int = 1  # runs of blocks read side by side: best ranks x data processes, so that each has blocks of its own


@dataclass
class WebDatasetConfig(ShardsConfig):
    """Tar shards of images with captions as a source: ``webdataset/<key>`` in a mix."""

    kind: str = "caption"  # what a pair becomes: caption | text_to_image
    caption: str = "txt"  # ending of the member that holds the caption; one in json is an object
    caption_key: str = "caption"  # the caption's key in such an object


@dataclass
class FineVisionConfig(ShardsConfig):
    """Parquet with columns images and texts (user and assistant turns) as a source: ``finevision/<key>`` in a mix."""


@dataclass
class OmniEditConfig(ShardsConfig):
    """Parquet with columns src_img, edited_img and edited_prompt_list as a source: ``omniedit/<key>`` in a mix."""


@dataclass
class TextConfig(ShardsConfig):
    """Parquet or JSON lines of texts or of conversations without images as a source: ``text/<key>`` in a mix."""

    column: str = "text"  # a text, or a list of turns {"role", "content"} or {"from", "value"}
    max_characters: int = 0  # longer texts are cut into pieces, one of them an epoch; 0: texts stay whole


@dataclass
class DataConfig:
    image_size: int = 32  # pixels along a side
    # Sizes "HEIGHTxWIDTH" that images of files are brought to, each to the one of the nearest shape; empty: image_size squares.
    buckets: list[str] = field(default_factory=list)
    # Which shape is nearest, and how it is resized to (data/buckets.py). log: by the ratio of aspect ratios, areas averaged;
    # official: by their difference, bicubic with antialias, as the official code: for its weights and for published scores.
    bucket_rule: str = "log"
    # Bounds of images of files in training, with buckets and without: one that would lose a larger share to cropping, or be
    # enlarged more, is left out with its reason. Without buckets .5 keeps shapes up to 2:1. 1 and a large factor: no bounds.
    max_crop: float = 0.5
    max_upscale: float = 2.0
    levels: list[float] = field(default_factory=lambda: [0.85, 0.1, 0.05])  # share of scene difficulty levels 1, 2, 3
    questions_per_image: int = 5
    caption_drop: float = 0.1  # share of text-to-image prompts left empty: trains the unconditional branch of guidance
    row_tokens: int = 512  # length of a packed row
    rows: int = 4  # packed rows a micro-batch and rank
    accumulate: int = 1  # micro-batches an optimiser step, on every rank
    step_tokens: int = 0  # places (padding included) an optimiser step over all ranks; 0: what `accumulate` comes to
    lookahead: int = 48  # documents that wait for a row they fit into
    full_digests: bool = False  # whether data changed while a run was stopped is told by all of their bytes (data/changes.py)
    workers: int = 0  # data processes a rank; part of the data order, so it is recorded with the run
    reject_share: float = 0.01  # broken documents above this share stop the run
    unfit_share: float = 0.5  # as do sound ones of a source that do not fit (longer than a row, too small): they are left out
    manifests: dict[str, ManifestConfig] = field(default_factory=dict)
    webdataset: dict[str, WebDatasetConfig] = field(default_factory=dict)
    finevision: dict[str, FineVisionConfig] = field(default_factory=dict)
    omniedit: dict[str, OmniEditConfig] = field(default_factory=dict)
    text: dict[str, TextConfig] = field(default_factory=dict)


@dataclass
class FrontEndConfig:
    """The only settings that may differ between variants."""

    name: str = "patch_embed"
    patch: int = 8  # cells of the target space per visual token along a side
    encoder: str = ""  # "tiny" (built by `make components`), or a pretrained one (frontends/pretrained_encoder.py)
    encoder_pretrained: bool = True  # False: the same architecture from random weights
    encoder_trained: bool = True  # False: it stays as it starts, and only what joins it to the decoder learns
    encoder_layer: int = -2  # the block whose output is used, counted from the end; later blocks are dropped
    encoder_antialias: bool = False  # position grid resized as timm does; else as transformers and the official models do
    vae: str = ""  # "tiny", a diffusers folder, or NAME/SUBFOLDER on the Hub
    vae_statistics: str = "published"  # published: the VAE's own | official: the released Tuna checkpoint's (means := deviations)
    # What of the VAE's posterior training sees: mean | sample (as the official Tuna; a function of the seed and an image's place in
    # the stream). Everything but training sees the mean. A front-end without a VAE has no posterior: mean alone.
    vae_posterior: str = "mean"


@dataclass
class DecoderConfig:
    """A Qwen2 decoder: from scratch, or ``pretrained``, whose own sizes the settings here must then state."""

    pretrained: str = ""  # checkpoint: name on the Hub (Qwen/Qwen2.5-1.5B-Instruct) or folder; empty: from scratch
    tokenizer: str = ""  # name on the Hub or folder; empty: that of `pretrained`, or the tiny one of `make components`
    # Turns of Qwen's chat, with its system turn, in training as at every use of the model: none | qwen (around questions and
    # answers, as the published models) | qwen_all (around prompts and instructions with their images too). Plain text has none.
    chat: str = "none"
    vocabulary: int = 0  # rows of the embedding table; 0: as many as the tokenizer has ids
    width: int = 128
    layers: int = 3
    heads: int = 4
    kv_heads: int = 2
    mlp: int = 256
    rope_theta: float = 10000.0
    init_std: float = 0.08
    tie_embeddings: bool = True  # input and output embeddings are one table (Qwen2.5 up to 3B) or two
    image_positions: str = "sincos2d"  # added to visual tokens of every front-end: sincos2d | none (the published models)


@dataclass
class FlowHeadConfig:
    blocks: int = 2
    heads: int = 4
    kv_heads: int = 2
    head_dim: int = 32
    mlp: int = 256


@dataclass
class MaskingConfig:
    """A learnable token replaces visual tokens before the decoder, in the last part of the stages that mask."""

    ratio: float = 0.5  # upper end of the uniform law the ratio of an image is drawn from; 0 switches masking off
    law: str = "uniform"  # uniform: ratio ~ U(0, ratio) per image; fixed: always ratio
    probability: float = 0.5  # share of images masked
    start: float = 0.6  # share of such a stage after which masking begins
    understanding: bool = True
    generation: bool = True


@dataclass
class ObjectiveConfig:
    prediction: str = "x"  # what the network outputs: x | v; the loss is on v either way
    target_layout: str = "patch"  # patch | raster (official pixel checkpoints)
    time_mean: float = -0.8  # t = sigmoid(N(mean, std^2)), t = 1 is clean
    time_std: float = 0.8
    time_shift: float = 0.0  # by how much the mean falls with every visual token of an image: large images take more noise
    time_shift_tokens: int = 0  # take every image to have so many (the official code: 1024); 0: its own
    noise_scale: float = 1.0
    min_one_minus_t: float = 0.05  # clamp of 1 - t in the weight of the x-prediction loss, not in sampling
    flow_weight: float = 1.0
    text_weight: float = 1.0
    understanding_noise: float = 0.1  # share of understanding images lightly noised, level U(0, 0.1)
    masking: MaskingConfig = field(default_factory=MaskingConfig)


@dataclass
class ParameterGroupConfig:
    """Parameters that learn at a rate, or with a weight decay, of their own."""

    # Names that begin with these parts (frontend.encoder), or that fit the pattern where it holds * ? or [
    match: str = ""
    lr: float = 1.0  # factor of the stage's rate; 0: they stay as they start, without gradients and moments
    weight_decay: float = -1.0  # below 0: optimizer.weight_decay


@dataclass
class OptimizerConfig:
    name: str = "adamw"  # adamw | muon (for matrices inside blocks; AdamW for everything else)
    momentum: float = 0.95  # of Muon
    beta1: float = 0.9
    beta2: float = 0.98
    eps: float = 1e-8
    weight_decay: float = 0.01
    # What it acts on: all | matrices (not biases, gains, embedding tables, learnt positions and tokens).
    weight_decay_on: str = "all"
    clip: float = 1.0
    warmup_steps: int = 100  # after the start of every stage
    ema: float = 0.99
    groups: dict[str, ParameterGroupConfig] = field(default_factory=dict)


@dataclass
class StageConfig:
    """A part of training. ``train``: all | connector (the paper's first stage: only what joins a pretrained encoder to the
    decoder) | without_encoder (all but the pretrained encoder: for a decoder that starts from scratch). A front-end without
    connector trains everything in every stage, so budgets stay equal.

    A stage sees ``tokens`` tokens (0: it is left out) of ``mix`` (source name -> weight in documents,
    however long they are: the record says what that came to in tokens), at ``lr`` after warm-up, by
    ``schedule``. ``masking``: whether its last part masks visual tokens (objective.masking).
    """

    tokens: int = 4_000_000
    lr: float = 2e-3
    train: str = "all"
    masking: bool = False
    schedule: str = "constant"  # constant | cosine | wsd (constant, then linear): by the share of the stage's tokens
    final_lr: float = 0.0  # of cosine and wsd: the rate at the stage's end, as a share of lr
    cooldown: float = 0.2  # of wsd: the last share of the stage's tokens, in which the rate falls
    mix: dict[str, float] = field(default_factory=dict)


@dataclass
class StartConfig:
    """Weights to start from instead of random ones (training/start.py)."""

    checkpoint: str = ""  # exported or converted folder, or official checkpoint; empty: from scratch
    allow_missing: list[str] = field(default_factory=list)  # patterns (*) of weights it may lack: these start from scratch
    accept_changed_data: bool = False  # a run that was stopped goes on although its data changed since


@dataclass
class SamplingConfig:
    method: str = "heun"  # euler | heun
    steps: int = 20
    guidance: float = 2.0  # 1: no guidance
    negative_prompt: str = ""  # text of the branch that guidance starts from, of images and edits; empty: what no prompt gives
    # Of edits, from the source with the negative prompt as its instruction (as the official models are sampled). 0: by `guidance`,
    # from the negative prompt without the source; training drops no instructions, so a source without one is new to a model.
    edit_guidance: float = 0.0
    grid: str = "steps"  # what `steps` counts: steps | points (the official Tuna's; one step less)
    shift: float = 1.0  # of the grid: above 1 it is finer near the noise
    clamp: str = "none"  # 1 - t under an x-prediction: none | official (at least .05: over 20 steps leave noise in every image)


@dataclass
class EvaluationConfig:
    points: int = 8  # evaluations at log-spaced token counts, the last at the end
    first: float = 0.03  # share of the budget at which the first evaluation happens
    levels: list[int] = field(default_factory=lambda: [1, 3])
    groups: int = 200  # questions (pairs of questions for `pairs`) per benchmark and level
    easy_vqa: int = 300  # questions of easy-VQA's published test split; 0: leave the benchmark out
    max_answer_tokens: int = 8
    loss_documents: int = 128  # held-out documents a kind
    psnr_images: int = 64
    psnr_times: list[float] = field(default_factory=lambda: [0.3, 0.6, 0.9])
    sample_prompts: int = 16


@dataclass
class TrackingConfig:
    enabled: bool = True
    uri: str = ""  # empty: MLFLOW_TRACKING_URI, else sqlite:///mlflow.db
    system_metrics: bool = True  # load of processor, memory, disk, network and GPUs, every half minute
    experiment: str = "tunalab"
    parent_run: str = ""  # set by the sweep driver
    sweep: str = ""


@dataclass
class DistributionConfig:
    """How a run is spread over processes, which a launcher starts (torchrun, or srun in SLURM), one a GPU.

    None of it changes what is computed but for rounding. The number of processes does, for a step grows with it: unless
    data.step_tokens is set.
    """

    strategy: str = "auto"  # none | ddp | fsdp2 (fully sharded) | auto: none for one process, ddp for several
    devices: int = 0  # processes a node; 0: as many as were started
    nodes: int = 0  # 0: as many as there are
    shard_size: int = 0  # fsdp2: ranks that hold one copy of the parameters between them; 0: all ranks
    reshard: bool = True  # fsdp2: a block's gathered parameters are freed between its forward and its backward pass
    reduce_always: bool = False  # fsdp2: gradients are summed after every micro-batch, not the last: more traffic, less memory
    other_world: bool = False  # go on from a checkpoint of another number of processes (the rule: data/stream.py)


@dataclass
class RunConfig:
    revision: int = REVISION
    experiment: str = "scenes"
    variant: str = "tuna2"
    seed: int = 0
    components_seed: int = 0
    precision: str = "auto"  # auto: bf16 on a GPU, fp32 on CPU | fp32 | bf16
    threads: int = 1  # CPU threads of a run
    attention: str = "auto"  # auto: flex on a GPU, document on CPU | document | dense | flex
    checkpoint_seconds: float = 120.0
    keep_checkpoints: int = 2
    activation_checkpointing: bool = False  # blocks of decoder, head and encoder are computed again going backward: less memory
    compile_blocks: bool = False  # torch makes kernels for them: faster on a GPU, after some minutes; equal but for rounding
    distribution: DistributionConfig = field(default_factory=DistributionConfig)
    data: DataConfig = field(default_factory=DataConfig)
    frontend: FrontEndConfig = field(default_factory=FrontEndConfig)
    decoder: DecoderConfig = field(default_factory=DecoderConfig)
    head: FlowHeadConfig = field(default_factory=FlowHeadConfig)
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    start: StartConfig = field(default_factory=StartConfig)
    stages: dict[str, StageConfig] = field(default_factory=dict)  # in order; the experiment file names them
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    tracking: TrackingConfig = field(default_factory=TrackingConfig)


# Settings that say where a run reports or how it is scheduled, not what it computes: they do not enter its identity.
NOT_IDENTITY = (
    *("tracking", "checkpoint_seconds", "keep_checkpoints", "threads"),
    *("activation_checkpointing", "compile_blocks", "distribution"),
)
# As these, inside of others: they say when a run stops or may go on.
NOT_IDENTITY_INSIDE = ("data.unfit_share", "data.full_digests", "start.accept_changed_data")

# A tree with one unnamed member wherever a user names members: what is a setting, a list or a mapping.
_TREE = RunConfig(
    stages={"": StageConfig(mix={"": 0.0})},
    optimizer=OptimizerConfig(groups={"": ParameterGroupConfig()}),
    data=DataConfig(
        manifests={"": ManifestConfig()},
        webdataset={"": WebDatasetConfig()},
        finevision={"": FineVisionConfig()},
        omniedit={"": OmniEditConfig()},
        text={"": TextConfig()},
    ),
)


_DEFAULTS = OmegaConf.structured(RunConfig)
_KEPT: dict[str, Any] = {}  # an experiment's layers -> what they make of the defaults


def load_config(experiment: Path | None, variant: Path | None, overrides: list[str]) -> RunConfig:
    """Lay experiment file, variant file and command line (layers.py) over the defaults and check the result.

    Raises UserError, one line, naming the key or the file and the choices.
    """
    layers = settings_layers(experiment, variant, overrides)
    of_experiment = len(settings_layers(experiment, None, []))
    return _checked(_laid(_below(layers[:of_experiment]), layers[of_experiment:]))


def read_config(path: Path) -> RunConfig:
    """What a run, or an exported model, saved. Raises UserError: it is missing, damaged, or of another revision."""
    plain = read_settings(path)
    if "variant" not in plain:
        raise UserError(f"{path} is damaged: it does not hold the settings of a run")
    return from_plain(plain, source=str(path))


def from_plain(plain: Any, references: bool = False, source: str = "config") -> RunConfig:
    """A checked RunConfig from plain dicts, such as a run's saved ``config.yaml`` or the config inside a record.

    Without a revision it is from before there was one, and of the first. Without ``references`` text stays what it is: a stranger's
    ``${oc.env:...}`` reads nothing of this machine.
    """
    if isinstance(plain, dict):
        plain = {"revision": 1, **plain}
        try:
            plain = plain if references else _literal(plain)
        except OmegaConfBaseException as error:  # half a reference
            raise UserError(f"{source}: {first_line(error)}") from error
    return _checked(_merge(_defaults(), plain, source=source))


def _literal(plain: Any) -> Any:
    """``${`` as OmegaConf writes it where no reference is meant, with the backslashes before it doubled."""
    if isinstance(plain, str) and "${" in plain:
        OmegaConf.create([plain])
        return re.sub(r"(\\*)\$\{", r"\1\1\\${", plain)
    if isinstance(plain, dict):
        return {_literal(key): _literal(value) for key, value in plain.items()}
    return [_literal(value) for value in plain] if isinstance(plain, list) else plain


def laid_over(config: RunConfig, setting: str) -> RunConfig:
    """A configuration with one more setting of the command line. Raises UserError, one line."""
    below = _merge(_defaults(), _literal(asdict(config)), source="config")
    return _checked(_laid(below, settings_layers(None, None, [setting])))


def _defaults() -> Any:
    return copy.deepcopy(_DEFAULTS)


def _below(layers: list[Layer]) -> Any:
    """The defaults under an experiment's layers. The last one is kept: it is most of the work, and a sweep's cells share it."""
    told = repr(layers)
    if told not in _KEPT:
        laid = _laid(_defaults(), layers)
        _KEPT.clear()
        _KEPT[told] = laid
    return copy.deepcopy(_KEPT[told])


def _laid(merged: Any, layers: list[Layer]) -> Any:
    for layer in layers:
        for *above, name in replaced_mappings(layer):
            node = merged
            for one in above:
                node = node.get(one, {})
            if name in node:
                node[name] = {}
        merged = _merge(merged, layer.settings, layer.source)
    return merged


def replaced_mappings(layer: Layer) -> list[tuple[str, ...]]:
    """Places of what a layer replaces as a whole."""
    mixes: list[tuple[str, ...]] = [("stages", stage, "mix") for stage in layer.new_mixes]
    return mixes if layer.given is None else [*mixes, *named_members(layer.settings, RunConfig, (), len(layer.given))]


def typed_layer(layer: Layer) -> Layer:
    """With every word in the type of its setting. Raises UserError, naming the source: it is none of that type."""
    try:
        return replace(layer, settings=typed(layer.settings, RunConfig))
    except UserError as error:
        raise UserError(f"{layer.source}: {error}") from error


def _checked(merged: Any) -> RunConfig:
    try:
        config = OmegaConf.to_object(merged)
    except OmegaConfBaseException as error:  # a reference ${key} to nothing, or to a value of another type
        raise UserError(f"{getattr(error, 'full_key', None) or 'config'}: {first_line(error)}") from error
    assert isinstance(config, RunConfig)
    check(config)
    return config


def to_plain(config: Any) -> dict[str, Any]:
    """Plain nested dicts of numbers, strings and lists, without credentials: what is saved, shown, hashed and compared."""
    plain = _plain(config, type(config))
    assert isinstance(plain, dict)
    return {key: redacted_settings(value) for key, value in plain.items()}


def _plain(value: Any, declared: Any) -> Any:
    """As OmegaConf's containers, which take a hundred times as long."""
    if is_dataclass(value) and not isinstance(value, type):
        return {name: _plain(getattr(value, name), inner) for name, inner in _declared(type(value)).items()}
    if isinstance(value, dict):
        member = (get_args(declared) or (None, None))[1]
        return {str(name): _plain(inner, member) for name, inner in value.items()}
    if isinstance(value, list):
        member = (get_args(declared) or (None,))[0]
        return [_plain(inner, member) for inner in value]
    # A whole number is the same setting as the fraction, and has to be the same text for the hash.
    return float(value) if declared is float and type(value) is int else value


@cache
def _declared(kind: type) -> dict[str, Any]:
    hints = get_type_hints(kind)
    return {item.name: hints[item.name] for item in fields(kind)}


def completed(plain: dict[str, Any]) -> dict[str, Any]:
    """A plain configuration of an earlier version as today's would be: settings that were added since, at their defaults.

    Nothing is checked: what today's settings refuse stays as it is.
    """
    return _completed({"revision": 1, **plain}, _TREE, to_plain(RunConfig()))


def _completed(plain: Any, node: Any, defaults: Any) -> Any:
    """``node``: of _TREE, knows the settings of members that users name; ``defaults``: a run's, which has no such members."""
    if not isinstance(plain, dict) or not (is_dataclass(node) or isinstance(node, dict)):
        return plain
    if isinstance(node, dict):
        member = node[""]
        return {
            name: _completed(inside, member, to_plain(member) if is_dataclass(member) else None) for name, inside in plain.items()
        }
    filled = {name: _completed(inside, getattr(node, name, None), defaults.get(name)) for name, inside in plain.items()}
    return {**defaults, **filled}


def budget(config: RunConfig) -> int:
    """Tokens of all stages."""
    return sum(stage.tokens for stage in config.stages.values())


def config_hash(config: RunConfig) -> str:
    """Twelve hex digits that identify what a run computes (where it reports to does not enter)."""
    return plain_hash(to_plain(config))


def plain_hash(plain: dict[str, Any]) -> str:
    """:func:`config_hash` of a configuration in the form that :func:`to_plain` gives."""
    return text_digest(identity(plain))


def identity(plain: dict[str, Any]) -> str:
    """What of a plain configuration decides what a run computes, as the text that is hashed: a new password is no other run."""
    entering = {key: redacted_settings(value) for key, value in plain.items() if key not in NOT_IDENTITY}
    for key in NOT_IDENTITY_INSIDE:
        group, _, name = key.partition(".")
        if group in entering:
            entering[group] = {inner: value for inner, value in entering[group].items() if inner != name}
    entering["stages"] = list(entering["stages"].items())  # their order is part of it
    return json.dumps(entering, sort_keys=True)


def digest(plain: Any) -> str:
    return text_digest(json.dumps(plain, sort_keys=True))


def text_digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def check(config: RunConfig) -> None:
    """Range, choice and cross-field checks. Raises UserError with one line."""
    if config.revision != REVISION:
        raise UserError(
            f"revision={config.revision}: this version computes revision {REVISION}; the same settings gave another run"
        )
    check_settings(config)


def _merge(base: Any, layer: Any, source: str) -> Any:
    plain = OmegaConf.to_container(layer) if OmegaConf.is_config(layer) else layer
    if not isinstance(plain, dict):
        raise UserError(f"{source} is not a mapping of settings")
    wrong = misfit(plain, _TREE)
    if wrong is not None:
        raise UserError(f"{source}: {wrong}")
    plain = typed_layer(Layer(source, {str(key): value for key, value in plain.items()})).settings
    try:
        return OmegaConf.unsafe_merge(base, plain)  # into base itself: a copy of everything for every layer would be slow
    except OmegaConfBaseException as error:  # the structure fits, so this is one value's type
        raise UserError(f"{source}: {getattr(error, 'full_key', None) or '?'}: {first_line(error)}") from error
