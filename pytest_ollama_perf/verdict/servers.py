"""What several servers of one load must share, and which of them did not answer."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from pytest_ollama_perf.run import Fingerprint, Run
from pytest_ollama_perf.summary import Summary
from pytest_ollama_perf.text import inert
from pytest_ollama_perf.verdict.epoch import changes
from pytest_ollama_perf.verdict.wording import count
from pytest_ollama_perf.verdict.words import Problem

_SAME = ("model digest", "num_ctx", "meaning of the counters")
"""What makes one number of all servers meaningless where it differs; other differences are only named."""


def down(run: Run, summary: Summary) -> Iterator[Problem]:
    """A server that did not answer before the load. Its requests were sent and failed, unless it was left out."""
    for url, facts in run.servers.items():
        if not facts.down:
            continue
        mine = [sample for sample in run.measured if sample.url == url]
        failed = sum(not sample.ok for sample in mine)
        what = f"{failed} of its {count(len(mine), 'request')} failed" if mine else "left out of the load"
        why = inert(facts.down.partition(";")[0], 200)
        text = f"{inert(url, 200)} was down before the load: {what} ({why})"
        yield Problem(name="server down", text=text, spoils=False)


def unlike(run: Run, summary: Summary) -> Iterator[Problem]:
    """Servers that differ: their numbers are not those of one thing."""
    known = {url: facts.fingerprint for url, facts in run.servers.items() if not facts.down}
    if len(known) < 2:
        return
    first, *others = known
    for url in others:
        yield from _apart(first, url, known)


def _apart(first: str, url: str, known: Mapping[str, Fingerprint]) -> Iterator[Problem]:
    found = changes(known[first], known[url])
    apart = [change for change in found if change.name in _SAME]
    if not found:
        return
    told = ", ".join(f"{change.name} {change.before} there, {change.after} here" for change in apart or found)
    text = f"{inert(url, 200)} is not like {inert(first, 200)}: {told}"
    yield Problem(name="servers differ", text=text, spoils=bool(apart))
