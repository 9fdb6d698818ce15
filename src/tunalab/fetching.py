"""`tunalab fetch`: everything that an experiment takes from the Hub, into a folder that a node without network reads.

The folder is the Hub's own cache (DIR/hub): every library reads it where HF_HUB_CACHE names it, and HF_HUB_OFFLINE lets none of
them ask anybody. Published benchmarks, which are read as plain folders, lie in DIR/benchmarks. The Hub's client downloads; here
each file's digest is compared with the one that the Hub states, once: `fetched.jsonl` remembers which were right. What a call that
was ended has left to do, the next one does, file by file.

Each repository is read at one commit, whatever is pushed to it meanwhile, and is there for a reader when all of it is. What an
earlier call brought of another commit is brought of this one too.
"""

import hashlib
import json
import re
import shutil
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from braceexpand import braceexpand
from httpx2 import HTTPError
from huggingface_hub import HfApi, constants, hf_hub_download
from huggingface_hub.errors import HfHubHTTPError
from huggingface_hub.file_download import repo_folder_name
from huggingface_hub.hf_api import RepoFile

from tunalab.data.pretrained import LOAD_ERRORS, hub_answers, locate
from tunalab.data.shards.fetched import HF, repository
from tunalab.data.shards.files import find_files, shown
from tunalab.data.sources import shard_sources
from tunalab.errors import UserError, one_line
from tunalab.evaluation.published import BENCHMARKS
from tunalab.files import append_line, appended_lines, lock, write_atomically
from tunalab.frontends.components.store import TINY, Components
from tunalab.frontends.encoder import HUB, TIMM, TRANSFORMERS, timm_repository
from tunalab.settings.schema import RunConfig
from tunalab.terminal import progress_bar

CACHE, BOOK, LOCK = "hub", "fetched.jsonl", ".fetching"
TEXTS = (".json", ".txt", ".model", ".tiktoken", ".jinja")  # beside weights: configurations and tokenizers
WEIGHTS = (".safetensors", ".bin")  # the first that there are
_GLOB = re.compile(r"[*?\[]")


@dataclass(frozen=True)
class Part:
    """What one setting names on the Hub. ``folder``: of the repository; ``paths``: these files of it alone, else a model's.

    ``into``: a folder of its own beside the cache.
    """

    what: str
    kind: str
    name: str
    folder: str = ""
    revision: str | None = None
    paths: tuple[str, ...] = ()
    every: bool = False
    into: str = ""
    commit: str = ""

    @property
    def cache(self) -> str:
        """Its folder in the Hub's cache."""
        return repo_folder_name(repo_id=self.name, repo_type=self.kind)


@dataclass
class Fetched:
    """``files``, ``size``: of all parts, those that were there already included; ``variables``: for a process that reads the
    folder; ``settings``: to give a run; ``left``: what the experiment needs and is not on the Hub.
    """

    folder: Path
    files: int = 0
    size: int = 0
    variables: dict[str, str] = field(default_factory=dict)
    settings: list[str] = field(default_factory=list)
    left: list[str] = field(default_factory=list)


def fetch(configs: Sequence[RunConfig], folder: Path, limit: int | None = None, benchmarks: Sequence[str] = ()) -> Fetched:
    """``limit``: the first so many shards of every address; ``benchmarks``: published ones beside those that the experiment asks.
    Called again, it goes on.

    Raises UserError, one line: the Hub is out of reach or refuses, the folder cannot be written or is too small, an address matches
    nothing, a file is not what the Hub says.
    """
    if limit is not None and limit < 1:
        raise UserError(f"--limit {limit} is out of range (from 1)")
    unknown = [name for name in benchmarks if name not in BENCHMARKS]
    if unknown:
        raise UserError(f"--benchmarks {unknown[0]} is not known (choices: all, {', '.join(BENCHMARKS)})")
    if constants.HF_HUB_OFFLINE:
        raise UserError("HF_HUB_OFFLINE is set: fetching needs the Hub")
    folder = folder.absolute()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        held = (folder / LOCK).open("w", encoding="utf-8")
    except OSError as error:
        raise UserError(f"--to {folder} cannot be written: {error.strerror or error}") from error
    with held:
        if not lock(held, wait=False):
            raise UserError(f"--to {folder}: another `tunalab fetch` is writing there")
        return _fetch(configs, folder, limit, benchmarks)


