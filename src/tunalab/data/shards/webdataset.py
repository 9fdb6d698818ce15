"""WebDataset shards of images with captions."""

from collections.abc import Callable

import numpy as np

from tunalab.config import WebDatasetConfig
from tunalab.data.assembling import caption_document
from tunalab.data.documents import Document, Reject
from tunalab.data.lines import parse_line
from tunalab.data.shards.corpus import Sample, ShardedCorpus, Visit
from tunalab.data.shards.files import find_files
from tunalab.data.shards.tar import RULE, tar_reader

Decode = Callable[[bytes, str], np.ndarray]  # an encoded image and its name -> pixels_HWC

IMAGE_ENDINGS = ("jpg", "jpeg", "png", "webp")


def open_webdataset(name: str, config: WebDatasetConfig, decode: Decode, caption_prompt: str, seed: int) -> ShardedCorpus:
    """Each sample has one image and a caption: a member of text, or a key of a JSON member.

    Raises:
        UserError: a shard is missing or damaged.
    """

    def make(sample: Sample, visit: Visit) -> Document:
        images = [ending for ending in IMAGE_ENDINGS if ending in sample]
        if len(images) != 1:
            raise Reject(f"{len(images)} images: one of {', '.join(IMAGE_ENDINGS)} is needed; members: {_endings(sample)}{RULE}")
        ending = images[0]
        caption = _caption(sample, config)
        return caption_document(
            config.kind, caption, caption_prompt, lambda: decode(sample[ending], f"{sample['__key__']}.{ending}")
        )

    return ShardedCorpus(name, tar_reader(name, find_files(config.urls, name)), make, config, seed)


def _caption(sample: Sample, config: WebDatasetConfig) -> object:
    data = sample.get(config.caption.lower())
    if data is None:
        raise Reject(f"no member .{config.caption}; members: {_endings(sample)}{RULE}")
    if config.caption.lower().rpartition(".")[2] == "json":
        known = parse_line(data)
        if config.caption_key not in known:
            raise Reject(f"no key {config.caption_key!r} in .{config.caption}; keys: {', '.join(sorted(known))}")
        return known[config.caption_key]
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise Reject(f".{config.caption} is not UTF-8: byte {error.start}") from error


def _endings(sample: Sample) -> str:
    return ", ".join(sorted(ending for ending in sample if ending != "__key__")) or "none"
