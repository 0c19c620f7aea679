"""Every snippet of the documentation does what the page says: files are written, commands run, screens compared."""

from __future__ import annotations

import ast
import configparser
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from doc_snippets import DOCS, PAGES, Block, Command, blocks, commands, every, masked, missing

from pytest_ollama_perf import cli
from pytest_ollama_perf.config import OPTIONS, Settings
from pytest_ollama_perf.contracts import SUFFIX, toml
from pytest_ollama_perf.contracts.items import CONTRACT_TABLE
from pytest_ollama_perf.contracts.parse import parse_contract

LANGUAGES = {"python", "console", "toml", "ini", "yaml", "json", "nginx", "text"}
NOT_OURS = {"pip", "python3", ".", "ollama", "export", "OLLAMA_HOST"}
"""What begins a command that is not run here and not ours to check."""

ATTEMPTS = 3

_WRITTEN = {"python", "toml", "ini", "json"}
_WITH_COMMANDS = [page for page in PAGES if any(block.language == "console" for block in blocks(page))]


def _id(value: object) -> str | None:
    if isinstance(value, Path):
        return str(value.relative_to(DOCS))
    return value.where if isinstance(value, Block) else None


_OTHERS = ("OLLAMA_", "PYTEST_", "GITHUB_", "CI")
"""Beginnings of variables that would change what is printed."""


def _environment() -> dict[str, str]:
    kept = {key: value for key, value in os.environ.items() if not key.startswith(_OTHERS)}
    here = str(Path(sys.executable).parent)
    return kept | {
        "COLUMNS": "80",
        "NO_COLOR": "1",
        "PATH": os.pathsep.join([here, kept.get("PATH", "")]),
        "PYTEST_ADDOPTS": "-p pytest_ollama_perf.plugin -p no:cacheprovider",
        "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
        "PYTHONDONTWRITEBYTECODE": "1",
    }


def _write(block: Block, folder: Path) -> None:
    path = folder / block.name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(block.text, encoding="utf-8")


def _run(command: Command, folder: Path, where: str) -> str:
    """Return what is wrong with the page; empty where the command prints what it shows."""
    done = subprocess.run(
        command.words,
        cwd=folder,
        env=_environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
        timeout=120,
    )
    said = f"{where}: `{command.line}`"
    if lacking := missing(command.shown, done.stdout):
        return f"{said} does not print\n{lacking}\n\nbut\n{done.stdout}"
    return f"{said} fails\n{done.stdout}" if done.returncode and not command.shown.strip() else ""


def _follow(page: Path, folder: Path) -> str:
    """Do what the page says; begin anew where this machine was too busy to measure anything."""
    folder.mkdir()
    wrong = ""
    for attempt in range(1, ATTEMPTS + 1):
        wrong = _follow_once(page, folder / str(attempt))
        if "x client-bound" not in wrong:
            break
    return wrong


def _follow_once(page: Path, folder: Path) -> str:
    """Do what the page says, from top to bottom; return what is wrong first."""
    folder.mkdir()
    (folder / "pytest.ini").write_text("[pytest]\n", encoding="utf-8")
    for block in blocks(page):
        if block.name and block.language in _WRITTEN and block.name != "pyproject.toml":
            _write(block, folder)
        for command in commands(block) if block.language == "console" and not block.why else ():
            if wrong := _run(command, folder, block.where):
                return wrong
    return ""


_SLOW_PAGES = (
    "tutorial",
    "upgrade",
    "contracts",
    "failure",
    "sizing",
    "cluster",
    "shapes",
    "simulator",
    "reports",
    "ab",
)


@pytest.mark.parametrize(
    "page",
    [pytest.param(page, marks=pytest.mark.exhaustive if page.stem in _SLOW_PAGES else ()) for page in _WITH_COMMANDS],
    ids=_id,
)
def test_the_commands_of_a_page_print_what_it_shows(page: Path, tmp_path: Path) -> None:
    wrong = _follow(page, tmp_path / "page")
    assert not wrong, wrong


@pytest.mark.parametrize("block", every("python"), ids=_id)
def test_python_is_a_named_file_that_its_page_runs(block: Block) -> None:
    ast.parse(block.text)
    assert block.name, f"{block.where}: the first line names the file"
    run = [command.line for one in blocks(DOCS / block.page) if one.language == "console" for command in commands(one)]
    by_name = any(block.name in line for line in run)
    by_collection = any(line.startswith("pytest -q --") for line in run) and block.name.startswith("test_")
    assert by_name or by_collection or block.name == "conftest.py"


