"""The README's screens are what its commands print: same words, other digits."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
BEGINS = "ollama 0."
ATTEMPTS = 3
"""A busy machine changes the measured values and adds notes about the client; a wrong text fails every attempt."""


def commands() -> list[str]:
    return re.findall(r"^\$ (.*)$", README, re.MULTILINE)


def screen(name: str) -> str:
    found = re.search(rf"<!-- screen: {name} -->\n```\n(.*?)```", README, re.DOTALL)
    assert found, f"README.md has no screen '{name}'"
    return found[1]


def pytest_part(name: str) -> list[str]:
    """Return the arguments of the last pytest command before the screen."""
    before = README[: README.index(f"<!-- screen: {name} -->")]
    line = re.findall(r"^\$ (.*)$", before, re.MULTILINE)[-1]
    words = shlex.split(line)
    last = max(index for index, word in enumerate(words) if word.endswith("pytest"))
    return words[last + 1 :]


def printed(arguments: list[str]) -> str:
    environment = {
        key: value for key, value in os.environ.items() if not key.startswith(("OLLAMA_", "PYTEST_", "GITHUB_"))
    }
    environment |= {"COLUMNS": "80", "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    command = [sys.executable, "-m", "pytest", "-p", "pytest_ollama_perf.plugin", "--color=no", "-c", os.devnull]
    done = subprocess.run(
        [*command, f"--rootdir={ROOT}", *arguments],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    return done.stdout[done.stdout.index(BEGINS) :]


def words_of(text: str) -> list[str]:
    """The words of a screen: digits, spacing and rules masked, notes about a busy machine left out.

    The options that only this test adds are left out of the rerun command.
    """
    joined = re.sub(r" \\\n +", " ", text)
    typed = re.sub(r"-p pytest_ollama_perf\.plugin .*--rootdir=\S+ ", "", joined)
    quiet = re.sub(r"^  - client-bound:.*\n(?:    .*\n)*", "", typed, flags=re.MULTILINE)
    return re.sub(r"[-=_]{3,}", "---", re.sub(r"\d+(\.\d+)?", "#", quiet)).split()


@pytest.mark.parametrize("name", ["passing", "failing"])
def test_a_screen_is_what_its_command_prints(name: str) -> None:
    shown = words_of(screen(name))
    found = words_of(printed(pytest_part(name)))
    for _ in range(ATTEMPTS - 1):
        found = found if found == shown else words_of(printed(pytest_part(name)))
    assert found == shown


def test_screens_fit_eighty_columns() -> None:
    for name in ("passing", "failing"):
        assert max(map(len, screen(name).splitlines())) <= 80


def test_the_two_setup_commands_are_one_line_each() -> None:
    setups = [line for line in commands() if line.startswith("python3 -m venv .venv && .venv/bin/pip install -q ")]
    assert [line.rpartition("&& ")[2].split()[0] for line in setups] == [".venv/bin/pytest", ".venv/bin/pytest"]
