"""Everything in the repository that is written from the code; ``python docs/generated.py`` writes it again.

A page has tables between lines such as ``<!-- generated: metrics -->`` and ``<!-- end -->``. The JSON schemas and
``config/option_types.py`` are whole files.
"""

from __future__ import annotations

import argparse
import inspect
import json
import os
import re
import textwrap
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any
from unittest import mock

import msgspec
from typed_options import build_option_types

from pytest_ollama_perf import cli, core, plugin
from pytest_ollama_perf.analysis import epochs
from pytest_ollama_perf.analysis.gate_parameters import GATE_PARAMETERS
from pytest_ollama_perf.analysis.limits import list_limit_options
from pytest_ollama_perf.analysis.run_value import POLICIES
from pytest_ollama_perf.config import OPTIONS, Option
from pytest_ollama_perf.config.load_options import JUDGING_OPTIONS, LOAD_OPTIONS, MarkerOption
from pytest_ollama_perf.config.markers import MARKERS
from pytest_ollama_perf.config.report_targets import REPORT_TYPES
from pytest_ollama_perf.contracts import json_schema
from pytest_ollama_perf.contracts.experiments import EXPERIMENT_KINDS
from pytest_ollama_perf.contracts.preconditions import PRECONDITIONS
from pytest_ollama_perf.core.sample import Outcome, Sample
from pytest_ollama_perf.core.verdict import FAILING_STATUSES, HintCode, ProblemCode, VerdictStatus
from pytest_ollama_perf.experiments import experiment_results, results, sweep_points
from pytest_ollama_perf.fixtures import Ollama, Simulators, WarmUp
from pytest_ollama_perf.hooks import specs
from pytest_ollama_perf.metrics import METRICS, STATS
from pytest_ollama_perf.report import document
from pytest_ollama_perf.simulator.faults import FAULT_HELP as FAULTS
from pytest_ollama_perf.simulator.process import RunningSimulator
from pytest_ollama_perf.simulator.url import URL_PARAMETERS
from pytest_ollama_perf.store import directory, record

DOCS = Path(__file__).parent
ROOT = DOCS.parent
MARKED = re.compile(r"^<!-- generated: (?P<name>[a-z_]+) -->$(?:.*?^<!-- end -->$)?", re.MULTILINE | re.DOTALL)


def fill_page(text: str) -> str:
    """Return the page ``text`` with every table up to date; ``KeyError`` if there is none of that name."""
    return MARKED.sub(
        lambda match: f"{match[0].partition(chr(10))[0]}\n\n{SECTIONS[match['name']]().strip()}\n\n<!-- end -->", text
    )


def build_files() -> dict[Path, str]:
    """Return every generated file, and every page with generated tables, with its content."""
    pages = {path: path.read_text(encoding="utf-8") for path in sorted(DOCS.rglob("*.md"))}
    filled = {path: fill_page(text) for path, text in pages.items() if MARKED.search(text)}
    return {
        **filled,
        DOCS / "contract.schema.json": json_schema.build_schema().decode(),
        DOCS / "report.schema.json": _build_report_schema(DOCS / "report.schema.json"),
        ROOT / "pytest_ollama_perf" / "config" / "option_types.py": build_option_types(),
    }


def _build_report_schema(published: Path) -> str:
    """Return the schema; the published text if only the order of alternatives differs, as msgspec's versions do."""
    old, new = published.read_text(encoding="utf-8"), document.build_report_schema().decode()
    return old if json.loads(old, object_hook=_sort_any_of) == json.loads(new, object_hook=_sort_any_of) else new


def _sort_any_of(value: dict[str, Any]) -> dict[str, Any]:
    return {key: sorted(each, key=json.dumps) if key == "anyOf" else each for key, each in value.items()}


