"""Which settings there are: the dataclasses of a run, from the data to where it reports.

Each field declares its range, when it acts and what it can change (declaration.py). How files and
``key=value`` become a configuration, and what its hash is, stands in loading.py.
"""

from dataclasses import dataclass
from typing import Any

from tunalab.settings.declaration import group, setting, settings_of

SIDES = (8, 4096)  # pixels along a side of an image, at least and at most
# Raised whenever the same settings begin to compute something else (documents, draws, losses): earlier runs are then other runs.
REVISION = 2
SEED = 2**31 - 1  # every generator, record and tracking store takes it
BELOW_1 = 1 - 1e-9
KINDS = ("caption", "text_to_image")


@dataclass
class ManifestConfig:
    """A JSONL manifest as a source: ``manifest/<key>`` in a mix."""

    path: str = setting("", help="file of JSON lines")
    root: str = setting("", help="folder of relative image paths; empty: the manifest's own")
    kind: str = setting("caption", choices=KINDS, help='what {"image", "caption"} lines become')


@dataclass
class ShardsConfig:
    """Files of a source, local or behind fsspec URLs; tar shards, row groups of Parquet and runs of JSON lines are its blocks.

    An epoch shuffles the blocks, then the rows of ``window`` blocks at a time: what a data process reads stays together.
    """

    urls: list[str] = setting([], help="paths or URLs, with globs and {000..127} ranges")
    window: int = setting(
        8,
        at_least=0,
        help="blocks whose rows are shuffled together (row groups stay in memory); 0: all rows",
    )
    streams: int = setting(
        1,
        at_least=1,
        help="runs of blocks read side by side: best ranks x data processes, so that each has blocks of its own",
    )


@dataclass
class WebDatasetConfig(ShardsConfig):
    """Tar shards of images with captions as a source: ``webdataset/<key>`` in a mix."""

    kind: str = setting("caption", choices=KINDS, help="what a pair becomes")
    caption: str = setting(
        "txt",
        help="ending of the member that holds the caption; one in json is an object",
    )
    caption_key: str = setting("caption", help="the caption's key in such an object")


@dataclass
class FineVisionConfig(ShardsConfig):
    """Parquet with columns images and texts (user and assistant turns) as a source: ``finevision/<key>`` in a mix."""


@dataclass
class OmniEditConfig(ShardsConfig):
    """Parquet with columns src_img, edited_img and edited_prompt_list as a source: ``omniedit/<key>`` in a mix."""


@dataclass
class TextConfig(ShardsConfig):
    """Parquet or JSON lines of texts or of conversations without images as a source: ``text/<key>`` in a mix."""

    column: str = setting(
        "text",
        help='a text, or a list of turns {"role", "content"} or {"from", "value"}',
    )
    max_characters: int = setting(
        0,
        at_least=0,
        help="longer texts are cut into pieces, one of them per epoch; 0: texts stay whole",
    )


OUTSIDE = "entry point of an installed package, my_package.module:Class or path/to/file.py:Class"


@dataclass
class CorpusConfig:
    """A corpus from outside (docs/extend/corpus.md): ``corpus/<key>`` in a mix."""

    name: str = setting("", help=OUTSIDE)
    arguments: dict[str, Any] = setting({}, help="single values that it is made with")


@dataclass
class QuestionsConfig:
    """A kind of question about scenes from outside (docs/extend/question.md): ``questions/<key>`` in a mix, and a benchmark
    of that name beside those of the scenes.
    """

    name: str = setting("", help=OUTSIDE)


