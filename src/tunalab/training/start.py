"""Starting a run from weights: those of an exported or converted folder, or of an official checkpoint as it was released."""

from collections.abc import Callable
from pathlib import Path

from torch import Tensor

from tunalab.config import RunConfig
from tunalab.errors import UserError
from tunalab.frontends.components.handle import Components
from tunalab.frontends.components.settings import ComponentSettings
from tunalab.frontends.contract import VisualFrontEnd
from tunalab.model.unified import UnifiedModel
from tunalab.official.configuration import refuse_contradictions
from tunalab.official.conversion import Converted, match_ours, to_ours
from tunalab.official.files import read_tensors, without_prefix
from tunalab.official.initial import initial_weights
from tunalab.official.layout import detect, told_by_shapes, without_vae
from tunalab.redaction import redacted
from tunalab.training.checkpoints import MANIFEST, damage
from tunalab.training.meaning import refuse_other_meaning


def load_start(model: UnifiedModel, config: RunConfig, say: Callable[[str], None] = print) -> None:
    """Copy the weights that ``config.start`` names into a model as :func:`build_model` made it; without a name nothing happens.

    What the checkpoint may lack (``allow_missing``) starts from scratch, also where the run's own parts are pretrained, and ``say``
    is told which it is.

    Raises UserError, one line: damaged or unknown checkpoint, names missing or unexpected; shapes, settings, frozen parts or a
    tokenizer that contradict.
    """
    if not config.start.checkpoint:
        return
    path = Path(config.start.checkpoint)
    frozen = tuple(f"frontend.{part}." for part in model.frontend.frozen_parts)
    state = model.state_dict()
    own = {name: tensor for name, tensor in state.items() if not name.startswith(frozen)}
    components = Components(ComponentSettings.seeded(config.components_seed))
    if (path / MANIFEST).is_file():
        converted = _ours(path, config, own, components, model.frontend)
    else:
        converted = _official(path, config, own)
    drawn = initial_weights(config, components, model.decoder.config.vocab_size, converted.missing)
    model.load_state_dict({**state, **converted.weights, **drawn})
    say(f"started from {redacted(str(path))}: {len(converted.weights)} weights")
    if converted.missing:
        say(f"not in the checkpoint, started from scratch: {', '.join(converted.missing)}")


def _ours(path: Path, config: RunConfig, own: dict[str, Tensor], components: Components, frontend: VisualFrontEnd) -> Converted:
    problem = damage(path)
    if problem is not None:
        raise UserError(f"start.checkpoint={path} is damaged: {problem}")
    refuse_other_meaning(path, config, components, frontend)
    return match_ours(
        read_tensors(path), own, config.decoder.tie_embeddings, config.start.allow_missing, f"start.checkpoint={path}"
    )


def _official(path: Path, config: RunConfig, own: dict[str, Tensor]) -> Converted:
    tensors, _ = without_vae(without_prefix(read_tensors(path)))
    official = detect(tensors)
    refuse_contradictions({**told_by_shapes(tensors, official, config.decoder.heads), **official.computes}, config)
    return to_ours(tensors, own, config.decoder.tie_embeddings, config.start.allow_missing, f"start.checkpoint={path}")
