"""ARCHITECTURE.md lists the layers of the package; these tests check every import."""

from __future__ import annotations

import ast
import graphlib
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "pytest_ollama_perf"


def read_layers() -> list[list[str]]:
    """Read the layers from ARCHITECTURE.md, the lowest first; names on one line may not import each other."""
    text = (ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8")
    block = re.search(r"```layers\n(.*?)```", text, re.DOTALL)
    assert block, "ARCHITECTURE.md has no block of layers"
    return [line.partition("#")[0].split() for line in block[1].splitlines() if line.strip()]


def get_module_name(path: Path) -> str:
    """Return the dotted name of the module in ``path``."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {get_module_name(path): path for path in sorted(PACKAGE.rglob("*.py"))}


def list_imports(path: Path) -> set[str]:
    """Return every module of this package that ``path`` imports, also in functions and under ``TYPE_CHECKING``."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith(PACKAGE.name):
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            found |= {name if name in MODULES else node.module or "" for name in names}
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names if alias.name.startswith(PACKAGE.name)}
    return found - {get_module_name(path)}


def get_top_level_name(module: str) -> str:
    """Return the first part of a module's name below the package; an empty text for the package itself."""
    return module.partition(".")[2].partition(".")[0]


@pytest.mark.parametrize("module", MODULES)
def test_imports_point_to_lower_layers_only(module: str) -> None:
    height = {name: number for number, names in enumerate(read_layers()) for name in names}
    own = get_top_level_name(module)
    if not own:
        return
    assert own in height, f"{own} has no layer in ARCHITECTURE.md"
    for imported in list_imports(MODULES[module]):
        other = get_top_level_name(imported)
        if other and other != own:
            assert other in height, f"{other} has no layer in ARCHITECTURE.md"
            assert height[other] < height[own], f"{module} (layer {height[own]}) imports {imported} ({height[other]})"


def test_no_modules_import_each_other_in_a_circle() -> None:
    try:
        graphlib.TopologicalSorter({module: list_imports(path) for module, path in MODULES.items()}).prepare()
    except graphlib.CycleError as error:
        pytest.fail(f"import circle: {' -> '.join(reversed(error.args[1]))}", pytrace=False)


def test_every_layer_exists() -> None:
    there = {get_top_level_name(module) for module in MODULES} - {""}
    assert {name for names in read_layers() for name in names} == there


@pytest.mark.parametrize("name", ["metrics", "analysis", "report"])
def test_pure_packages_have_no_clock_no_network_no_pytest(name: str) -> None:
    forbidden = {"time", "socket", "httpx", "anyio", "asyncio", "pytest", "subprocess", "random"}
    for path in [*(PACKAGE / name).rglob("*.py"), *PACKAGE.glob(f"{name}.py")]:
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for node in ast.walk(tree):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not forbidden & {each.split(".")[0] for each in names}, f"{path.name} line {node.lineno}"


def test_an_unrelated_pytest_run_imports_nothing_heavy(tmp_path: Path) -> None:
    (tmp_path / "test_nothing.py").write_text(
        "import sys\n"
        "def test_nothing():\n"
        "    heavy = {'scipy', 'numpy', 'httpx', 'anyio', 'rich', 'msgspec', 'uvloop', 'httptools', 'sqlalchemy'}\n"
        "    assert not heavy & set(sys.modules)\n"
        "    assert 'pytest_ollama_perf.plugin' in sys.modules\n",
        encoding="utf-8",
    )
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "pytest_ollama_perf.plugin",
        "-c",
        "/dev/null",
        "test_nothing.py",
    ]
    environment = {"PATH": "", "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