@dataclass
class BenchmarkConfig:
    """A benchmark along a run (docs/extend/benchmark.md), which figures and tables call by its key: a file of questions, a class of
    one's own, or a published task.
    """

    path: str = setting("", help="file of JSON lines with questions; of a task its data; or else name")
    root: str = setting("", help="folder of their image paths; empty: the file's own")
    rule: str = setting("exact", help="when a reply counts: exact, contains, option, number, or path/to/file.py:function")
    task: str = setting("", help="a published benchmark by name: ocrbench, mmvp, ..., geneval, dpg; or scene_prompts, without data")
    rules: str = setting(
        "published", choices=("published", "stock"), help="of a task whose replies the paper counts otherwise than lmms-eval 0.7.3"
    )
    scorer: str = setting(
        "", help="of geneval the detector's folder, of dpg the VQA model's; empty: images are kept, and scored when one is named"
    )
    clip: str = setting("", help="of geneval: folder of the CLIP that names colours")
    steps: int = setting(10, at_least=1, help="of the sampler, for the images of a task that makes some")
    name: str = setting("", help=OUTSIDE)
    limit: int = setting(
        200,
        at_least=1,
        help="items asked along a run: the same ones always, drawn by a seed of their own; groups count once",
    )
    arguments: dict[str, Any] = setting({}, help="single values that a class is made with")


@dataclass
class DataConfig:
    """Which documents a run reads, and how they are packed into rows."""

    image_size: int = setting(32, at_least=SIDES[0], at_most=SIDES[1], help="pixels along a side")
    buckets: list[str] = setting(
        [],
        help='sizes "HEIGHTxWIDTH" that images of files are brought to, each to the nearest shape; empty: image_size squares',
    )
    bucket_rule: str = setting(
        "log",
        choices=("log", "official"),
        help="which shape is nearest and how it is resized to: log: by the ratio of aspect ratios, areas averaged; "
        "official: by their difference, bicubic with antialias, as the official code (data/buckets.py)",
    )
    max_crop: float = setting(
        0.5,
        at_least=0,
        at_most=1,
        help="an image of a file that would lose a larger share to cropping is left out of training; "
        "without buckets .5 keeps shapes up to 2:1; 1: no bound",
    )
    max_upscale: float = setting(
        2.0,
        at_least=1,
        help="an image of a file that would be enlarged by a larger factor is left out of training",
    )
    levels: list[float] = setting([0.85, 0.1, 0.05], at_least=0, help="shares of levels 1, 2, 3")
    placement: str = setting(
        "grid",
        choices=("grid", "free"),
        help="grid: scenes stand on the grid of cells, at level 1 one small thing in one visual token; free: columns and rows "
        "of things are displaced, in training and in the questions. Prompts for generation and their judgement stay on the grid",
    )
    questions_per_image: int = setting(5, at_least=1, at_most=8, help="questions about each scene")
    # Where it lies is no part of a run: what it holds is compared when a run goes on.
    drawings: str = setting("", identity=False, help="folder of art, made by `tunalab drawings`: the sources drawings/KIND read it")
    caption_drop: float = setting(
        0.1,
        at_least=0,
        at_most=1,
        help="share of text-to-image prompts left empty: trains the unconditional branch of guidance",
    )
    row_tokens: int = setting(512, at_least=32, help="length of a packed row")
    rows: int = setting(4, at_least=1, help="packed rows per micro-batch and rank")
    accumulate: int = setting(1, at_least=1, help="micro-batches per optimiser step, on every rank")
    step_tokens: int = setting(
        0,
        at_least=0,
        help="places (padding included) per optimiser step over all ranks; 0: what accumulate comes to",
    )
    lookahead: int = setting(48, at_least=1, help="documents that wait for a row they fit into")
    full_digests: bool = setting(
        False,
        acts="never",
        changes="nothing",
        help="check all bytes of the data, not samples, for changes while a run was stopped (data/changes.py)",
    )
    workers: int = setting(
        0,
        at_least=0,
        help="data processes per rank; part of the data order, so recorded with the run",
    )
    # It has always been in the hash.
    reject_share: float = setting(
        0.01,
        at_least=0,
        at_most=BELOW_1,
        acts="never",
        changes="nothing",
        identity=True,
        help="broken documents above this share stop the run",
    )
    unfit_share: float = setting(
        0.5,
        at_least=0,
        at_most=1,
        acts="never",
        changes="nothing",
        help="sound documents of a source that do not fit (longer than a row, too small) above this share stop the run",
    )
    manifests: dict[str, ManifestConfig] = group(dict)
    webdataset: dict[str, WebDatasetConfig] = group(dict)
    finevision: dict[str, FineVisionConfig] = group(dict)
    omniedit: dict[str, OmniEditConfig] = group(dict)
    text: dict[str, TextConfig] = group(dict)
    corpora: dict[str, CorpusConfig] = group(dict)
    questions: dict[str, QuestionsConfig] = group(dict)


