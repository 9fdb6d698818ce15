"""Which components there are, and with which settings."""

from dataclasses import dataclass, field, replace

from tunalab.frontends.components.siglip import EncoderConfig
from tunalab.frontends.components.tokenizer import TokenizerConfig
from tunalab.frontends.components.vae import VaeConfig


@dataclass(frozen=True)
class ComponentSettings:
    """The tiny tokenizer, VAE and encoder of micro scale, in the order they are built."""

    tokenizer: TokenizerConfig = field(default_factory=TokenizerConfig)
    vae: VaeConfig = field(default_factory=VaeConfig)
    encoder: EncoderConfig = field(default_factory=EncoderConfig)

    @staticmethod
    def seeded(seed: int) -> "ComponentSettings":
        """The default components trained from another seed. The tokenizer stays: vocabularies must not differ by seed."""
        return ComponentSettings(vae=VaeConfig(seed=seed), encoder=EncoderConfig(seed=seed))

    def __post_init__(self) -> None:
        # The text tower reads what the tokenizer writes.
        object.__setattr__(self, "encoder", replace(self.encoder, tokenizer=self.tokenizer))
