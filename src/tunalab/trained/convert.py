"""`tunalab convert`: an official checkpoint as a folder of ours, and a model of ours as an official checkpoint."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from accelerate import init_empty_weights
from huggingface_hub import save_torch_state_dict
from safetensors.torch import save_file
from torch import Tensor

from tunalab.errors import UserError
from tunalab.files import whole_file
from tunalab.frontends.loading import read_all
from tunalab.model.unified import build_model
from tunalab.official.layout import (
    MODELS,
    detect,
    official_config,
    open_tensors,
    setting,
    shorten,
    target_layout,
    without_prefix,
    without_vae,
)
from tunalab.official.weights import MASK_TOKEN, architecture_config, initial_weights, to_official, to_ours
from tunalab.redaction import redacted
from tunalab.settings.schema import StartConfig
from tunalab.trained.folder import MAX_SHARD, RunParts, check_tokenizer, learnt_state, stored_once, write_export
from tunalab.trained.model import load_weights
from tunalab.training.checkpoints import write_whole

PICKLED = ".pt"


def convert_to_tunalab(
    source: Path,
    folder: Path,
    experiment: Path | None,
    variant: Path | None,
    settings: Sequence[str],
    report: Callable[[str], None] = print,
) -> None:
    """Write the official checkpoint ``source`` into ``folder``, in the layout of an export.

    Sizes are those of the shapes; experiment, variant and settings give the rest, and must not contradict them. What the settings
    ``start.allow_missing`` let the checkpoint lack, and a mask token, start from scratch. ``report`` gets
    lines on the model and on what was left out or initialised.

    Raises UserError, one line: not a checkpoint, no official layout, names missing or unexpected, sizes that contradict.
    """
    tensors, frozen = without_vae(without_prefix(open_tensors(source)))
    official = detect(tensors)
    report(f"{source}: official {official.name}, {len(tensors)} tensors")
    config = official_config(tensors, official, experiment, variant, settings)
    parts = RunParts(config.components_seed)
    parts.prepare(config)
    vocabulary = config.decoder.vocabulary
    tokenizer = parts.own_tokenizer(config.decoder)
    if tokenizer is None:
        report("no tokenizer: give decoder.tokenizer=FOLDER for a folder that can be used, not only trained from")
    else:
        check_tokenizer(tokenizer, vocabulary, f"decoder.tokenizer={config.decoder.tokenizer or config.decoder.pretrained}")
    with init_empty_weights(include_buffers=False):
        model = build_model(architecture_config(config), parts, vocabulary)
    converted = to_ours(
        tensors, learnt_state(model), config.decoder.tie_embeddings, config.start.allow_missing, f"checkpoint {source}"
    )
    report(f"all {len(tensors)} names mapped to {len(converted.weights)} of ours")
    if frozen:
        report(f"left out: {len(frozen)} tensors of the frozen VAE, which comes from frontend.vae={redacted(config.frontend.vae)}")
    if converted.missing:
        report(f"not in the checkpoint, started from scratch: {', '.join(converted.missing)}")
    learnt = read_all(converted.weights)
    dtype = learnt["decoder.model.embed_tokens.weight"].dtype
    started = {name: weight().to(dtype) for name, weight in initial_weights(config, parts, vocabulary, converted.missing).items()}
    # What the folder holds is complete: whoever trains from it has nothing to allow.
    config = replace(config, start=StartConfig())
    origin = {"checkpoint": source.name, "weights": "official", "model": official.name}
    about = replace(parts.about(config, model, origin), initialised=converted.missing)
    weights = stored_once(config, {**learnt, **started})
    write_export(folder, about, config, weights, tokenizer, parts, model.frontend)
    report(f"wrote {folder}")


def convert_to_official(source: Path, target: Path, report: Callable[[str], None] = print) -> None:
    """Write the model of an exported folder or a run (its averaged weights) in the official layout.

    ``target``: a `.pt` or `.safetensors` file, or a folder of safetensors. What the folder only has because it was started from
    scratch, and a mask token where the official model has none, is left out, and reported.

    Raises UserError: ``target`` is there, the model differs from every official one, or some of its names have no place there.
    """
    if target.exists():
        raise UserError(f"{target} is there already: choose another name, or remove it")
    config, weights, initialised = load_weights(source)
    official = next((model for model in MODELS if model.frontend == config.frontend.name), None)
    if official is None:
        names = ", ".join(model.frontend for model in MODELS)
        raise UserError(f"frontend.name={config.frontend.name} has no official layout (choices: {names})")
    wrong = [
        f"{key}={value} there, {found} here"
        for key, value in {**official.computes, "objective.target_layout": target_layout(config.frontend.patch)}.items()
        if (found := setting(config, key)) != value
    ]
    if wrong:
        raise UserError(f"{source} would compute something else as official {official.name}: {'; '.join(wrong)}")
    left_out = sorted({*initialised, *([] if official.masks else [MASK_TOKEN])} & weights.keys())
    kept = {name: tensor for name, tensor in weights.items() if name not in left_out}
    tensors = to_official(kept, config.decoder.tie_embeddings)
    if left_out:
        report(f"left out, as it was never in an official {official.name}: {shorten(left_out)}")
    write_official(target, tensors)
    report(f"wrote {target}: official {official.name}, {len(tensors)} tensors")


def write_official(target: Path, tensors: dict[str, Tensor]) -> None:
    """A `.pt`, a `.safetensors`, or a folder of shards with their index; whole or not there."""
    if target.suffix not in (PICKLED, ".safetensors"):
        write_whole(target, lambda fresh: save_torch_state_dict(tensors, fresh, max_shard_size=MAX_SHARD), {"layout": "official"})
        return
    with whole_file(target) as temporary:
        if target.suffix == PICKLED:
            torch.save(tensors, temporary)
        else:
            # Two names of one tensor are stored once: whoever reads a tied model ties it.
            distinct = {tensor.data_ptr(): name for name, tensor in reversed(tensors.items())}
            save_file({name: tensors[name].contiguous() for name in distinct.values()}, temporary)