def table(heads: Iterable[str], rows: Iterable[Iterable[object]]) -> str:
    """Return a Markdown table."""
    lines = [list(heads)]
    lines += [["---"] * len(lines[0]), *([_cell(cell) for cell in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _cell(value: object) -> str:
    return " ".join(str(value).split()).replace("|", "\\|")


def code(value: object) -> str:
    """Return ``value`` as inline code."""
    return f"`{value}`"


def said(text: str) -> str:
    """Return a docstring as Markdown."""
    return inspect.cleandoc(text or "").replace("``", "`")


def load_arguments() -> str:
    """Return the arguments that define the load and judge it."""
    return _option_table((*LOAD_OPTIONS.values(), *JUDGING_OPTIONS.values()))


def _option_table(options: Iterable[MarkerOption]) -> str:
    rows = [(code(each.name), each.type.description, each.shown_default or "-", each.help) for each in options]
    return table(("argument", "type", "default", "description"), rows)


def limit_table() -> str:
    """Return the limit arguments of every metric."""
    rows = []
    for metric in METRICS.values():
        words = [word for word in list_limit_options() if re.fullmatch(rf"(min|max)_((\w+?)_)?{metric.name}", word)]
        own = [word for word in words if word.split("_", 1)[1] in {metric.name, *(f"{s}_{metric.name}" for s in STATS)}]
        rows.append((code(metric.name), metric.unit.value, ", ".join(map(code, own))))
    return table(("metric", "unit", "words"), rows)


def experiment_arguments() -> str:
    """Return the arguments that the other markers have in addition."""
    markers = (marker for marker in MARKERS.values() if marker.own)
    return "\n\n".join(
        f"### {marker.name}\n\n{marker.description} {marker.inherited_help} In addition:\n\n{_option_table(marker.own)}"
        for marker in markers
    )


def options() -> str:
    """Return every option with its ini key."""
    rows = [(code(_flag(each)), code(each.key), each.ini_type, each.help.replace("%%", "%")) for each in OPTIONS]
    return table(("option", "ini key", "ini type", "meaning"), rows)


def _flag(option: Option) -> str:
    return f"{option.flag}={option.metavar}" if option.metavar else option.flag


def report_types() -> str:
    """Return the types of reports."""
    return table(("type", "what it is"), [(code(kind), text) for kind, text in REPORT_TYPES.items()])


def metrics() -> str:
    """Return the metrics."""
    rows = [
        (code(each.name), each.unit.value, each.better.value, each.shape.value, each.help) for each in METRICS.values()
    ]
    return table(("metric", "unit", "better", "shape", "what it is"), rows)


def policies() -> str:
    """Return how each number is compared with history."""
    rows = []
    for one in POLICIES.values():
        if not one.stat or one.metric.name == "ttft":
            gating = "yes" if one.gating else "on request"
            rows.append((code(one.name), f"{one.margin:.0%}", f"{one.prior_sd:.0%}", gating, one.least_requests))
    return table(("number", "margin", "expected sd between runs", "gates", "least requests a run"), rows)


def constants() -> str:
    """Return the constants of the gate."""
    rows = [(code(each.name), f"{each.value:g}", each.meaning, each.origin) for each in GATE_PARAMETERS.describe()]
    return table(("constant", "value", "meaning", "origin"), rows)


def generations() -> str:
    """Return the ranges of server versions whose counters mean the same."""
    return table(("versions", "what differs"), epochs.METRIC_GENERATION_HELP.items())


def outcomes() -> str:
    """Return how a request can end."""
    return table(("outcome", "meaning"), [(code(one.value), one.description) for one in Outcome])


def verdicts() -> str:
    """Return the words of verdicts."""
    return table(
        ("word", "fails the test", "meaning"),
        [(code(word.value), _fails(word), word.description) for word in VerdictStatus],
    )


def _fails(word: VerdictStatus) -> str:
    if word in FAILING_STATUSES:
        return "yes"
    return "with `--ollama-strict`" if word in {VerdictStatus.UNSURE, VerdictStatus.INCOMPARABLE} else "no"


def problems() -> str:
    """Return the problems that a measurement can have."""
    return table(("code", "problem", "meaning"), _list_problems(of_doctor=False))


def doctor_problems() -> str:
    """Return what ``doctor`` can find."""
    return table(("code", "finding", "meaning"), _list_problems(of_doctor=True))


def hints() -> str:
    """Return the hints that a verdict can give."""
    return table(("code", "given when"), [(code(one.value), one.description) for one in HintCode])


def _list_problems(*, of_doctor: bool) -> list[tuple[str, str, str]]:
    return [(code(one.value), one.label, one.description) for one in ProblemCode if one.is_doctor is of_doctor]


def fixtures() -> str:
    """Return the fixtures."""
    rows = []
    for name, found in vars(plugin).items():
        if type(found).__name__ == "FixtureFunctionDefinition" or hasattr(found, "_pytestfixturefunction"):
            rows.append((code(name), said(found.__doc__ or "")))
    return table(("fixture", "what it gives"), rows)


def api() -> str:
    """Return the classes that a test holds in its hands."""
    kinds = (
        Ollama,
        results.LoadResult,
        results.LoadMetrics,
        sweep_points.SweepResult,
        sweep_points.CurveResult,
        sweep_points.SweepPointResult,
        experiment_results.MaxConcurrencyResult,
        experiment_results.ColdStartResult,
        experiment_results.ABResult,
        experiment_results.ABChange,
        WarmUp,
        Simulators,
        RunningSimulator,
    )
    return "\n\n".join(_class(kind) for kind in kinds)


def _class(kind: type) -> str:
    rows = []
    for name, member in vars(kind).items():
        if name.startswith("_") and name != "__call__":
            continue
        if isinstance(member, property) or inspect.isfunction(member):
            rows.append((code(_signature(name, member)), said(member.__doc__ or "")))
    body = f"\n\n{table(('member', 'what it does'), rows)}" if rows else ""
    return f"### {kind.__name__}\n\n{said(kind.__doc__ or '')}{body}"


def _signature(name: str, member: Any) -> str:
    if isinstance(member, property):
        return name
    parameters = [each for each in inspect.signature(member).parameters.values() if each.name != "self"]
    bare = [each.replace(annotation=inspect.Parameter.empty) for each in parameters]
    shown = str(inspect.Signature(bare))
    return shown if name == "__call__" else f"{'await ' if inspect.iscoroutinefunction(member) else ''}{name}{shown}"


def sample_fields() -> str:
    """Return the fields of a sample."""
    rows = [(code(field.name), _type(field.type)) for field in msgspec.structs.fields(Sample)]
    return f"{said(Sample.__doc__ or '')}\n\n{table(('field', 'type'), rows)}"


def _type(kind: object) -> str:
    text = kind.__name__ if isinstance(kind, type) else str(kind)
    return code(re.sub(r"pytest_ollama_perf\.\w+\.", "", text))


def commands() -> str:
    """Return the help of every subcommand."""
    with mock.patch.dict(os.environ, COLUMNS="80", NO_COLOR="1"):
        found = next(each for each in cli.build_parser()._actions if isinstance(each, argparse._SubParsersAction))
        helps = {name: parser.format_help().strip() for name, parser in found.choices.items()}
    return "\n\n".join(f"## {name}\n\n```text\n{text}\n```" for name, text in helps.items())


def sim_keys() -> str:
    """Return the keys of ``sim:`` URLs."""
    rows = [(code(name), code(key.example), key.help) for name, key in URL_PARAMETERS.items()]
    return table(("key", "example", "meaning"), rows)


def faults() -> str:
    """Return the scripted faults."""
    return table(("fault", "what happens"), [(code(kind.value), text) for kind, text in FAULTS.items()])


def contract_keys() -> str:
    """Return what a contract file may hold in addition to arguments and metrics."""
    parts = []
    for name, kind in EXPERIMENT_KINDS.items():
        gates = [(code(gate_name), code(one.example)) for gate_name, one in kind.own_metrics.items()]
        heading = f'### `[model."...".{name}]`\n\nWords are those of `{kind.marker}`. Its own clauses:'
        parts.append(f"{heading}\n\n{table(('key', 'example'), gates)}")
    return "\n\n".join(parts)


def requirements() -> str:
    """Return the preconditions of contract files."""
    rows = [(code(name), kind.help) for name, kind in PRECONDITIONS.items()]
    return table(("key", "what must hold"), rows)


def report_schema() -> str:
    """Return the types of the JSON report."""
    schema = json.loads((DOCS / "report.schema.json").read_text(encoding="utf-8"))
    return "\n\n".join(_definition(name, each) for name, each in schema["$defs"].items())


def _definition(name: str, schema: Mapping[str, Any]) -> str:
    if "enum" in schema:
        return f"### {name}\n\nOne of {', '.join(map(code, schema['enum']))}."
    required = schema.get("required", ())
    rows = [
        (code(key), _json_type(value), "" if key in required else "may be absent")
        for key, value in schema.get("properties", {}).items()
    ]
    text = said(schema.get("description", ""))
    return f"### {name}\n\n{text}\n\n{table(('key', 'type', ''), rows)}"


def _json_type(schema: Any) -> str:
    if not isinstance(schema, Mapping):
        return "anything"
    if "$ref" in schema:
        name = schema["$ref"].rpartition("/")[2]
        return f"[{name}](#{name.lower()})"
    if "anyOf" in schema:
        return " or ".join(_json_type(each) for each in schema["anyOf"])
    if schema.get("type") == "array":
        return f"list of {_json_type(schema['items'])}" if "items" in schema else "list"
    if isinstance(inner := schema.get("additionalProperties"), Mapping):
        return f"object of {_json_type(inner)}"
    if "enum" in schema:
        return ", ".join(map(code, schema["enum"]))
    kind = schema.get("type", "anything")
    return " or ".join(kind) if isinstance(kind, list) else str(kind)


def store_layout() -> str:
    """Return how a directory store lies on the disk."""
    return f"```text\n{_after_heading(directory.__doc__ or '')}\n```"


def record_layout() -> str:
    """Return what a run record holds."""
    rows = [(code(field.name), _type(field.type)) for field in msgspec.structs.fields(record.RunRecord)]
    return f"{said(_after_heading(record.__doc__ or ''))}\n\n{table(('key', 'type'), rows)}"


def _after_heading(text: str) -> str:
    return textwrap.dedent(text.partition("\n\n")[2]).strip()


def error_tree() -> str:
    """Return the errors as their module draws them."""
    return f"```text\n{_after_heading(core.__doc__ or '')}\n```"


def offered_hooks() -> str:
    """Return every hook that other plugins can implement, with the example of its docstring."""
    found = [(name, hook) for name, hook in vars(specs).items() if name.startswith("pytest_ollama_")]
    return "\n\n".join(f"## `{name}`\n\n{_as_markdown(inspect.cleandoc(hook.__doc__ or ''))}" for name, hook in found)


def _as_markdown(text: str) -> str:
    """Return a docstring with its indented example as a block of code."""
    before, _, rest = text.partition("::\n\n")
    lines = rest.splitlines()
    end = next((at for at, line in enumerate(lines) if line.strip() and not line.startswith("    ")), len(lines))
    example = textwrap.dedent("\n".join(lines[:end])).strip()
    after = "\n".join(lines[end:]).strip()
    return "\n\n".join(filter(None, [f"{said(before)}:", f"```python\n{example}\n```", said(after)]))


SECTIONS: Mapping[str, Callable[[], str]] = {
    "load_arguments": load_arguments,
    "limits": limit_table,
    "experiment_arguments": experiment_arguments,
    "options": options,
    "report_types": report_types,
    "metrics": metrics,
    "policies": policies,
    "constants": constants,
    "generations": generations,
    "outcomes": outcomes,
    "verdicts": verdicts,
    "problems": problems,
    "doctor_problems": doctor_problems,
    "hints": hints,
    "fixtures": fixtures,
    "api": api,
    "sample": sample_fields,
    "commands": commands,
    "sim_keys": sim_keys,
    "faults": faults,
    "contract_keys": contract_keys,
    "requirements": requirements,
    "report_schema": report_schema,
    "store_layout": store_layout,
    "record": record_layout,
    "errors": error_tree,
    "hooks": offered_hooks,
}
"""Every table that a page can ask for."""


def main() -> None:
    """Write every file that is out of date, and print its path."""
    for path, text in build_files().items():
        if not path.is_file() or path.read_text(encoding="utf-8") != text:
            path.write_text(text, encoding="utf-8")
            print(path.relative_to(ROOT))


if __name__ == "__main__":
    main()
