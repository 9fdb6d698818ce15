"""Building what is missing of the components: `tunalab components`."""

import importlib.metadata
import json
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout

from tunalab import terminal
from tunalab.frontends.components import siglip, tokenizer, vae
from tunalab.frontends.components.settings import ComponentSettings
from tunalab.frontends.components.store import (
    NAMES,
    Components,
    components_root,
    folder_of,
    is_built,
    load_component,
    verify,
    write_component,
)
from tunalab.frontends.components.training import CaptionSource, Progress, TextSource

# Sums are split over threads, so another number of them gives other weights.
THREADS = 2
VERSIONS = ("torch", "timm", "diffusers", "open_clip_torch", "transformers", "tokenizers")


def build_components(
    settings: ComponentSettings | None = None,
    log: Callable[[str], None] = print,
    root: Path | None = None,
    captions: CaptionSource | None = None,
    texts: TextSource | None = None,
    names: Sequence[str] = NAMES,
) -> Components:
    """Train and store every component of ``names`` that is not there yet; return the handle to all.

    ``captions`` and ``texts`` default to the scenes corpus. Processes that build at once wait for each other, and the
    later ones find the work done. A stopped build leaves nothing behind that would be taken for a component.
    Raises UserError when a component that is there is damaged.
    """
    settings, root = settings or ComponentSettings(), root or components_root()
    root.mkdir(parents=True, exist_ok=True)
    if captions is None or texts is None:
        from tunalab.data import scenes

        captions, texts = captions or scenes.caption_examples, texts or scenes.text_sample
    for number, name in enumerate(names, start=1):
        config = getattr(settings, name)
        folder = folder_of(root, name, config)
        if not is_built(folder):
            lock = FileLock(root / f".{folder.name}.lock")
            try:
                lock.acquire(timeout=0)
            except Timeout:
                log(f"component {name}: another process is building it; waiting")
                lock.acquire()
            try:
                if not is_built(folder):
                    log(f"component {name} ({number} of {len(names)}): building {folder}")
                    with fixed_threads(THREADS):
                        _build(name, settings, root, captions, texts)
            finally:
                lock.release()
        verify(folder, name)
        quality = json.loads((folder / "quality.json").read_text(encoding="utf-8"))
        log(f"component {name}: {folder}  " + "  ".join(f"{k}={v}" for k, v in quality.items() if k != "versions"))
    return Components(settings, root)


def _build(name: str, settings: ComponentSettings, root: Path, captions: CaptionSource, texts: TextSource) -> None:
    config = getattr(settings, name)
    progress = progress_bar(name, getattr(config, "steps", 0))
    started = time.perf_counter()
    save: Callable[[Path], None]
    if name == "tokenizer":
        trained, quality = tokenizer.build_tokenizer(config, texts)
        save = trained.save
    elif name == "vae":
        codec, quality = vae.train_vae(config, captions, progress)
        save = lambda folder: vae.save_vae(folder, codec)  # noqa: E731
    else:
        words = load_component("tokenizer", settings, root)
        encoder, quality = siglip.train_encoder(config, words, captions, progress)
        save = lambda folder: siglip.save_encoder(folder, encoder)  # noqa: E731
    record = {
        **quality,
        "seconds": round(time.perf_counter() - started, 1),
        "versions": {package: importlib.metadata.version(package) for package in VERSIONS},
    }

    def write(folder: Path) -> None:
        save(folder)
        (folder / "quality.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")

    write_component(folder_of(root, name, config), config, write)


@contextmanager
def fixed_threads(count: int) -> Iterator[None]:
    """torch computes with ``count`` threads inside, with as many as before afterwards."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def progress_bar(name: str, steps: int) -> Progress:
    """A bar with the time left, on stderr."""

    def bar(items: Iterable[Any]) -> Iterable[Any]:
        return terminal.progress_bar(items, total=steps, desc=f"component {name}", unit="step", mininterval=1.0, leave=True)

    return bar
