"""A run by what a user calls it: a run directory, a record, or the name of a committed record."""

from difflib import get_close_matches
from pathlib import Path

from tunalab.errors import UserError
from tunalab.results.records import RECORD_FILE, Record, read_record

COMMITTED = Path("results")


def find_record(name: str, committed: Path = COMMITTED) -> tuple[str, Record]:
    """What to call it (folder and name), and the record: of a run directory, of a file, or of ``committed``/**/NAME.json.

    Raises UserError, one line with the choices: nothing or several things go by that name, or the record is damaged.
    """
    path = Path(name)
    if path.is_dir():
        if not (path / RECORD_FILE).exists():
            inside = ", ".join(file.stem for file in sorted(path.glob("*.json"))[:6]) or "none"
            raise UserError(f"{name} holds no {RECORD_FILE}: a run writes it with its first evaluation (records there: {inside})")
        return f"{path.resolve().parent.name}/{path.resolve().name}", read_record(path / RECORD_FILE)
    if path.is_file():
        return f"{path.resolve().parent.name}/{path.stem}", read_record(path)
    known = {file.relative_to(committed).with_suffix("").as_posix(): file for file in sorted(committed.rglob("*-seed*.json"))}
    found = [full for full in known if full == name or full.endswith(f"/{name}")]
    if len(found) > 1:
        raise UserError(f"{name} is the name of {len(found)} records: {', '.join(found)}")
    if not found:
        last = {full.rsplit("/", 1)[-1]: full for full in known}
        near = [*get_close_matches(name, known, 3), *(last[word] for word in get_close_matches(name, last, 3))]
        choices = ", ".join(dict.fromkeys(near or list(known)[:6])) or "none"
        raise UserError(f"no run directory, record or committed record {name!r} (such as: {choices})")
    return found[0], read_record(known[found[0]])