@dataclass
class FrontEndConfig:
    """What variants differ in; beside it an encoder's rate may, and where a sweep says so the factor of all rates."""

    name: str = setting("patch_embed", help="a registered front-end")
    patch: int = setting(
        8,
        at_least=1,
        help="cells of the target space per visual token along a side",
    )
    encoder: str = setting(
        "",
        help='"tiny", tiny/seed1@3000 (`tunalab components` lists them), or a pretrained one by name (docs/encoders.md)',
    )
    encoder_pretrained: bool = setting(
        True,
        help="false: the same architecture from random weights",
    )
    encoder_trained: bool = setting(
        True,
        help="false: it stays as it starts, and only what joins it to the decoder learns",
    )
    encoder_layer: int = setting(
        -2,
        at_most=-1,
        help="the block whose output is used, counted from the end; later blocks are dropped",
    )
    encoder_antialias: bool = setting(
        False,
        help="the position grid is resized as timm does; false: as transformers and the official models do",
    )
    vae: str = setting("", help='"tiny", tiny/seed1, a diffusers folder, or NAME/SUBFOLDER on the Hub')
    vae_statistics: str = setting(
        "published",
        choices=("published", "official"),
        help="published: the VAE's own; official: the released Tuna checkpoint's (means := deviations)",
    )
    vae_posterior: str = setting(
        "mean",
        choices=("mean", "sample"),
        help="what training sees of the VAE's posterior; sample: as the official Tuna, a function of the seed and an "
        "image's place in the stream. All else sees the mean. A front-end without a VAE takes mean alone",
    )


@dataclass
class DecoderConfig:
    """A Qwen2 decoder: from scratch, or ``pretrained``, whose own sizes the settings here must then state."""

    pretrained: str = setting(
        "",
        help="checkpoint: name on the Hub (Qwen/Qwen2.5-1.5B-Instruct) or folder; empty: from scratch",
    )
    tokenizer: str = setting(
        "",
        help="name on the Hub or folder; empty: that of pretrained, or the tiny one",
    )
    chat: str = setting(
        "none",
        choices=("none", "qwen", "qwen_all"),
        help="turns of Qwen's chat, with its system turn, in training as at every use of the model; qwen: around questions "
        "and answers, as the published models; qwen_all: around prompts and instructions with their images too; "
        "plain text has none",
    )
    vocabulary: int = setting(0, at_least=0, help="rows of the embedding; 0: the tokenizer's ids")
    width: int = setting(128, at_least=8, help="features per token; a multiple of 2 x heads")
    layers: int = setting(3, at_least=1, help="blocks")
    heads: int = setting(4, at_least=1, help="attention heads")
    kv_heads: int = setting(2, at_least=1, help="heads of keys and values; divides heads")
    mlp: int = setting(256, at_least=1, help="hidden width of a block's MLP")
    rope_theta: float = setting(10000.0, at_least=1, help="base of the rotary frequencies")
    init_std: float = setting(0.08, at_least=0, help="standard deviation of random weights")
    tie_embeddings: bool = setting(
        True,
        help="input and output embeddings are one table (Qwen2.5 up to 3B), or two",
    )
    image_positions: str = setting(
        "sincos2d",
        choices=("sincos2d", "none"),
        help="added to visual tokens of every front-end; none: as the published models",
    )


