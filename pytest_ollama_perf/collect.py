"""Contract files as pytest collects them: a file, its models, their loads, and one item for each clause."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from pytest_ollama_perf.contract.clause import Clause
    from pytest_ollama_perf.contract.group import Group
    from pytest_ollama_perf.contract.shared import SharedLoad
    from pytest_ollama_perf.room import Room

PYPROJECT = "pyproject.toml"
TABLE = ("tool", "pytest_ollama_perf")


def collect_file(path: Path, parent: pytest.Collector, room: Room) -> ContractFile | None:
    """Return the collector of ``path`` where that is a contract, or a pyproject.toml that holds one."""
    if path.name == PYPROJECT and not _holds_contract(path):
        return None
    contract = ContractFile.from_parent(parent, path=path)
    contract.room = room
    return contract


def _holds_contract(path: Path) -> bool:
    """Whether the file has the table; what cannot be read as TOML is left to those it belongs to."""
    text = path.read_text(encoding="utf-8", errors="replace")
    if TABLE[-1] not in text:
        return False
    from pytest_ollama_perf.contract import toml
    from pytest_ollama_perf.errors import ConfigError

    try:
        tool = toml.parse(text, path.name).get(TABLE[0])
    except ConfigError:
        return False
    return isinstance(tool, dict) and TABLE[1] in tool


class ContractFile(pytest.File):
    """A file of clauses."""

    room: Room

    def collect(self) -> Iterator[pytest.Collector]:
        """Yield a collector for each model."""
        for model, groups in groupby(self._groups(), key=lambda group: group.model):
            yield Model.from_parent(self, name=model, groups=list(groups), room=self.room)

    def _groups(self) -> tuple[Group, ...]:
        from pytest_ollama_perf.contract.reading import read
        from pytest_ollama_perf.errors import ConfigError

        prefix = TABLE if self.path.name == PYPROJECT else ()
        try:
            text = self.path.read_text(encoding="utf-8-sig")
            return read(text, self.nodeid, prefix=prefix, folder=self.path.parent, settings=self.room.settings)
        except (ConfigError, OSError, UnicodeDecodeError) as error:
            raise self.CollectError(str(error)) from None


class Model(pytest.Collector):
    """The loads of one model."""

    def __init__(self, *, groups: Iterable[Group], room: Room, **keywords: Any) -> None:
        super().__init__(**keywords)
        self._groups, self._room = groups, room

    def collect(self) -> Iterator[pytest.Collector]:
        """Yield a collector for each load."""
        for group in self._groups:
            yield Load.from_parent(self, name=group.name, group=group, room=self._room)


class Load(pytest.Collector):
    """The clauses that share one load."""

    def __init__(self, *, group: Group, room: Room, **keywords: Any) -> None:
        super().__init__(**keywords)
        self._group, self._room = group, room

    def collect(self) -> Iterator[pytest.Item]:
        """Yield an item for each clause."""
        from pytest_ollama_perf.contract.shared import SharedLoad

        shared = SharedLoad(self._room, self.nodeid, self._group)
        for clause in self._group.clauses:
            yield ClauseItem.from_parent(self, name=clause.name, clause=clause, shared=shared)


class ClauseItem(pytest.Item):
    """One clause: passes and fails by itself, on the numbers of the load it shares."""

    def __init__(self, *, clause: Clause, shared: SharedLoad, **keywords: Any) -> None:
        super().__init__(**keywords)
        self.clause, self.ollama_shared = clause, shared

    def runtest(self) -> None:
        """Measure, unless another clause has, and judge."""
        self.ollama_shared.judge(self.clause, self.nodeid)

    def reportinfo(self) -> tuple[Path, int, str]:
        """Return where the clause stands and what heads its failure."""
        group = self.ollama_shared.group
        line = (self.clause.line or group.line) - 1
        return self.path, line, f"{group.model}, {group.name}: {self.clause.name}"
