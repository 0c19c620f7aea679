"""Where the keys of a TOML file stand."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_ollama_perf.contracts.toml import MAX_CHARS, find_line, find_lines, parse_toml
from pytest_ollama_perf.core import ConfigError

TEXT = '''\
# a comment = "with a key"
schema = 1

[defaults]   # [not a table]
prompts = [
  "a", # ]
  """b
]
c = 1
""",
]
[model."llama3.2:3b"]
ttft = ["p95 <= 300ms",
        "regression <= 20%"]
latency.p95 = "<= 3s"
options = {a = 1, b = {c = 2}}
[model."llama3.2:3b".require]
gpu_offload = "100%"
[[model."llama3.2:3b".load]]
concurrency = 8
[[model."llama3.2:3b".load]]
concurrency = 9
[model."llama3.2:3b".load.require]
version = "1"
'''


def test_every_key_has_the_line_it_begins_on() -> None:
    model = ("model", "llama3.2:3b")
    assert find_lines(TEXT) == {
        ("schema",): 2,
        ("defaults",): 4,
        ("defaults", "prompts"): 5,
        model: 12,
        (*model, "ttft"): 13,
        (*model, "latency"): 15,
        (*model, "latency", "p95"): 15,
        (*model, "options"): 16,
        (*model, "options", "a"): 16,
        (*model, "options", "b"): 16,
        (*model, "options", "b", "c"): 16,
        (*model, "require"): 17,
        (*model, "require", "gpu_offload"): 18,
        (*model, "load", 0): 19,
        (*model, "load", 0, "concurrency"): 20,
        (*model, "load", 1): 21,
        (*model, "load", 1, "concurrency"): 22,
        (*model, "load", 1, "require"): 23,
        (*model, "load", 1, "require", "version"): 24,
    }


def test_windows_line_ends_change_nothing() -> None:
    assert find_lines(TEXT.replace("\n", "\r\n")) == find_lines(TEXT)


def test_a_key_without_a_line_of_its_own_has_that_of_its_table() -> None:
    assert find_line({("a",): 3}, ("a", "b", 0, "c")) == 3
    assert find_line({}, ("a",)) == 1


KEYS = st.lists(st.text("abc", min_size=1, max_size=3), unique=True, max_size=4)
VALUES = st.sampled_from(["1", '"x # y"', "[1,\n 2]", '"""\nz = 1\n"""', "'''[\n'''", "{ k = 1 }", "[\n]", "true # c"])


@given(st.lists(st.tuples(KEYS, st.data()), max_size=3))
def test_the_lines_are_where_they_were_written(tables) -> None:
    rows: list[str] = []
    expected = {}
    for number, (keys, data) in enumerate(tables):
        rows += ["", f"[t{number}] # here"]
        expected[f"t{number}",] = len(rows)
        for key in keys:
            rows.append(f"{key} = " + data.draw(VALUES))
            expected[f"t{number}", key] = len("\n".join(rows[:-1]).split("\n")) + 1
            rows = "\n".join(rows).split("\n")
    found = find_lines("\n".join(rows))
    assert {path: line for path, line in found.items() if path[-1] != "k" or path in expected} == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a = 1\nb == 3\n", "f.toml:2: no TOML: "),
        ("a = 1\nb = [\n1,\n", "f.toml:3: no TOML: "),
        ("a = 1\na = 2", "f.toml:2: no TOML: Cannot overwrite"),
        ("x" * (MAX_CHARS + 1), "f.toml: more than 1000000 characters; a contract is a short file"),
    ],
)
def test_what_is_no_toml_is_told_with_its_line(text: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_toml(text, "f.toml")
    assert str(caught.value).startswith(message)


@pytest.mark.timeout(20)
def test_lines_are_found_in_time_linear_in_the_document() -> None:
    rows = "".join(f'  "]{number}",\n' for number in range(20_000))
    found = find_lines(f"first = [\n{rows}]\nlast = 1\n")
    assert (found["first",], found["last",]) == (1, 20_003)


@pytest.mark.timeout(20)
@pytest.mark.parametrize("part", ["a", "'a'"])
def test_a_key_of_very_many_parts_is_refused(part: str) -> None:
    with pytest.raises(ConfigError, match="c:2: a key with more than 50 parts"):
        parse_toml("schema = 1\n" + ".".join([part] * 100_000) + " = 1", "c")


def test_dots_that_are_no_keys_do_not_count() -> None:
    numbers = ", ".join(f"{number}.5" for number in range(200))
    assert parse_toml(f'a = [{numbers}]\nb = "{"x." * 200}"  # {"y." * 200}\n', "c")["a"][0] == 0.5


def test_brackets_and_quotes_in_strings_end_no_statement() -> None:
    text = 'a = ["""x"]""", "\\"[", \'[\']\nb = """\n[c]\n""""\n[d] # [\ne = \'\'\'\n]\'\'\'\nf = {g = "}"}\n'
    assert find_lines(text) == {("a",): 1, ("b",): 2, ("d",): 5, ("d", "e"): 6, ("d", "f"): 8, ("d", "f", "g"): 8}


@pytest.mark.timeout(20)
@pytest.mark.parametrize("text", ['"' + '\\"' * 100_000, '"""' + '\\"""\n' * 60_000, "'''" + "''\n" * 60_000])
def test_a_string_without_an_end_is_refused_in_linear_time(text: str) -> None:
    with pytest.raises(ConfigError, match=r"c:\d+: no TOML"):
        parse_toml(f"schema = 1\nx = {text}\n", "c")
