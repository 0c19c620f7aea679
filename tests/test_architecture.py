"""ARCHITECTURE.md says who may import whom; this holds the code to it."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "pytest_ollama_perf"


def layers() -> list[list[str]]:
    """Read the layers from ARCHITECTURE.md, lowest first; rooms of one line may not import each other."""
    text = (ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8")
    block = re.search(r"```layers\n(.*?)```", text, re.DOTALL)
    assert block, "ARCHITECTURE.md has lost its layers"
    return [line.partition("#")[0].split() for line in block[1].splitlines() if line.strip()]


def room(module: str) -> str:
    """Return the room that a module belongs to: the first part below the package."""
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else ""


def imports(path: Path) -> list[str]:
    """Every module of this package that ``path`` imports at run time; imports for type checkers alone do not count."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    skipped = {
        inner
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        for inner in ast.walk(node)
    }
    found: list[str] = []
    for node in ast.walk(tree):
        if node in skipped:
            continue
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("pytest_ollama_perf"):
            base = node.module or ""
            found += [f"{base}.{name.name}" if base == "pytest_ollama_perf" else base for name in node.names]
        if isinstance(node, ast.Import):
            found += [name.name for name in node.names if name.name.startswith("pytest_ollama_perf")]
    return found


MODULES = sorted(path for path in PACKAGE.rglob("*.py") if path.name != "__main__.py")


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_point_to_lower_layers_only(path: Path) -> None:
    height = {name: number for number, names in enumerate(layers()) for name in names}
    own = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    if own == "__init__":
        return
    assert own in height, f"{own} has no layer in ARCHITECTURE.md"
    for module in imports(path):
        other = room(module)
        if other and other != own:
            assert other in height, f"{other} has no layer in ARCHITECTURE.md"
            assert height[other] < height[own], f"{own} (layer {height[own]}) imports {module} (layer {height[other]})"


@pytest.mark.parametrize("name", ["summary", "verdict", "report"])
def test_pure_rooms_have_no_clock_no_network_no_pytest(name: str) -> None:
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
