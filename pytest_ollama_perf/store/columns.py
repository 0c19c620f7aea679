"""Columns of numbers and words, small enough that a run with every chunk time fits a file that git likes.

A column of integers is written as the shortest of
    7               every value is 7 (null: there is none)
    [7, 8]          plain values
    "3,10,2,..."    value = 3 + 10 * u, where the u are unsigned integers of 2 bytes: all lowest bytes first, then all
                    of the next higher (the lowest are noise, the higher ones hardly vary), deflated, base85
and where some rows have no value, as ``{"empty": those rows, "values": column of the others}``.
A column of words is the one word that all share (``{6}`` is the row's number in six digits), or distinct words
and a column of their positions.
"""

from __future__ import annotations

import base64
import re
import zlib
from collections.abc import Sequence

import msgspec
import numpy as np
from numpy.typing import NDArray

IntArray = NDArray[np.int64]
DenseColumn = int | str | list[int]

FREE_BYTES, EXPANSION = 1 << 16, 16
"""A packed column may unfold to ``FREE_BYTES`` and ``EXPANSION`` times its size; ``pack_in_full`` keeps to it."""

_MAX_NUMBER = 1 << 62
_ROW_NUMBER = re.compile(r"\{([1-9])\}")
_ALPHABET = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz!#$%&()*+-;<=>?@^_`{|}~"
_DIGIT_VALUES = np.full(256, 255, dtype=np.int64)
_DIGIT_VALUES[np.frombuffer(_ALPHABET, dtype=np.uint8)] = np.arange(85)
_PLACE_VALUES = np.array([85**4, 85**3, 85**2, 85, 1], dtype=np.int64)


class ColumnError(ValueError):
    """A column that nothing of this package wrote; the message says what is wrong with it."""