def _fetch(configs: Sequence[RunConfig], folder: Path, limit: int | None, benchmarks: Sequence[str]) -> Fetched:
    if not hub_answers():
        raise UserError(f"the Hub cannot be reached ({constants.ENDPOINT})")
    done = Fetched(folder)
    parts = [*_models(configs, done), *_shards(configs, limit, done)]
    parts += [
        Part(f"benchmark {name}", "dataset", BENCHMARKS[name].source, every=True, into=name)
        for name in dict.fromkeys([*benchmarks, *_tasks(configs, done)])
    ]
    commits = {of: _commit(*of) for of in dict.fromkeys((part.kind, part.name, part.revision) for part in parts)}
    pinned = [replace(part, commit=commits[part.kind, part.name, part.revision]) for part in dict.fromkeys(parts)]
    listed = [(part, _listed(part)) for part in pinned]
    for path in (folder / CACHE).rglob("*.incomplete"):  # of a call that was killed: the Hub's client begins such files anew
        path.unlink()
    _check_room(folder, listed)
    book = _book(folder)
    for part, entries in listed:
        for entry in progress_bar(entries, desc=part.name, total=len(entries), delay=3):
            _bring(part, entry, folder, book)
            done.files += 1
            done.size += entry.size
    for part in pinned:
        if not part.into:
            _bring_earlier(part, folder, book)
            write_atomically(_ref(part, folder), part.commit)
    done.variables = {"HF_HUB_CACHE": str(done.folder / CACHE), "HF_HUB_OFFLINE": "1"}
    return done


def _models(configs: Sequence[RunConfig], done: Fetched) -> Iterator[Part]:
    """Decoder and tokenizer, encoder, VAE. What is a folder here is left where it is."""
    for config in configs:
        decoder, frontend = config.decoder, config.frontend
        for setting, given in (("decoder.pretrained", decoder.pretrained), ("decoder.tokenizer", decoder.tokenizer)):
            yield from _model(given, setting, done)
        of_collections = Components(config.components_seed).used(config)
        for kind in ("vae", "encoder"):
            given = getattr(frontend, kind)
            if kind in of_collections and given.partition("/")[0] != TINY:  # which comes with the package
                _leave(done, f"frontend.{kind}={given} is of a collection of this machine: take it along")
        if "vae" not in of_collections:
            yield from _model(frontend.vae, "frontend.vae", done)
        if "encoder" not in of_collections and frontend.encoder_pretrained:
            yield from _encoder(frontend.encoder, done)


def _encoder(given: str, done: Fetched) -> Iterator[Part]:
    setting = "frontend.encoder"
    if not given:
        return
    if given.startswith(TRANSFORMERS):
        yield from _model(given.removeprefix(TRANSFORMERS), setting, done)
    elif Path(given).is_dir() or ("@" in given and not given.startswith(HUB)):
        _leave(done, f"{setting}={given} is of this machine: take it along")
    else:
        name = timm_repository(given.removeprefix(TIMM))
        if name is None:
            raise UserError(f"{setting}={given}: timm knows no weights of that name")
        revision = given.partition("@")[2] if given.startswith(HUB) else ""
        yield Part(f"{setting}={given}", "model", name, revision=revision or None)


def _model(given: str, setting: str, done: Fetched) -> Iterator[Part]:
    if not given:
        return
    source = locate(given, setting)
    if source.folder is not None:
        _leave(done, f"{source.what} is a folder of this machine: take it along")
        return
    yield Part(source.what, "model", source.name, source.subfolder)


def _shards(configs: Sequence[RunConfig], limit: int | None, done: Fetched) -> Iterator[Part]:
    """One part per repository of every source that some stage reads."""
    for config in configs:
        used = {name.removeprefix("copy/") for stage in config.stages.values() for name, share in stage.mix.items() if share > 0}
        used |= {*config.evaluation.losses.values()}
        for name in sorted(used):
            if name.startswith("manifest/"):
                _leave(done, f"{name}: {config.data.manifests[name.partition('/')[2]].path} is of this machine: take it along")
        for name, source in shard_sources(config.data).items():
            if name not in used:
                continue
            kept: list[str] = []
            for url in source.urls:
                if not url.startswith(HF):
                    kept.append(url)
                    _leave(done, f"{name}: {shown(url)} is not on the Hub: take it along, or name its copy there")
                    continue
                urls, shorter = _first(name, url, limit)
                kept += shorter
                yield from _of_repositories(name, urls)
            if kept != list(source.urls):
                setting = f"data.{name.replace('/', '.', 1)}.urls={json.dumps(kept)}"
                if setting not in done.settings:
                    done.settings.append(setting)