@pytest.mark.parametrize("block", every("toml"), ids=_id)
def test_toml_is_read_by_our_own_reader(block: Block) -> None:
    document = toml.parse_toml(block.text, block.where)
    if block.name == "wrong" + SUFFIX:
        return  # its refusal is compared where the page shows it
    if block.name.endswith(SUFFIX) or CONTRACT_TABLE[-1] in document.get(CONTRACT_TABLE[0], {}):
        prefix = () if block.name.endswith(SUFFIX) else CONTRACT_TABLE
        assert parse_contract(block.text, block.where, settings=Settings(), folder=Path(), prefix=prefix)
    for key in document.get("tool", {}).get("pytest", {}).get("ini_options", {}):
        assert key in {option.key for option in OPTIONS}


def test_ini_files_name_options_that_exist() -> None:
    for block in every("ini"):
        parser = configparser.ConfigParser()
        parser.read_string(block.text)
        assert set(parser["pytest"]) <= {option.key for option in OPTIONS}, block.where


@pytest.mark.parametrize("block", every("json"), ids=_id)
def test_json_is_json(block: Block) -> None:
    for text in block.text.splitlines() if block.name.endswith(".jsonl") else [block.text]:
        json.loads(text)


@pytest.mark.parametrize(
    "line", ["pytest --ollama-sav", "pytest --ollama-report=htm:x", "pytest-ollama-perf acept x", "ls"]
)
def test_a_command_that_nobody_knows_is_noticed(line: str, isolated_pytester: pytest.Pytester) -> None:
    with pytest.raises((pytest.UsageError, SystemExit, AssertionError)):
        _check(line, isolated_pytester, "here")


def _script_lines(value: object) -> list[str]:
    """Return every line of a workflow that a shell gets."""
    if isinstance(value, dict):
        own = [inner for key, inner in value.items() if key in {"run", "script"}]
        rest = [inner for key, inner in value.items() if key not in {"run", "script"}]
        return [line for inner in own for line in _lines(inner)] + [ln for inner in rest for ln in _script_lines(inner)]
    return [line for inner in value for line in _script_lines(inner)] if isinstance(value, list) else []


def _lines(script: object) -> list[str]:
    return [line for each in (script if isinstance(script, list) else [script]) for line in str(each).splitlines()]


@pytest.mark.parametrize("block", every("yaml"), ids=_id)
def test_workflows_are_yaml_with_options_that_exist(block: Block, isolated_pytester: pytest.Pytester) -> None:
    yaml = pytest.importorskip("yaml")
    lines = _script_lines(yaml.safe_load(block.text))
    assert [line for line in lines if line.startswith(("pytest ", "pytest-ollama-perf "))]
    for line in lines:
        _check(line, isolated_pytester, block.where)


@pytest.mark.parametrize("block", [block for block in every("console") if block.why], ids=_id)
def test_commands_that_are_not_run_have_options_that_exist(block: Block, isolated_pytester: pytest.Pytester) -> None:
    for command in commands(block):
        assert not command.shown.strip(), "what is not run can show nothing"
        _check(command.line, isolated_pytester, block.where)


def _check(line: str, pytester: pytest.Pytester, where: str) -> None:
    """Let our own parsers read a command line and refuse what they do not know; the shell's variables do not matter."""
    words = shlex.split(re.sub(r"\s\$SAVE\b", "", line.replace("$PERF_STORE", "sqlite:///perf.db")))
    if words[0] == "pytest":
        pytester.parseconfigure("-p", "pytest_ollama_perf.plugin", *words[1:])
    elif words[0] == "pytest-ollama-perf":
        cli.build_parser().parse_args(words[1:])
    else:
        assert words[0].partition("=")[0] in NOT_OURS, f"{where}: nobody checks `{line}`"


@pytest.mark.parametrize("block", every("nginx"), ids=_id)
def test_nginx_takes_its_configuration(block: Block, tmp_path: Path) -> None:
    nginx = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin")
    if nginx is None:
        pytest.skip("no nginx")
    text = re.sub(r"gpu-\d\.example", "127.0.0.1", block.text).replace("events {}", f"pid {tmp_path}/pid;\nevents {{}}")
    (tmp_path / "nginx.conf").write_text(text, encoding="utf-8")
    command = [nginx, "-t", "-p", str(tmp_path), "-c", "nginx.conf", "-e", "stderr"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert "syntax is ok" in done.stderr, done.stderr


def test_every_block_says_what_it_is() -> None:
    unknown = {
        block.where: block.language for page in PAGES for block in blocks(page) if block.language not in LANGUAGES
    }
    assert not unknown


def test_a_screen_may_leave_lines_out_but_not_change_them() -> None:
    printed = "one 1\ntwo 2\nthree ▁▂▃\n"
    assert not missing("one 7\n...\nthree █\n", printed)
    assert missing("one 7\n...\nfour\n", printed) == "four"
    assert missing("three ▁\n...\none 1\n", printed) == "one 1"
    assert masked("took 12.5 ms, -3 % 1b5c47b8") == ["took", "#", "ms,", "#", "%", "#"]
