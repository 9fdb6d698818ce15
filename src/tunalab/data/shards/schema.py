"""What columns of a table must be, as Arrow types. Sizes of offsets (``large_`` types, views) are no difference."""

from collections.abc import Callable
from dataclasses import dataclass

import pyarrow as pa
from pyarrow import types

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
