"""Contract files as pytest collects them: a file, its models, their loads, and one item for each clause."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from pytest_ollama_perf.contracts.clauses import Clause, ClauseGroup, SharedLoad
    from pytest_ollama_perf.session import Session


PYPROJECT = "pyproject.toml"
CONTRACT_TABLE = ("tool", "pytest_ollama_perf")


def collect_file(path: Path, parent: pytest.Collector, perf_session: Session) -> ContractFile | None:
    """Return the collector of ``path`` where that is a contract, or a pyproject.toml that holds one."""
    if path.name == PYPROJECT and not _holds_contract(path):
        return None
    contract = ContractFile.from_parent(parent, path=path)
    contract.ollama_session = perf_session
    return contract


def _holds_contract(path: Path) -> bool:
    """Whether the file has the table; what cannot be read as TOML is left to those it belongs to."""
    text = path.read_text(encoding="utf-8", errors="replace")
    if CONTRACT_TABLE[-1] not in text:
        return False
    from pytest_ollama_perf.contracts import toml
    from pytest_ollama_perf.core import ConfigError

    try:
        tool = toml.parse_toml(text, path.name).get(CONTRACT_TABLE[0])
    except ConfigError:
        return False
    return isinstance(tool, dict) and CONTRACT_TABLE[1] in tool


class ContractFile(pytest.File):
    """A file of clauses."""

    ollama_session: Session

    def collect(self) -> Iterator[pytest.Collector]:
        """Yield a collector for each model."""
        for model, groups in groupby(self._parse_groups(), key=lambda group: group.model):
            yield ModelCollector.from_parent(self, name=model, groups=list(groups), perf_session=self.ollama_session)

    def _parse_groups(self) -> tuple[ClauseGroup, ...]:
        from pytest_ollama_perf.contracts.parse import parse_contract
        from pytest_ollama_perf.core import ConfigError

        prefix = CONTRACT_TABLE if self.path.name == PYPROJECT else ()
        try:
            return parse_contract(
                self._read_text(),
                self.nodeid,
                prefix=prefix,
                folder=self.path.parent,
                settings=self.ollama_session.settings,
            )
        except (ConfigError, OSError) as error:
            raise self.CollectError(str(error)) from None

    def _read_text(self) -> str:
        from pytest_ollama_perf.core import ConfigError

        content = self.path.read_bytes()
        try:
            return content.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            line = content.count(b"\n", 0, error.start) + 1
            raise ConfigError(f"{self.nodeid}:{line}: not UTF-8; save the file with that encoding") from None


class ModelCollector(pytest.Collector):
    """The loads of one model."""

    def __init__(self, *, groups: Iterable[ClauseGroup], perf_session: Session, **keywords: Any) -> None:
        super().__init__(**keywords)
        self._parse_groups, self._session = groups, perf_session

    def collect(self) -> Iterator[pytest.Collector]:
        """Yield a collector for each load."""
        for group in self._parse_groups:
            yield LoadCollector.from_parent(self, name=group.name, group=group, perf_session=self._session)


class LoadCollector(pytest.Collector):
    """The clauses that share one load."""

    def __init__(self, *, group: ClauseGroup, perf_session: Session, **keywords: Any) -> None:
        super().__init__(**keywords)
        self._group, self._session = group, perf_session

    def collect(self) -> Iterator[pytest.Item]:
        """Yield an item for each clause."""
        from pytest_ollama_perf.contracts.clauses import SharedLoad

        shared = SharedLoad(self._session, self.nodeid, self._group)
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
        """Return the location of the clause and the headline of its failure."""
        group = self.ollama_shared.group
        line = (self.clause.line or group.line) - 1
        return self.path, line, f"{group.model}, {group.name}: {self.clause.name}"
