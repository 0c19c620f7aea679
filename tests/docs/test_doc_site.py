"""The site builds without a warning, needs no network, and its reference has every word of the code."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from doc_snippets import DOCS, PAGES

sys.path.insert(0, str(DOCS))

import generated

from pytest_ollama_perf import cli
from pytest_ollama_perf.client.response import UPSTREAM_HEADERS
from pytest_ollama_perf.config import OPTIONS
from pytest_ollama_perf.config.markers import MARKERS
from pytest_ollama_perf.core.sample import Outcome
from pytest_ollama_perf.core.verdict import HintCode, ProblemCode, VerdictStatus
from pytest_ollama_perf.metrics import METRICS
from pytest_ollama_perf.simulator.url import URL_PARAMETERS


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    for package in ("sphinx", "myst_parser", "furo"):
        pytest.importorskip(package)
    out = tmp_path_factory.mktemp("site")
    command = [
        sys.executable,
        "-m",
        "sphinx",
        "-W",
        "--keep-going",
        "-q",
        "-d",
        str(out / ".trees"),
        str(DOCS),
        str(out),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ, "NO_COLOR": "1"})
    assert done.returncode == 0, done.stdout + done.stderr
    return out


def test_the_site_builds_without_a_warning(site: Path) -> None:
    for page in PAGES:
        assert (site / page.relative_to(DOCS).with_suffix(".html")).is_file()
    assert (site / "contract.schema.json").is_file()


def test_the_site_asks_no_other_server_for_anything(site: Path) -> None:
    loads = re.compile(r"""<(?:script|img|iframe|link(?! rel="canonical"))\b[^>]*(?:src|href)="(?:https?:)?//[^"]*""")
    for page in site.rglob("*.html"):
        assert not loads.findall(page.read_text(encoding="utf-8")), page.name
    for sheet in site.rglob("*.css"):
        found = re.findall(r"url\(\s*['\"]?(?:https?:)?//|@import\s+['\"]", sheet.read_text(encoding="utf-8"))
        assert not found, sheet.name


def _text(page: str) -> str:
    return (DOCS / page).read_text(encoding="utf-8")


def test_every_word_of_the_code_stands_in_the_reference() -> None:
    page, options = _text("reference/marker.md"), _text("reference/options.md")
    names = {name for marker in MARKERS.values() for name in marker.list_option_names()}
    assert sorted(name for name in names if f"`{name}`" not in page) == []
    assert [each.flag for each in OPTIONS if f"`{each.flag}" not in options or f"`{each.key}`" not in options] == []
    assert [name for name in METRICS if f"`{name}`" not in _text("reference/metrics.md")] == []
    assert [name for name in URL_PARAMETERS if f"`{name}`" not in _text("reference/simulator.md")] == []
    assert [name for name in cli.COMMANDS if f"## {name}\n" not in _text("reference/commands.md")] == []


def test_every_definition_of_the_schema_stands_in_the_reference() -> None:
    schema = json.loads((DOCS / "report.schema.json").read_text(encoding="utf-8"))
    page = _text("reference/report.md")
    assert [name for name in schema["$defs"] if f"### {name}\n" not in page] == []


def test_everything_with_a_code_has_a_description() -> None:
    assert all(each.description for kind in (HintCode, Outcome, ProblemCode, VerdictStatus) for each in kind)


FILES = generated.build_files()


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_generated_files_are_up_to_date(path: Path) -> None:
    if path.name == "commands.md" and sys.version_info >= (3, 13):
        pytest.skip("argparse formats help differently since Python 3.13")
    assert path.read_text(encoding="utf-8") == FILES[path], "out of date; run: python docs/generated.py"


def test_every_section_that_can_be_generated_stands_on_a_page() -> None:
    used = {name for page in PAGES for name in generated.MARKED.findall(page.read_text(encoding="utf-8"))}
    assert used == set(generated.SECTIONS)
    assert all(generated.SECTIONS[name]().strip() for name in used)


def test_defaults_in_the_reference_are_those_of_the_code() -> None:
    rows = dict(re.findall(r"^\| `(\w+)` \| .* \| (.*?) \| .* \|$", generated.load_arguments(), re.MULTILINE))
    assert (rows["num_predict"], rows["num_ctx"], rows["endpoint"]) == ("`64`", "the server's setting", "`generate`")
    assert rows["timeout"] == "`connect` 10, `first_token` 600, `idle` 60, `total` 1800"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(DOCS)))
def test_lines_of_a_page_fit_its_editor(page: Path) -> None:
    written = generated.MARKED.sub("", page.read_text(encoding="utf-8"))
    long = [line for line in written.splitlines() if len(line) > 130]
    assert [line for line in long if not line.startswith(("|", "$", "llama3"))] == []


def test_the_headers_that_name_an_upstream_are_all_named() -> None:
    page = (DOCS / "howto/cluster.md").read_text(encoding="utf-8").lower()
    assert [name for name in UPSTREAM_HEADERS if f"`{name.decode()}`" not in page] == []
