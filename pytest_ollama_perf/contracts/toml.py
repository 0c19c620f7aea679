"""A TOML file with the line of every key, which the parser of the standard library does not report."""

from __future__ import annotations

import re
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pytest_ollama_perf.core import ConfigError
from pytest_ollama_perf.core.text import sanitize

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib  # type: ignore[import-not-found, unused-ignore]

KeyPath = tuple[str | int, ...]
"""The keys from the top of a document down to a value; the place in an array of tables is a number from 0."""

MAX_CHARS = 1_000_000
"""Longer files are refused; no one writes them by hand."""

MAX_KEY_PARTS = 50
"""Keys with more parts are refused: the parser needs time quadratic in their number."""

_LONG_STRING = r'"""(?:(?:[^\\]|\\.)*?"""(?:"{0,2})|.*)|' + r"'''(?:.*?'''(?:'{0,2})|.*)"
_SHORT_STRING = r'"(?:(?:[^"\\\n]|\\.)*"|[^\n]*)|' + r"'[^'\n]*'?"
_TOKEN = re.compile(rf"(?P<text>{_LONG_STRING}|{_SHORT_STRING}|\#[^\n]*)|[\[\]{{}}\n]", re.DOTALL)
"""A string that does not end is passed to the end of the text or line, which keeps the time linear in the text."""

_LONG_KEY = re.compile(rf"(?<![\w-])(?:[\w-]+[ \t]*\.[ \t]*){{{MAX_KEY_PARTS}}}")
_AT_LINE = re.compile(r" \(at (?:line (?P<line>\d+), column \d+|end of document)\)$")


def parse_toml(text: str, name: str) -> dict[str, Any]:
    """Return the document ``text``; ``name`` is what errors call the file.

    Raises:
        ConfigError: it is no TOML, or too long; the message begins with file and line.
    """
    if len(text) > MAX_CHARS:
        raise ConfigError(f"{name}: more than {MAX_CHARS} characters; a contract is a short file")
    _reject_long_keys(text, name)
    try:
        document: dict[str, Any] = tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        found = _AT_LINE.search(str(error))
        line = found["line"] if found and found["line"] else text.rstrip("\n").count("\n") + 1
        raise ConfigError(f"{name}:{line}: no TOML: {sanitize(_AT_LINE.sub('', str(error)), 150)}") from None
    return document


def _reject_long_keys(text: str, name: str) -> None:
    bare = _TOKEN.sub(lambda match: "\n" * match[0].count("\n") + "s" if match["text"] else match[0], text)
    if found := _LONG_KEY.search(bare):
        line = bare.count("\n", 0, found.start()) + 1
        raise ConfigError(f"{name}:{line}: a key with more than {MAX_KEY_PARTS} parts")


def find_lines(text: str) -> dict[KeyPath, int]:
    """Return for every key of the valid document ``text`` the line, from 1, that it begins on.

    The document is split into statements: a table's header, or a key with its value. Keys inside an inline table have
    its line.
    """
    found: dict[KeyPath, int] = {}
    table: KeyPath = ()
    arrays: Counter[KeyPath] = Counter()
    for number, statement in _split_statements(text.replace("\r\n", "\n")):
        content = tomllib.loads(statement)
        if not content:
            continue
        if statement.lstrip().startswith("["):
            table = _read_header(content, arrays, is_array=statement.lstrip().startswith("[["))
            found.setdefault(table, number)
        else:
            for path in _list_paths(content):
                found.setdefault((*table, *path), number)
    return found


def find_line(found: Mapping[KeyPath, int], path: Sequence[str | int]) -> int:
    """Return the line of ``path``, or of the nearest key above it that has one; 1 where none has."""
    for length in range(len(path), 0, -1):
        if (line := found.get(tuple(path[:length]))) is not None:
            return line
    return 1


def _split_statements(text: str) -> Iterator[tuple[int, str]]:
    """Yield every statement, comment and empty line with its first line, in time linear in the text.

    A statement ends at the first line break outside of strings and brackets.
    """
    start, line, first, depth = 0, 1, 1, 0
    for token in _TOKEN.finditer(text):
        if token["text"]:
            line += token[0].count("\n")
        elif token[0] == "\n":
            line += 1
            if not depth:
                yield first, text[start : token.start()]
                start, first = token.end(), line
        else:
            depth += 1 if token[0] in "[{" else -1
    yield first, text[start:]


def _read_header(content: dict[str, Any], arrays: Counter[KeyPath], *, is_array: bool) -> KeyPath:
    """Return the path that a table's header opens; a key that names an array of tables means its last one."""
    path: KeyPath = ()
    inner: Any = content
    while isinstance(inner, dict) and inner:
        key, inner = next(iter(inner.items()))
        path = (*path, key)
        last = not inner or isinstance(inner, list)
        if is_array and last:
            arrays[path] += 1
        if arrays[path]:
            path = (*path, arrays[path] - 1)
    return path


def _list_paths(content: Mapping[str, Any]) -> Iterator[KeyPath]:
    """Yield the path of every key, those of tables included."""
    for key, value in content.items():
        yield (key,)
        yield from ((key, *rest) for rest in _list_paths(value)) if isinstance(value, dict) else ()
