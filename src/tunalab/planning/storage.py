"""Bytes that a run leaves on the disk, and bytes of pretrained weights that it fetches."""

from dataclasses import dataclass

from tunalab.config import RunConfig
from tunalab.data.scenes import BENCHMARKS
from tunalab.frontends.components.handle import TINY
from tunalab.planning.memory import FLOAT, HALF
from tunalab.planning.parameters import FRONT_END, Count, Totals
from tunalab.redaction import redacted

STATES = 4  # of every trained parameter, in float32: itself, its average over training, AdamW's two moments
# A benchmark at a point of a record, without its outcomes (a hexadecimal digit for four questions); a caption in a picture.
SCORE_BYTES, CAPTION_BYTES = 280, 4000


@dataclass(frozen=True)
class Storage:
    """``checkpoint``: one; ``checkpoints``: those that are kept and the next, which is written before the oldest goes;
    ``samples``: at most, pictures of the run's own prompts hardly compress where they are photographs.
    """

    checkpoint: int
    checkpoints: int
    record: int
    samples: int

    @property
    def total(self) -> int:
        return self.checkpoints + self.record + self.samples


def storage(config: RunConfig, count: Totals) -> Storage:
    """Of one run, at its fullest."""
    evaluation, data = config.evaluation, config.data
    checkpoint = STATES * FLOAT * count.trained
    questions = [evaluation.groups] * (len(BENCHMARKS) * len(evaluation.levels) if evaluation.groups else 0)
    questions += [evaluation.easy_vqa] if evaluation.easy_vqa else []
    record = evaluation.points * sum(SCORE_BYTES + n // 4 for n in questions)
    pictures = evaluation.points * evaluation.sample_prompts * (3 * data.image_size**2 + CAPTION_BYTES)
    return Storage(checkpoint, (config.keep_checkpoints + 1) * checkpoint, record, pictures)


def downloads(config: RunConfig, parameters: dict[str, Count]) -> dict[str, int]:
    """Name -> bytes of the pretrained parts that come from the Hub or a folder: the decoder as published in bfloat16, encoder and
    VAE in float32. Parts of an encoder that the model drops, and tokenizers, are not counted.
    """
    found: dict[str, int] = {}

    def add(name: str, starts: str, width: int) -> None:
        held = [count for part, count in parameters.items() if part.startswith(starts)]
        found[redacted(name)] = width * sum(count.trained + count.frozen for count in held)

    if config.decoder.pretrained:
        add(config.decoder.pretrained, "decoder: ", HALF)
    if config.frontend.encoder not in ("", TINY) and config.frontend.encoder_pretrained:
        add(config.frontend.encoder, f"{FRONT_END}encoder", FLOAT)
    if config.frontend.vae not in ("", TINY):
        add(config.frontend.vae, f"{FRONT_END}vae", FLOAT)
    return found