def _tasks(configs: Sequence[RunConfig], done: Fetched) -> Iterator[str]:
    """The published benchmarks that are asked along a run; where their data will lie is told the run."""
    for config in configs:
        for key, chosen in config.evaluation.benchmarks.items():
            if chosen.task in BENCHMARKS:
                yield chosen.task
                place = done.folder / "benchmarks"
                setting = f"evaluation.benchmarks.{key}.path={place}"
                if Path(chosen.path).absolute() != place and setting not in done.settings:
                    done.settings.append(setting)
            elif chosen.path:
                _leave(done, f"evaluation.benchmarks.{key}: {chosen.path} is of this machine: take it along")


def _first(name: str, url: str, limit: int | None) -> tuple[list[str], list[str]]:
    """The files of an address, the first ``limit`` of them for every glob in it; and what it must read to name these alone."""
    expanded = list(braceexpand(url))
    if not any(_GLOB.search(one) for one in expanded):
        kept = expanded[:limit]
        found = [file.url for file in find_files(kept, name)]
        return found, [url] if len(kept) == len(expanded) else kept
    return [file.url for one in expanded for file in find_files([one], name)[:limit]], [url]


def _of_repositories(name: str, urls: Sequence[str]) -> Iterator[Part]:
    by_repository: dict[tuple[str, str, str | None], list[str]] = {}
    for url in urls:
        kind, owner, revision, path = repository(url)
        by_repository.setdefault((kind, owner, revision), []).append(path)
    for (kind, owner, revision), paths in by_repository.items():
        yield Part(name, kind, owner, revision=revision, paths=tuple(paths))


def _leave(done: Fetched, line: str) -> None:
    if line not in done.left:
        done.left.append(line)


def _commit(kind: str, name: str, revision: str | None) -> str:
    with _of_the_hub(part := Part(name, kind, name)):
        found = HfApi(endpoint=constants.ENDPOINT).repo_info(name, repo_type=kind, revision=revision).sha
    if found is None:
        raise UserError(f"{part.what}: the Hub names no commit of {name}")
    return found


def _listed(part: Part) -> list[RepoFile]:
    """Its files as the Hub states them: sizes and digests."""
    if part.paths:
        return _stated(part, part.paths)
    api = HfApi(endpoint=constants.ENDPOINT)
    with _of_the_hub(part):
        tree = [*api.list_repo_tree(part.name, repo_type=part.kind, revision=part.commit, recursive=True)]
    files = [entry for entry in tree if isinstance(entry, RepoFile)]
    inside = [entry for entry in files if part.every or entry.path.rpartition("/")[0] == part.folder]
    chosen = inside if part.every else _of_a_model(inside)
    if not chosen:
        raise UserError(f"{part.what}: {part.name}{f'/{part.folder}' if part.folder else ''} holds no files of a model")
    return chosen


def _stated(part: Part, paths: Sequence[str]) -> list[RepoFile]:
    """Those of the paths that there are."""
    api = HfApi(endpoint=constants.ENDPOINT)
    with _of_the_hub(part):
        entries = api.get_paths_info(part.name, list(paths), repo_type=part.kind, revision=part.commit)
    return [entry for entry in entries if isinstance(entry, RepoFile)]


def _ref(part: Part, folder: Path) -> Path:
    """The file of the cache that says which commit is read without a network."""
    return folder / CACHE / part.cache / "refs" / (part.revision or "main")


def _bring_earlier(part: Part, folder: Path, book: dict[str, list[Any]]) -> None:
    """Of this commit what the folder has of an earlier one: a file that did not change is a link."""
    ref = _ref(part, folder)
    earlier = ref.read_text(encoding="utf-8").strip() if ref.is_file() else part.commit
    if earlier == part.commit:
        return
    snapshot = folder / CACHE / part.cache / "snapshots" / earlier
    paths = [path.relative_to(snapshot).as_posix() for path in snapshot.rglob("*") if path.is_file()]
    for entry in _stated(part, paths) if paths else ():
        _bring(part, entry, folder, book)


