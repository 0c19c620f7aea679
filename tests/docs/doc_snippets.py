"""The fenced blocks of the documentation, in the order in which a reader meets them."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

DOCS = Path(__file__).parents[2] / "docs"
PAGES = tuple(sorted(path for path in DOCS.rglob("*.md") if path.name != "decisions.md"))

_FENCE = re.compile(
    r"(?:<!-- not run: (?P<why>[^\n]+) -->\n)?(?:<!-- file: (?P<file>[^\n]+) -->\n)?"
    r"^```(?P<language>[^\n]*)\n(?P<text>.*?)^```$",
    re.MULTILINE | re.DOTALL,
)
_GENERATED = re.compile(r"^<!-- generated: .*?^<!-- end -->$", re.MULTILINE | re.DOTALL)
_NAME = re.compile(r"# (?P<name>[\w./-]*\.\w+)")


@dataclass(frozen=True)
class Block:
    """One fenced block. ``name`` is the file that its first line names, or ``file`` where its language has no comments;
    ``why`` the reason not to run it."""

    page: str
    line: int
    language: str
    text: str
    why: str
    file: str

    @property
    def name(self) -> str:
        found = _NAME.fullmatch(self.text.partition("\n")[0])
        return self.file or (found["name"] if found else "")

    @property
    def where(self) -> str:
        return f"{self.page}:{self.line}"


@dataclass(frozen=True)
class Command:
    """A line behind ``$``, and what it prints as far as the page shows that."""

    line: str
    shown: str

    @property
    def words(self) -> list[str]:
        return shlex.split(self.line, comments=True)


def blocks(page: Path) -> list[Block]:
    """Return the fenced blocks of ``page`` without directives of the site and generated sections."""
    source = _GENERATED.sub(lambda match: "\n" * match[0].count("\n"), page.read_text(encoding="utf-8"))
    found = [
        Block(
            str(page.relative_to(DOCS)),
            source.count("\n", 0, one.start()) + 1,
            one["language"],
            one["text"],
            one["why"] or "",
            one["file"] or "",
        )
        for one in _FENCE.finditer(source)
    ]
    return [block for block in found if not block.language.startswith("{")]


def every(language: str) -> list[Block]:
    """Return the blocks of one language on every page."""
    return [block for page in PAGES for block in blocks(page) if block.language == language]


def commands(block: Block) -> list[Command]:
    """Return the commands of a console block."""
    parts = re.split(r"^\$ ", block.text, flags=re.MULTILINE)
    assert not parts[0].strip(), f"{block.where}: a console block begins with $"
    return [Command(*(part.partition("\n")[::2])) for part in parts[1:]]


def masked(text: str) -> list[str]:
    """Return the words of a screen: numbers, hashes, sparklines and rules masked, notes of a busy machine left out."""
    text = re.sub(r"^  - client-bound:.*\n(?:    .*\n)*", "", text, flags=re.MULTILINE)
    text = re.sub(r"\b[0-9a-f]{8,}\b", "#", text)
    text = re.sub(r"[-+]?\d+(\.\d+)?", "#", text)
    text = re.sub(r"[▁-█]+", "#", text)
    return re.sub(r"[-=_]{3,}", "---", text).split()


def missing(shown: str, printed: str) -> str:
    """Return the first part of ``shown``, between lines of ``...``, that ``printed`` lacks; empty where it has all."""
    have = " ".join(masked(printed))
    at = 0
    for part in re.split(r"^\.\.\.$", shown, flags=re.MULTILINE):
        words = " ".join(masked(part))
        found = have.find(words, at)
        if found < 0:
            return part.strip()
        at = found + len(words)
    return ""