class SparseColumn(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A column with rows that have no value."""

    empty: list[int]
    values: DenseColumn


class DictionaryColumn(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A column with more than one word in it."""

    words: list[str]
    rows: DenseColumn


NumberColumn = int | str | list[int] | SparseColumn | None
TextColumn = str | DictionaryColumn


def pack(values: Sequence[int | None]) -> NumberColumn:
    """Return the shortest form of ``values``."""
    present = [value for value in values if value is not None]
    if not present:
        return None
    if len(present) == len(values):
        return _pack_shortest(present)
    empty = [row for row, value in enumerate(values) if value is None]
    return SparseColumn(empty, _pack_shortest(present))


def pack_in_full(values: IntArray) -> str:
    """Return ``values`` packed, also where all are the same: the length of the text then bounds their number."""
    if not values.size:
        return ""
    low = int(values.min())
    offsets = values - low
    unit = int(np.gcd.reduce(offsets)) or 1
    steps = (offsets // unit).astype("<u8")
    width = max(1, (int(steps.max()).bit_length() + 7) // 8)
    planes = steps.view(np.uint8).reshape(-1, 8)[:, :width].T
    return f"{low},{unit},{width},{base64.b85encode(_deflate(planes)).decode()}"


def unpack(column: NumberColumn, count: int) -> list[int] | list[int | None] | list[None]:
    """Return the ``count`` values of ``column``; ``BadColumn`` where it does not have them."""
    if column is None:
        return [None] * count
    if not isinstance(column, SparseColumn):
        return _unpack_dense(column, count)
    empty = set(column.empty)
    if len(empty) != len(column.empty) or (empty and not 0 <= min(empty) <= max(empty) < count):
        raise ColumnError("an empty row outside the column")
    values = iter(_unpack_dense(column.values, count - len(empty)))
    return [None if row in empty else next(values) for row in range(count)]


def unpack_in_full(text: str, count: int) -> IntArray:
    """Return the ``count`` values of what ``pack_in_full`` wrote; ``BadColumn`` where it does not have them."""
    if not text:
        if count:
            raise ColumnError(f"{count} values in an empty column")
        return np.zeros(0, dtype=np.int64)
    low, unit, width, data = _parse_header(text)
    if count * width > FREE_BYTES + EXPANSION * len(data):
        raise ColumnError(f"{count} values in {len(data)} characters")
    planes = np.frombuffer(_inflate(_decode_base85(data), count * width), dtype=np.uint8).reshape(width, count)
    steps = np.zeros((count, 8), dtype=np.uint8)
    steps[:, :width] = planes.T
    offsets = steps.view("<u8").reshape(count)
    if count and int(offsets.max()) * unit + abs(low) >= 2 * _MAX_NUMBER:
        raise ColumnError("a number beyond 63 bits")
    return offsets.astype(np.int64) * unit + low


def pack_texts(words: Sequence[str], numbers: Sequence[int]) -> TextColumn:
    """Return the shortest form of ``words``, whose rows carry ``numbers``."""
    distinct = list(dict.fromkeys(words))
    if not distinct:
        return ""
    pattern = distinct[0] if len(distinct) == 1 else _build_pattern(words[0])
    if [*_fill_pattern(pattern, numbers)] == [*words]:
        return pattern
    position = {word: row for row, word in enumerate(distinct)}
    return DictionaryColumn(distinct, _pack_shortest([position[word] for word in words]))


def unpack_texts(column: TextColumn, numbers: Sequence[int]) -> list[str]:
    """Return the words of ``column``, one for each of ``numbers``."""
    if isinstance(column, str):
        return _fill_pattern(column, numbers)
    rows = _unpack_dense(column.rows, len(numbers))
    if rows and not 0 <= min(rows) <= max(rows) < len(column.words):
        raise ColumnError("a row without its word")
    return [column.words[row] for row in rows]


def _build_pattern(word: str) -> str:
    """Return ``status`` with the digits at its end, which may be the row's number, as a pattern."""
    digits = len(word) - len(word.rstrip("0123456789"))
    return f"{word[: len(word) - digits]}{{{max(1, min(digits, 9))}}}"


def _fill_pattern(pattern: str, numbers: Sequence[int]) -> list[str]:
    match = _ROW_NUMBER.search(pattern)
    if match is None:
        return [pattern] * len(numbers)
    width, before, after = int(match[1]), pattern[: match.start()], pattern[match.end() :]
    return [f"{before}{number:0{width}}{after}" for number in numbers]


def _pack_shortest(values: list[int]) -> DenseColumn:
    low, high = min(values), max(values)
    if low == high:
        return low
    if not -_MAX_NUMBER < low <= high < _MAX_NUMBER:
        return values
    packed = pack_in_full(np.array(values, dtype=np.int64))
    return packed if len(packed) < len(msgspec.json.encode(values)) else values


def _unpack_dense(column: DenseColumn, count: int) -> list[int]:
    if isinstance(column, int):
        return [column] * count
    if isinstance(column, str):
        values: list[int] = unpack_in_full(column, count).tolist()
        return values
    if len(column) != count:
        raise ColumnError(f"{len(column)} values for {count} rows")
    return column


def _deflate(planes: NDArray[np.uint8]) -> bytes:
    raw = planes.tobytes()
    press = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    parts = [press.compress(plane.tobytes()) + press.flush(zlib.Z_FULL_FLUSH) for plane in planes]
    pressed = b"".join(parts) + press.flush()
    fits = len(raw) <= FREE_BYTES + EXPANSION * len(pressed)
    return pressed if len(pressed) < len(raw) and fits else raw


def _inflate(data: bytes, size: int) -> bytes:
    if len(data) == size:
        return data
    press = zlib.decompressobj(-zlib.MAX_WBITS)
    try:
        raw = press.decompress(data, size + 1)
    except zlib.error as error:
        raise ColumnError("a packed column that does not unfold") from error
    if len(raw) != size or press.unused_data or press.unconsumed_tail:
        raise ColumnError("a packed column of the wrong length")
    return raw


def _parse_header(text: str) -> tuple[int, int, int, str]:
    parts = text.split(",", 3)
    try:
        low, unit, width = (int(part) for part in parts[:3])
    except ValueError as error:
        raise ColumnError("a packed column without its head") from error
    if (
        len(parts) != 4
        or not 1 <= width <= 8
        or not 1 <= unit < 2 * _MAX_NUMBER
        or not -_MAX_NUMBER < low < _MAX_NUMBER
    ):
        raise ColumnError("a packed column with a wrong head")
    return low, unit, width, parts[3]


def _decode_base85(text: str) -> bytes:
    """``base64.b85decode``, fast enough for twenty runs at once."""
    data = text.encode("ascii", "replace")
    missing = -len(data) % 5
    digits = _DIGIT_VALUES[np.frombuffer(data + b"~" * missing, dtype=np.uint8)].reshape(-1, 5)
    numbers = digits @ _PLACE_VALUES
    if digits.size and (int(digits.max()) > 84 or int(numbers.max()) >= 1 << 32):
        raise ColumnError("a packed column with a foreign character")
    decoded = numbers.astype(">u4").tobytes()
    return decoded[: len(decoded) - missing]
