"""Which data a run reads, in a form that can be compared: a text a source that changes with what the source gives."""

import hashlib
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path

from tunalab.config import DataConfig, digest
from tunalab.data.copies import PREFIX
from tunalab.data.documents import Corpus, fingerprint_of


def data_versions(sources: Mapping[str, Corpus], data: DataConfig, revision: int) -> dict[str, str]:
    """Source name -> version: of shards their sizes, of a manifest its hash, of easy-VQA the package, of scenes what draws them."""
    versions: dict[str, str] = {}
    for name, corpus in sources.items():
        known = fingerprint_of(corpus)
        if known is not None:
            versions[name] = known
            continue
        family, _, key = name.removeprefix(PREFIX).partition("/")
        if family == "manifest":
            with Path(data.manifests[key].path).open("rb") as stream:
                versions[name] = hashlib.file_digest(stream, "sha256").hexdigest()[:32]
        elif family == "easy_vqa":
            versions[name] = version("easy-vqa")
        else:
            versions[name] = f"{revision}-{digest([data.image_size, data.levels, data.questions_per_image])}"
    return versions
