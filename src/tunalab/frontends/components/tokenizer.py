"""The tiny tokenizer as a component: trained on texts of the corpus."""

from dataclasses import dataclass
from typing import Any

from tunalab.data.scenes.vocabulary import CORPUS_VERSION
from tunalab.data.tokenizer import Tokenizer, train_tokenizer
from tunalab.frontends.components.training import TextSource

HELD_OUT_SEED = 13


@dataclass(frozen=True)
class TokenizerConfig:
    seed: int = 0
    vocabulary: int = 512
    texts: int = 20000
    corpus: int = CORPUS_VERSION


def build_tokenizer(config: TokenizerConfig, texts: TextSource) -> tuple[Tokenizer, dict[str, Any]]:
    """The tokenizer, and how many tokens a lower-case word of further texts takes."""
    tokenizer = train_tokenizer(texts(config.seed, config.texts), config.vocabulary)
    sample = texts(HELD_OUT_SEED, 1000)
    words = [word for text in sample for word in text.split() if word.isalpha() and word.islower()]
    pieces = sum(len(tokenizer.encode(word)) for word in words)
    return tokenizer, {
        "tokens_per_word": round(pieces / max(1, len(words)), 4),
        "tokens_per_text": round(sum(len(tokenizer.encode(text)) for text in sample) / max(1, len(sample)), 2),
        "n": len(sample),
        "split": "components",
    }
