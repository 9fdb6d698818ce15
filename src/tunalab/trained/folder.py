"""The layout of an exported folder: whole or not there, and every file of it known by its hash.

- model.safetensors: learnt weights by our names (above 5 GB shards, and model.safetensors.index.json)
- config.yaml: the configuration
- tokenizer/: as transformers saves it, with the names of the image tokens
- frozen/vae/: the frozen VAE, where the front-end has one
- encoder/config.json: the encoder's architecture, where its name alone does not say it
- manifest.json: where it all comes from, and the size and hash of every other file
"""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from huggingface_hub import save_torch_state_dict
from omegaconf import OmegaConf
from torch import Tensor

from tunalab.data.tokenizer import Tokenizer
from tunalab.errors import UserError
from tunalab.frontends.loading import read_json
from tunalab.official.files import INDEX, read_tensors
from tunalab.records.record import CONFIG_FILE
from tunalab.redaction import redacted_settings
from tunalab.settings.schema import RunConfig, to_plain
from tunalab.training.checkpoints import MANIFEST, damage, write_whole

TOKENIZER, WEIGHTS = "tokenizer", "model.safetensors"
FORMAT = 1
MAX_SHARD = "5GB"


@dataclass(frozen=True)
class About:
    """What the manifest says besides the files.

    ``origin``: the run or the checkpoint that the weights come from, which of them they are, and how far it was.
    ``vocabulary``: rows of the embedding table. ``components``: settings of the tiny parts, by which their architecture is built.
    ``frozen``: of each frozen part the name it has in the configuration and, where there is one, the hash of its files there.
    ``initialised``: weights that were not in the checkpoint and start from scratch.
    """

    origin: dict[str, Any]
    vocabulary: int
    components: dict[str, Any]
    frozen: dict[str, Any]
    initialised: list[str]
    format: int = FORMAT


def write_export(
    folder: Path,
    about: About,
    config: RunConfig,
    weights: Mapping[str, Tensor],
    tokenizer: Tokenizer | None,
    write_parts: Callable[[Path], None],
    max_shard: str = MAX_SHARD,
) -> None:
    """Write ``folder``, whole or not at all. ``write_parts`` puts what else belongs there under the path it is given.

    Raises UserError when something is there already: an export is never written over.
    """
    if folder.exists():
        raise UserError(f"{folder} is there already: choose another folder, or remove it")
    folder.parent.mkdir(parents=True, exist_ok=True)

    def write(fresh: Path) -> None:
        save_torch_state_dict(dict(weights), fresh, max_shard_size=max_shard)
        (fresh / CONFIG_FILE).write_text(OmegaConf.to_yaml(OmegaConf.create(to_plain(config))), encoding="utf-8")
        if tokenizer is not None:
            (fresh / TOKENIZER).mkdir()
            tokenizer.save(fresh / TOKENIZER)
        write_parts(fresh)

    write_whole(folder, write, {"tunalab": redacted_settings(asdict(about))})


def check_tokenizer(tokenizer: Tokenizer, vocabulary: int, what: str) -> None:
    """Raises UserError when a tokenizer has more ids than the embedding table has rows."""
    if tokenizer.vocabulary > vocabulary:
        raise UserError(
            f"{what}: the tokenizer has {tokenizer.vocabulary} ids, the model's table {vocabulary}: not the model's own"
        )


def read_about(folder: Path) -> About:
    """The manifest of an undamaged export.

    Raises UserError: no export there, another format, a file missing, truncated or altered.
    """
    if not (folder / MANIFEST).is_file():
        raise UserError(f"{folder} is not an exported folder ({MANIFEST} is missing)")
    problem = damage(folder)
    if problem is not None:
        raise UserError(f"export {folder} is damaged: {problem}")
    plain = read_json(folder / MANIFEST, f"export {folder}").get("tunalab")
    if not isinstance(plain, dict) or plain.get("format") != FORMAT:
        raise UserError(f"{folder} is not an exported folder of format {FORMAT} (its {MANIFEST} says otherwise)")
    expected = {field.name for field in fields(About)}
    if plain.keys() != expected:
        raise UserError(f"export {folder} is damaged: {MANIFEST} differs in {', '.join(sorted(plain.keys() ^ expected))}")
    return About(**plain)


def read_weights(folder: Path) -> dict[str, Tensor]:
    """The learnt weights, by our names, of an export that :func:`read_about` found undamaged."""
    listed = read_json(folder / MANIFEST, f"export {folder}")["files"]
    name = f"model{INDEX}" if f"model{INDEX}" in listed else WEIGHTS
    return read_tensors(folder / name)