@dataclass
class FlowHeadConfig:
    """The transformer behind the decoder that predicts images."""

    blocks: int = setting(2, at_least=1, help="blocks")
    heads: int = setting(4, at_least=1, help="attention heads")
    kv_heads: int = setting(2, at_least=1, help="heads of keys and values; divides heads")
    head_dim: int = setting(32, at_least=16, help="features per head; a multiple of 16")
    mlp: int = setting(256, at_least=1, help="hidden width of a block's MLP")


@dataclass
class MaskingConfig:
    """A learnable token replaces visual tokens before the decoder, in the last part of the stages that mask."""

    ratio: float = setting(
        0.5,
        at_least=0,
        at_most=1,
        help="upper end of the uniform law the ratio of an image is drawn from; 0 switches masking off",
    )
    law: str = setting(
        "uniform",
        choices=("uniform", "fixed"),
        help="uniform: an image's ratio ~ U(0, ratio); fixed: always ratio",
    )
    probability: float = setting(0.5, at_least=0, at_most=1, help="share of images masked")
    start: float = setting(0.6, at_least=0, at_most=1, help="share of such a stage before masking")
    understanding: bool = setting(True, help="mask images of understanding")
    generation: bool = setting(True, help="mask images of generation")


@dataclass
class ObjectiveConfig:
    """What is predicted and how losses are weighted; t = 1 is clean."""

    prediction: str = setting(
        "x",
        choices=("x", "v"),
        help="what the network outputs; the loss is on v either way",
    )
    target_layout: str = setting(
        "patch",
        choices=("patch", "raster"),
        help="order of the values of a visual token; raster: of official pixel checkpoints",
    )
    time_mean: float = setting(-0.8, help="t = sigmoid(N(mean, std^2)), t = 1 is clean")
    time_std: float = setting(0.8, at_least=0, help="standard deviation, see time_mean")
    time_shift: float = setting(
        0.0,
        at_least=0,
        help="by how much the mean falls with every visual token of an image: large images take more noise",
    )
    time_shift_tokens: int = setting(
        0,
        at_least=0,
        help="take every image to have so many tokens (the official code: 1024); 0: its own",
    )
    noise_scale: float = setting(1.0, at_least=0, help="standard deviation of the noise")
    min_one_minus_t: float = setting(
        0.05,
        at_least=1e-6,
        at_most=1,
        help="least 1 - t in the weight of the x-prediction loss, not in sampling",
    )
    flow_weight: float = setting(1.0, at_least=0, help="weight of the loss of images")
    text_weight: float = setting(1.0, at_least=0, help="weight of the loss of text")
    understanding_noise: float = setting(
        0.1,
        at_least=0,
        at_most=1,
        help="share of understanding images lightly noised, at a level ~ U(0, 0.1)",
    )
    masking: MaskingConfig = group(MaskingConfig, acts="masking")


@dataclass
class ParameterGroupConfig:
    """Parameters that learn at a rate, or with a weight decay, of their own."""

    match: str = setting(
        "",
        help="names that begin with these parts (frontend.encoder), or that fit the pattern where it holds * ? or [",
    )
    lr: float = setting(
        1.0,
        at_least=0,
        help="factor of the stage's rate; 0: they stay as they start, without gradients and moments",
    )
    weight_decay: float = setting(-1.0, at_least=-1, help="below 0: optimizer.weight_decay")