def _of_a_model(files: Sequence[RepoFile]) -> list[RepoFile]:
    weights = next((found for end in WEIGHTS if (found := [file for file in files if file.path.endswith(end)])), [])
    return [*(file for file in files if file.path.endswith(TEXTS) and file not in weights), *weights]


def _check_room(folder: Path, listed: Iterable[tuple[Part, Sequence[RepoFile]]]) -> None:
    """Before the first byte."""
    needed = sum(entry.size for part, entries in listed for entry in entries if _size(_blob(part, entry, folder)) != entry.size)
    free = shutil.disk_usage(folder).free
    if needed > free:
        sizes = f"{needed / 1e9:,.1f} GB are to be fetched, {free / 1e9:,.1f} GB are free"
        raise UserError(f"--to {folder}: {sizes} (--limit takes fewer shards)")


def _blob(part: Part, entry: RepoFile, folder: Path) -> Path:
    """Where the file's content will lie: in the cache under its digest."""
    return (
        folder / "benchmarks" / part.into / entry.path
        if part.into
        else folder / CACHE / part.cache / "blobs" / _stated_digest(entry)
    )


def _stated_digest(entry: RepoFile) -> str:
    return str(entry.lfs.sha256 if entry.lfs is not None else entry.blob_id)


def _bring(part: Part, entry: RepoFile, folder: Path, book: dict[str, list[Any]]) -> None:
    """One file, downloaded where it is missing, and compared with the Hub's digest unless that was done."""
    place: dict[str, Any] = {"cache_dir": folder / CACHE} if not part.into else {"local_dir": folder / "benchmarks" / part.into}
    with _of_the_hub(part):
        path = Path(
            hf_hub_download(part.name, entry.path, repo_type=part.kind, revision=part.commit, endpoint=constants.ENDPOINT, **place)
        )
    expected = _stated_digest(entry)
    size = path.stat().st_size
    if size == entry.size and book.get(_key(part, entry)) == [str(path.relative_to(folder)), size]:
        return
    found = _digest(path, sha256=entry.lfs is not None) if size == entry.size else f"of {size:,} bytes"
    if found != expected:
        blob = path.resolve()
        path.unlink()
        blob.unlink(missing_ok=True)
        stated = expected if size == entry.size else f"{entry.size:,} bytes"
        raise UserError(
            f"{part.what}: {entry.path} is {found}, the Hub says {stated}: it is removed, the same command fetches it again"
        )
    book[_key(part, entry)] = [str(path.relative_to(folder)), size]
    append_line(folder / BOOK, [_key(part, entry), *book[_key(part, entry)]])


def _key(part: Part, entry: RepoFile) -> str:
    return f"{part.into or part.kind} {part.name} {entry.path} {_stated_digest(entry)}"


def _book(folder: Path) -> dict[str, list[Any]]:
    """Files that were right, by :func:`_key`: their place and size. One that is gone or has another size since is not of them."""
    found = {}
    for number, line in enumerate(appended_lines(folder / BOOK), start=1):
        try:
            key, path, size = json.loads(line)
            if _size(folder / path) == size:
                found[key] = [path, size]
        except (ValueError, TypeError) as error:
            raise UserError(f"{folder / BOOK}:{number} is damaged: delete it, and all files are compared again") from error
    return found


def _size(path: Path) -> int | None:
    return path.stat().st_size if path.is_file() else None


def _digest(path: Path, sha256: bool) -> str:
    """As the Hub states it: sha256 of a large file, else git's sha1."""
    with path.open("rb") as stream:
        if sha256:
            return hashlib.file_digest(stream, "sha256").hexdigest()
        data = stream.read()
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


@contextmanager
def _of_the_hub(part: Part) -> Iterator[None]:
    """What its client raises becomes one line; what the disk refuses does so above."""
    try:
        yield
    except (HfHubHTTPError, HTTPError) as error:
        raise UserError(f"{part.what}: the Hub does not give {part.name}: {one_line(error)}") from error
    except LOAD_ERRORS as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        raise UserError(f"{part.what}: {part.name} does not come from the Hub: {one_line(error)}") from error
