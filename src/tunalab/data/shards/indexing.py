"""The indices of all files of a source, made side by side: by threads, and by all processes of a run that share a cache."""

import random
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from tunalab.data.documents import Reject
from tunalab.data.shards.files import ShardFile, first_line
from tunalab.data.shards.index_cache import StoredIndex, stored_index
from tunalab.errors import UserError
from tunalab.terminal import progress_bar

_THREADS = 16  # they mostly wait, for the disk or for a server
_NAMED = 3


class Damaged(Exception):
    """A file that cannot be a shard of its source; the text says why, without the file's name."""


def index_files(name: str, files: Sequence[ShardFile], kind: str, build: Callable[[ShardFile], np.ndarray]) -> list[StoredIndex]:
    """An index for each of ``files``: kept ones, and what ``build`` makes of the others.

    Each process goes through the files in an order of its own, whatever seeds are set: so those that begin together find most
    files indexed by one another, and N of them take little more than an N-th of the time.

    Raises:
        UserError: ``build`` raised Damaged or Reject for some: how many, and the first of them.
    """

    def index(file: ShardFile) -> StoredIndex | str:
        try:
            return stored_index(file, kind, lambda: build(file))
        except Damaged as damaged:
            return f"{file.shown}: {damaged}"
        except Reject as reject:  # the file vanished since it was found
            return str(reject)
        except UserError as error:  # of its server
            return str(error)
        except OSError as error:
            return f"{file.shown} cannot be read: {first_line(error)}"

    order = random.SystemRandom().sample(range(len(files)), len(files))
    with ThreadPoolExecutor(_THREADS) as pool:
        # Shown only if it takes a while.
        results = pool.map(index, (files[number] for number in order))
        shown = progress_bar(results, desc=f"index {name}", total=len(files), delay=3)
        found = dict(zip(order, shown, strict=True))
    done = [found[number] for number in range(len(files))]
    broken = [item for item in done if isinstance(item, str)]
    if broken:
        more = f" (and {len(broken) - _NAMED} more of {len(files)} files)" if len(broken) > _NAMED else ""
        raise UserError(f"{name}: {'; '.join(broken[:_NAMED])}{more}")
    return [item for item in done if isinstance(item, StoredIndex)]