@dataclass
class OptimizerConfig:
    """AdamW, or Muon beside it, and the average of weights."""

    name: str = setting(
        "adamw",
        choices=("adamw", "muon"),
        help="muon: for matrices inside blocks; AdamW for everything else",
    )
    momentum: float = setting(0.95, at_least=0, at_most=BELOW_1, help="momentum of Muon")
    beta1: float = setting(0.9, at_least=0, at_most=BELOW_1, help="decay of the mean of gradients")
    beta2: float = setting(
        0.98,
        at_least=0,
        at_most=BELOW_1,
        help="decay of the mean of their squares",
    )
    eps: float = setting(1e-8, at_least=0, help="added to the root of the latter")
    weight_decay: float = setting(0.01, at_least=0, help="decoupled decay of weights")
    weight_decay_on: str = setting(
        "all",
        choices=("all", "matrices"),
        help="what decays; matrices: not biases, gains, embedding tables, learnt positions and tokens",
    )
    clip: float = setting(1.0, at_least=0, help="largest norm of the gradient; 0: no bound")
    lr_factor: float = setting(1.0, at_least=0, help="of the rates of all stages: what a front-end's own best rate is tuned by")
    warmup_steps: int = setting(
        100,
        at_least=0,
        help="steps of warm-up after the start of every stage",
    )
    ema: float = setting(
        0.99,
        at_least=0,
        at_most=1,
        help="decay of the average of weights per step",
    )
    groups: dict[str, ParameterGroupConfig] = group(dict)


@dataclass
class StageConfig:
    """A part of training: ``tokens`` tokens of ``mix`` at ``lr`` after warm-up, by ``schedule``."""

    tokens: int = setting(4_000_000, at_least=0, help="tokens of the stage; 0: it is left out")
    lr: float = setting(2e-3, at_least=0, help="rate after warm-up")
    train: str = setting(
        "all",
        choices=("all", "connector", "without_encoder"),
        help="connector: the paper's first stage, only what joins a pretrained encoder to the decoder; without_encoder: all "
        "but the pretrained encoder, for a decoder that starts from scratch. A front-end without connector trains "
        "everything in every stage, so budgets stay equal",
    )
    masking: bool = setting(False, help="its last part masks visual tokens")
    schedule: str = setting(
        "constant",
        choices=("constant", "cosine", "wsd"),
        help="of the rate, by the share of the stage's tokens; wsd: constant, then linear",
    )
    final_lr: float = setting(
        0.0,
        at_least=0,
        at_most=1,
        help="of cosine and wsd: the rate at the stage's end, as a share of lr",
    )
    cooldown: float = setting(
        0.2,
        at_least=1e-6,
        at_most=1,
        help="of wsd: the last share of the stage's tokens, in which the rate falls",
    )
    mix: dict[str, float] = setting(
        {},
        at_least=0,
        help="source name -> weight in documents, however long they are: the record says what that came to in tokens",
    )


@dataclass
class StartConfig:
    """Weights to start from instead of random ones (training/start.py)."""

    checkpoint: str = setting("", help="exported folder or official checkpoint; empty: none")
    allow_missing: list[str] = setting([], help="patterns (*) of weights it may lack")
    fork: str = setting(
        "",
        help="RUN or RUN@TOKENS: go on from another run's checkpoint, with its optimiser, averages and place in the data, under "
        "these settings; empty: none",
    )
    accept_changed_data: bool = setting(
        False,
        acts="never",
        changes="nothing",
        help="a run that was stopped goes on although its data changed since",
    )


@dataclass
class SamplingConfig:
    """How images are sampled, in evaluations along a run and of the trained model."""

    method: str = setting("heun", choices=("euler", "heun"), help="solver of the flow")
    steps: int = setting(20, at_least=1, help="steps of the solver")
    guidance: float = setting(2.0, at_least=0, help="1: no guidance")
    negative_prompt: str = setting(
        "",
        help="text of the branch that guidance starts from, of images and edits; empty: what no prompt gives",
    )
    edit_guidance: float = setting(
        0.0,
        at_least=0,
        help="guidance of edits, from the source with the negative prompt as its instruction (as the official models are "
        "sampled); 0: by guidance, from the negative prompt without the source: training drops no instructions, so a "
        "source without one is new to a model",
    )
    grid: str = setting(
        "steps",
        choices=("steps", "points"),
        help="what steps counts; points: the official Tuna's, one step less",
    )
    shift: float = setting(
        1.0,
        at_least=0.01,
        at_most=100,
        help="above 1 the grid is finer near the noise",
    )
    clamp: str = setting(
        "none",
        choices=("none", "official"),
        help="of 1 - t under an x-prediction; official: at least .05 (over 20 steps leave noise in every image)",
    )


