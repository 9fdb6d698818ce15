"""Rows of Parquet files, and what their columns must be.

A row group is what Parquet can decode, so it is the block of the order and the unit of the cache.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import types

from tunalab.data.documents import Reject
from tunalab.data.shards.corpus import Damaged, Sample, index_files
from tunalab.data.shards.files import ShardFile, open_file
from tunalab.errors import first_line

Fits = Callable[[pa.DataType], bool]


@dataclass(frozen=True)
class Column:
    """``fits`` judges a column's type; ``shown`` names what is expected."""

    fits: Fits
    shown: str


def is_text(kind: pa.DataType) -> bool:
    if types.is_dictionary(kind):
        return is_text(kind.value_type)
    return types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind)


def is_bytes(kind: pa.DataType) -> bool:
    return types.is_binary(kind) or types.is_large_binary(kind) or types.is_binary_view(kind)


def is_list(inner: Fits) -> Fits:
    def fits(kind: pa.DataType) -> bool:
        lists = (types.is_list, types.is_large_list, types.is_fixed_size_list, types.is_list_view, types.is_large_list_view)
        # Lists that are all empty have no type of their own.
        return any(check(kind) for check in lists) and (inner(kind.value_type) or types.is_null(kind.value_type))

    return fits


def is_struct(**inner: Fits) -> Fits:
    """A struct that has each of these fields once, besides any others."""

    def fits(kind: pa.DataType) -> bool:
        if not types.is_struct(kind):
            return False
        fields = [kind.field(place) for place in range(kind.num_fields)]
        found = {key: [field.type for field in fields if field.name == key] for key in inner}
        return all(len(found[key]) == 1 and check(found[key][0]) for key, check in inner.items())

    return fits


def either(*choices: Fits) -> Fits:
    return lambda kind: any(check(kind) for check in choices)


is_image = is_struct(bytes=is_bytes)

IMAGE = Column(is_image, "struct<bytes: binary, path: string>")
IMAGES = Column(either(is_list(is_image), types.is_null), "list<struct<bytes: binary, path: string>>")
TURNS = Column(is_list(is_struct(user=is_text, assistant=is_text)), "list<struct<user: string, assistant: string>>")
TEXTS = Column(is_list(is_text), "list<string>")
TEXT = Column(
    either(
        is_text,
        is_list(is_struct(role=is_text, content=is_text)),
        is_list(is_struct(**{"from": is_text, "value": is_text})),
    ),
    "string or list of turns",
)


# A row group is decoded whole, and a window of them stays in memory: beyond this, reading one row would stall a data process.
MAX_GROUP_BYTES = 2**30

LeftOut = Callable[[pa.Schema, str], None]


class TableReader:
    """Rows as plain values ``{column: value}``, of the columns asked for only. The last ``kept`` row groups stay decoded.

    ``left_out``: judges a column that is not read but holds something, by the schema and its name; raises Damaged if it matters.

    Raises:
        UserError: a file is no Parquet, lacks a column, has one of another type, or has row groups too large to read one row of.
    """

    def __init__(
        self,
        name: str,
        files: Sequence[ShardFile],
        columns: Mapping[str, Column],
        kept: int,
        left_out: LeftOut | None = None,
    ) -> None:
        self.files = files
        self._columns = list(columns)
        self._kept = max(1, kept)
        # What was checked is part of the key: an index that was kept vouches for these columns.
        requested = ", ".join(f"{key}: {column.shown}" for key, column in columns.items())
        kind = f"parquet {3 if left_out else 1} {requested}"
        indices = index_files(name, files, kind, lambda file: _row_groups(file, columns, left_out))
        groups = [index.load() for index in indices]
        self._group_file = np.repeat(np.arange(len(files)), [len(rows) for rows in groups])
        self._group_first = np.concatenate([np.arange(len(rows)) for rows in groups])
        self.starts = np.concatenate([[0], np.cumsum(np.concatenate(groups))])
        self._tables: dict[int, pa.Table] = {}

    def read(self, row: int) -> Sample:
        group = self._group(row)
        table = self._table(group).slice(row - int(self.starts[group]), 1)
        return {key: _plain(table.column(key)[0]) for key in self._columns}

    def where(self, row: int) -> str:
        group = self._group(row)
        file = int(self._group_file[group])
        first = int(self.starts[group - int(self._group_first[group])])
        return f"{self.files[file].shown} row {row - first + 1}"

    def _group(self, row: int) -> int:
        return int(np.searchsorted(self.starts, row, side="right")) - 1

    def _table(self, group: int) -> pa.Table:
        decoded = self._tables.pop(group, None)
        if decoded is None:
            decoded = self._decode(group)
        self._tables[group] = decoded  # at the end: the first is the one not used for longest
        while len(self._tables) > self._kept:
            del self._tables[next(iter(self._tables))]
        return decoded

    def _decode(self, group: int) -> pa.Table:
        file, number = self.files[int(self._group_file[group])], int(self._group_first[group])
        try:
            # Opened for each row group: a handle kept open would share its position with processes forked from this one.
            with open_file(file.url) as stream, pq.ParquetFile(stream, page_checksum_verification=True) as parquet:
                # One thread: data processes are what runs side by side.
                return parquet.read_row_group(number, columns=self._columns, use_threads=False)
        except OSError as error:
            if not _is_of_the_data(error):
                raise
            raise Reject(f"row group {number} cannot be read: {first_line(error)}") from error
        except pa.ArrowException as error:
            raise Reject(f"row group {number} cannot be read: {first_line(error)}") from error


