"""A run by what a user calls it: a run directory, a record, or the name of a committed record."""

from difflib import get_close_matches
from pathlib import Path

from tunalab.errors import UserError
from tunalab.files import listed
from tunalab.results.records import RECORD_FILE, Record, read_record

COMMITTED = Path("results")


def find_record(name: str, committed: Path = COMMITTED) -> tuple[str, Record]:
    """What to call it (folder and name), and the record: of a run directory, of a file, or of ``committed``/**/NAME.json.

    Raises UserError, one line with the choices: nothing or several things go by that name, or the record is damaged.
    """
    path = Path(name)
    if name and path.is_dir():  # Path("") is where one stands
        if not (path / RECORD_FILE).exists():
            inside = ", ".join(file.stem for file in listed(path, "*.json")[:6]) or "none"
            raise UserError(f"{name} holds no {RECORD_FILE}: a run writes it with its first evaluation (records there: {inside})")
        return f"{path.resolve().parent.name}/{path.resolve().name}", read_record(path / RECORD_FILE)
    if path.is_file():
        return f"{path.resolve().parent.name}/{path.stem}", read_record(path)
    known = {file.relative_to(committed).with_suffix("").as_posix(): file for file in listed(committed, "**/*-seed*.json")}
    word = name.removeprefix(f"{committed}/").removesuffix(".json")
    found = [full for full in known if f"/{full}".endswith(f"/{word}")] if word else []
    if len(found) > 1:
        raise UserError(f"{name} is the name of {len(found)} records: {', '.join(found)}")
    if not found:
        missing = f"there is no run directory or record {name!r}" if word else "the name of a run is empty"
        raise UserError(f"{missing}; committed records: {', '.join(_choices(word, list(known))) or 'none'}")
    return found[0], read_record(known[found[0]])


def _choices(word: str, known: list[str]) -> list[str]:
    """Names that look like ``word``, else those of the folder it names, else the first of every folder: six at most."""
    folder, _, name = word.rpartition("/")
    last = {full.rpartition("/")[2]: full for full in known}
    near = [*get_close_matches(word, known, 3), *(last[one] for one in get_close_matches(name, last, 3))]
    inside = [full for full in known if folder and f"/{full}".rpartition("/")[0].endswith(f"/{folder}")]
    firsts = {full.rpartition("/")[0]: full for full in reversed(known)}
    return list(dict.fromkeys(near or inside or sorted(firsts.values())))[:6]