@dataclass
class EvaluationConfig:
    """What is measured along a run."""

    points: int = setting(8, at_least=1, help="evaluations, at log-spaced token counts")
    first: float = setting(
        0.03,
        at_least=1e-6,
        at_most=1,
        help="share of the budget before the first evaluation",
    )
    levels: list[int] = setting([1, 3], at_least=1, at_most=3, help="scene difficulty levels")
    groups: int = setting(
        0,
        at_least=0,
        help="questions about scenes (pairs of questions for `pairs`) per benchmark and level; 0: none",
    )
    easy_vqa: int = setting(
        0,
        at_least=0,
        help="questions of easy-VQA's published test split; 0: none",
    )
    benchmarks: dict[str, BenchmarkConfig] = group(dict)
    asked: str = setting(
        "along",
        choices=("along", "later"),
        help="when `benchmarks` are asked: by the run at its points, or of the points that it keeps, by `tunalab evaluate RUN "
        "--points all --watch` elsewhere",
    )
    max_answer_tokens: int = setting(8, at_least=1, help="limit of an answer")
    loss_documents: int = setting(128, at_least=0, help="held-out documents per kind")
    loss_split: str = setting(
        "test",
        choices=("test", "train"),
        help="of these documents; train: scenes as in training, in documents that no run trains on, to choose settings by",
    )
    losses: dict[str, str] = setting(
        {},
        help="name -> a source as in a mix (manifest/KEY, webdataset/KEY), of documents that nothing trains on: their losses, as "
        "text/NAME and flow/NAME, beside those of scenes",
    )
    psnr_images: int = setting(
        64,
        at_least=0,
        help="images that are denoised: of scenes where a stage trains on them, else of the sources of `losses`",
    )
    psnr_times: list[float] = setting(
        [0.3, 0.6, 0.9],
        at_least=0,
        at_most=1,
        help="t they are denoised from",
    )
    sample_prompts: int = setting(16, at_least=0, help="images sampled as pictures, of prompts from the same documents")
    keep_points: str = setting(
        "none",
        choices=("all", "last", "none"),
        changes="nothing",
        help="averaged weights at the evaluations, in bfloat16 (points/TOKENS.safetensors): `tunalab evaluate RUN --points all "
        "--benchmarks NAME` asks a benchmark along the curve afterwards",
    )


@dataclass
class TrackingConfig:
    """Where a run reports to (MLflow)."""

    enabled: bool = setting(True, help="report to MLflow")
    uri: str = setting(
        "",
        help="store or server; empty: MLFLOW_TRACKING_URI, else sqlite:///mlflow.db",
    )
    system_metrics: bool = setting(True, help="load of CPU, memory, disk, network and GPUs")
    experiment: str = setting("tunalab", help="name in MLflow")
    parent_run: str = setting("", help="set by the sweep driver")
    sweep: str = setting("", help="set by the sweep driver")


@dataclass
class DistributionConfig:
    """How a run is spread over processes, which a launcher starts (torchrun, or srun in SLURM), one per GPU.

    None of it changes what is computed but for rounding. The number of processes does, for a step grows with it: unless
    data.step_tokens is set.
    """

    strategy: str = setting(
        "auto",
        choices=("auto", "none", "ddp", "fsdp2"),
        help="fsdp2: fully sharded; auto: none for one process, ddp for several",
    )
    devices: int = setting(
        0,
        at_least=0,
        changes="results",
        identity=False,
        help="processes per node; 0: as many as were started",
    )
    nodes: int = setting(
        0,
        at_least=0,
        changes="results",
        identity=False,
        help="0: as many as there are",
    )
    shard_size: int = setting(
        0,
        at_least=0,
        help="fsdp2: ranks that share one copy of the parameters; 0: all",
    )
    reshard: bool = setting(
        True,
        help="fsdp2: a block's gathered parameters are freed between its forward and its backward pass",
    )
    reduce_always: bool = setting(
        False,
        help="fsdp2: gradients are summed after every micro-batch, not the last: more traffic, less memory",
    )
    other_world: bool = setting(
        False,
        changes="results",
        identity=False,
        help="go on from a checkpoint of another number of processes (the rule: data/stream.py)",
    )


