"""What variants and benchmarks are called and coloured, the same in every figure and table."""

from collections.abc import Iterable

# Names of the figures that exist; analysis/figures/draw.py draws them. Here, because checking a sweep file needs no matplotlib.
FIGURE_NAMES = ("figure6", "curves", "mask_ratio", "effects")

MASK_RATIO = "objective.masking.ratio"

PAPERS = {"tuna": "Tuna", "tuna_r": "Tuna-R", "tuna2": "Tuna-2"}
VARIANTS = PAPERS | {"vae_latents": "VAE latents, no encoder", "bottleneck": "Tuna-2, bottleneck"}

# Okabe and Ito's palette: told apart with every common colour blindness, and in grey.
_COLOURS = {"tuna": "#0072B2", "tuna_r": "#D55E00", "tuna2": "#009E73"}
_SPARE = ("#CC79A7", "#E69F00", "#56B4E9", "#8C564B", "#4D4D4D")


def benchmark_label(name: str) -> str:
    """``count (CountBench)``, ``count, level 3 (CountBench)``; a benchmark without a counterpart keeps its name."""
    kind, _, level = name.partition("@")
    published = _published()
    label = f"{kind}, level {level}" if level else kind
    return f"{label} ({published[kind]})" if kind in published else label


def _published() -> dict[str, str]:
    from tunalab.data.scenes.vocabulary import BENCHMARKS

    return BENCHMARKS


def variant_label(name: str) -> str:
    """The published spelling, or the name of the variant's file."""
    return VARIANTS.get(name, name)


def last_words(keys: Iterable[str]) -> dict[str, str]:
    """The last word of each key, or the whole key where two of them end in the same word."""
    last = {key: key.rsplit(".", 1)[-1] for key in keys}
    return {key: word if list(last.values()).count(word) == 1 else key for key, word in last.items()}


def key_labels(keys: Iterable[str]) -> dict[str, str]:
    """What settings are called in figures and tables."""
    return {key: "mask ratio" if key == MASK_RATIO else word for key, word in last_words(keys).items()}


def value_label(value: object) -> str:
    """A setting's value, numbers as short as they can be without becoming another number."""
    if isinstance(value, float):
        short = f"{value:g}"
        return short if float(short) == value else repr(value)
    return "none" if value is None else str(value)


def ordered_variants(names: Iterable[str]) -> list[str]:
    """The paper's variants in its order, then ours, then others by name."""
    present = set(names)
    return [name for name in VARIANTS if name in present] + sorted(present - set(VARIANTS))


def ordered_benchmarks(names: Iterable[str]) -> list[str]:
    """Benchmarks with a published counterpart in a fixed order, then others by name, then the same at higher levels."""
    kinds = list(_published())

    def place(name: str) -> tuple[str, int, str]:
        kind, _, level = name.partition("@")
        return level, kinds.index(kind) if kind in kinds else len(kinds), name

    return sorted(set(names), key=place)


def colours(names: Iterable[str]) -> dict[str, str]:
    """A colour per variant. The published three never change theirs, whatever else is in the picture."""
    others = [name for name in ordered_variants(names) if name not in _COLOURS]
    return _COLOURS | {name: _SPARE[index % len(_SPARE)] for index, name in enumerate(others)}
