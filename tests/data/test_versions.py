"""A version changes with what a source gives, and with nothing else."""

from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

from tunalab.data.changes import data_versions
from tunalab.data.documents import Corpus, Document
from tunalab.settings.schema import DataConfig, ManifestConfig


class Named:
    """A corpus of files whose fingerprint is given; None: it has none."""

    length = 1

    def __init__(self, name: str, fingerprint: str | None = None) -> None:
        self.name = name
        if fingerprint is not None:
            self.fingerprint = fingerprint

    def document(self, index: int) -> Document:
        raise AssertionError("a version is found without reading a document")


def test_each_kind_of_source_has_a_version_of_its_own(tmp_path: Path) -> None:
    manifest = tmp_path / "mine.jsonl"
    manifest.write_text('{"image": "a.png", "caption": "a"}\n')
    data = DataConfig(manifests={"mine": ManifestConfig(path=str(manifest))})
    names = ["scenes/vqa", "copy/scenes/vqa", "easy_vqa/vqa", "manifest/mine", "copy/manifest/mine"]
    sources: dict[str, Corpus] = {name: Named(name) for name in names} | {"text/books": Named("text/books", "abc")}
    first = data_versions(sources, data, revision=2)
    assert first["text/books"] == "abc" and first["easy_vqa/vqa"] == version("easy-vqa")
    assert first["manifest/mine"] == first["copy/manifest/mine"] != first["scenes/vqa"] == first["copy/scenes/vqa"]
    assert all(0 < len(text) <= 36 for text in first.values())  # as long as MLflow takes
    assert data_versions(sources, replace(data, rows=9), revision=2) == first

    manifest.write_text('{"image": "a.png", "caption": "b"}\n')
    changed = data_versions(sources, replace(data, levels=[1.0, 0.0, 0.0]), revision=2)
    assert {name for name in first if changed[name] != first[name]} == set(names) - {"easy_vqa/vqa"}
    assert data_versions(sources, data, revision=3)["scenes/vqa"] != first["scenes/vqa"]