@dataclass
class RunConfig:
    """A run. The names of experiment and variant, and attention, have always been in the hash."""

    revision: int = setting(REVISION, help="revision of what settings compute; never set by hand")
    experiment: str = setting(
        "scenes",
        acts="never",
        changes="nothing",
        identity=True,
        help="the experiment file's name (--experiment)",
    )
    variant: str = setting(
        "tuna2",
        acts="never",
        changes="nothing",
        identity=True,
        help="the variant file's name (--variant)",
    )
    label: str = setting(
        "",
        acts="never",
        changes="nothing",
        help="what figures and tables call the variant; empty: what its front-end states",
    )
    colour: str = setting(
        "",
        acts="never",
        changes="nothing",
        help='of its lines, "#RRGGBB"; empty: what its front-end states, or one that is free',
    )
    seed: int = setting(0, at_least=0, at_most=SEED, help="seed of weights, data order and draws")
    components_seed: int = setting(
        0,
        at_least=0,
        at_most=SEED,
        help="which of the seeds of tiny components whose name gives none, counted around: of three encoders 4 is the second; "
        "${seed}: run seeds cross with components",
    )
    precision: str = setting(
        "auto",
        choices=("auto", "fp32", "bf16"),
        help="auto: bf16 on a GPU, fp32 on CPU",
    )
    threads: int = setting(1, at_least=1, changes="rounding", help="CPU threads of a run")
    attention: str = setting(
        "auto",
        choices=("auto", "document", "dense", "flex"),
        changes="rounding",
        identity=True,
        help="backend of attention; auto: flex on a GPU, document on CPU",
    )
    checkpoint_seconds: float = setting(
        120.0,
        at_least=0,
        acts="never",
        changes="nothing",
        help="seconds between checkpoints",
    )
    keep_checkpoints: int = setting(
        2,
        at_least=1,
        acts="never",
        changes="nothing",
        help="checkpoints that are kept",
    )
    checkpoint_keep: list[int] = setting(
        [],
        at_least=1,
        acts="never",
        changes="nothing",
        help="tokens: the checkpoint at the end of the step that reaches each is written and stays, beside the newest ones",
    )
    activation_checkpointing: bool = setting(
        False,
        changes="rounding",
        help="blocks of decoder, head and encoder are recomputed in the backward pass: less memory",
    )
    compile_blocks: bool = setting(
        False,
        changes="rounding",
        help="torch makes kernels for the blocks: faster on a GPU, after some minutes; equal but for rounding",
    )
    fused_text_loss: bool = setting(
        False,
        changes="rounding",
        help="the text loss by Liger's kernels (extra gpu, needs a CUDA device): no logits are computed twice",
    )
    distribution: DistributionConfig = group(DistributionConfig, changes="rounding")
    data: DataConfig = group(DataConfig)
    frontend: FrontEndConfig = group(FrontEndConfig)
    decoder: DecoderConfig = group(DecoderConfig)
    head: FlowHeadConfig = group(FlowHeadConfig)
    objective: ObjectiveConfig = group(ObjectiveConfig)
    optimizer: OptimizerConfig = group(OptimizerConfig)
    start: StartConfig = group(StartConfig)
    stages: dict[str, StageConfig] = group(dict, acts="stage")  # in order; the experiment file names them
    sampling: SamplingConfig = group(SamplingConfig, acts="never")
    evaluation: EvaluationConfig = group(EvaluationConfig, acts="never")
    tracking: TrackingConfig = group(TrackingConfig, acts="never", changes="nothing")


SETTINGS = settings_of(RunConfig)