def _plain(value: pa.Scalar) -> Any:
    """The value as Python's. Text that is no UTF-8 stays bytes, which nothing takes for text."""
    try:
        return value.as_py()
    except (ValueError, KeyError, OverflowError, pa.ArrowException):
        # One part of it, which may be none that is needed: a path of other bytes, a date that Python does not know.
        kind = value.type
    if isinstance(value, pa.DictionaryScalar):
        return _plain(value.value)
    if types.is_struct(kind):
        return {kind.field(place).name: _plain(value[place]) for place in range(kind.num_fields)}
    if types.is_nested(kind):
        return [_plain(part) for part in value.values]
    return value.as_buffer().to_pybytes() if is_text(kind) else None


def _row_groups(file: ShardFile, columns: Mapping[str, Column], left_out: LeftOut | None) -> np.ndarray:
    """Rows of each row group, after a look at the schema."""
    try:
        with open_file(file.url) as stream, pq.ParquetFile(stream) as parquet:
            metadata, schema = parquet.metadata, parquet.schema_arrow
    except OSError as error:
        if not _is_of_the_data(error):
            raise
        raise Damaged(f"no whole Parquet file: {first_line(error)}") from error
    except pa.ArrowException as error:
        raise Damaged(f"no whole Parquet file: {first_line(error)}") from error
    missing = [key for key in columns if key not in schema.names]
    if missing:
        raise Damaged(f"no column {', '.join(missing)} (columns: {', '.join(schema.names)})")
    twice = [key for key in columns if schema.names.count(key) > 1]
    if twice:
        raise Damaged(f"column {twice[0]} is there twice")
    for key, column in columns.items():
        if not column.fits(schema.field(key).type):
            raise Damaged(f"column {key} is {schema.field(key).type}, needed: {column.shown}")
    groups = [metadata.row_group(number) for number in range(metadata.num_row_groups)]
    if left_out:
        for key in schema.names:
            if key not in columns and any(_holds(group, key) for group in groups):
                left_out(schema, key)
    for number, group in enumerate(groups):
        parts = (group.column(place) for place in range(group.num_columns))
        size = sum(part.total_uncompressed_size for part in parts if part.path_in_schema.split(".")[0] in columns)
        if size > MAX_GROUP_BYTES:
            raise Damaged(
                f"row group {number} is {size / 2**30:.1f} GiB, at most {MAX_GROUP_BYTES / 2**30:.0f} can be read at random: "
                "write the file again with smaller row groups"
            )
    return np.array([group.num_rows for group in groups], np.int64)


def _holds(group: pq.RowGroupMetaData, key: str) -> bool:
    """Whether a column has a value in a row group, or its file does not say; empty lists have none."""
    parts = [group.column(place) for place in range(group.num_columns)]
    statistics = [part.statistics for part in parts if part.path_in_schema.split(".")[0] == key]
    return any(one is None or not one.has_null_count or one.num_values > 0 for one in statistics)


def _is_of_the_data(error: OSError) -> bool:
    """Whether this is pyarrow's word for damaged bytes: a bare OSError. Those of disks have a number, those of networks a class."""
    return type(error) is OSError and error.errno is None
