"""Find overused phrases in the text that people read: documents, docstrings, comments, help and messages.

``python tools/check_language.py`` lists every match and exits with 1 if there is one. ``--summary`` counts per file.
Code in Markdown and quoted code in docstrings is not checked.
"""

from __future__ import annotations

import argparse
import ast
import io
import re
import subprocess
import sys
import tokenize
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PHRASES = Path(__file__).with_name("overused_phrases.txt")
CHECKED = (
    "*.md",
    ".ci/run",
    ".github/**",
    "pyproject.toml",
    "tox.ini",
    "pytest_ollama_perf/**",
    "docs/**",
    "examples/**",
    "benchmarks/**",
    "tools/*.py",
)
ALLOWED = {("pytest_ollama_perf/loadgen/prompts.py", "bear")}
"""Matches that are no prose: the words of synthetic prompts."""
MARKUP = {".html", ".css", ".js", ".j2"}
NAME = re.compile(r"[\w./:%-]*")
INLINE_CODE = re.compile(r"(`+)(?!`).+?(?<!`)\1(?!`)", re.DOTALL)
FENCE = re.compile(r"^( *)(`{3,}|~{3,}).*?^\1\2`*$", re.DOTALL | re.MULTILINE)


@dataclass(frozen=True)
class Phrase:
    """A pattern to avoid and what to write in its place."""

    pattern: re.Pattern[str]
    better: str


@dataclass(frozen=True)
class Match:
    """A phrase that was found."""

    path: str
    line: int
    text: str
    better: str

    def __str__(self) -> str:
        return f"{self.path}:{self.line}: '{self.text}': write {self.better}"


def read_phrases(path: Path = PHRASES) -> list[Phrase]:
    """Read the list of phrases."""
    lines = [line for line in path.read_text(encoding="utf-8").splitlines() if line and not line.startswith("#")]
    pairs = [line.split("\t") for line in lines]
    return [Phrase(_compile(pattern), better) for pattern, better in pairs]


def _compile(pattern: str) -> re.Pattern[str]:
    """Compile a pattern so that its words may be on two lines; a look-behind keeps its single blank."""
    spaced = re.sub(r"(\(\?<!.*?\))| ", lambda match: match[1] or r"\s+", pattern)
    return re.compile(spaced, re.IGNORECASE | re.MULTILINE)


def find_phrases(path: str, source: str, phrases: list[Phrase]) -> list[Match]:
    """Find the phrases in the text of one file."""
    found = [
        Match(path, line + text.count("\n", 0, match.start()), " ".join(match[0].split()), phrase.better)
        for line, text in read_texts(path, source)
        for phrase in phrases
        for match in phrase.pattern.finditer(text)
        if (path, match[0]) not in ALLOWED
    ]
    return sorted(found, key=lambda match: match.line)


def read_texts(path: str, source: str) -> Iterator[tuple[int, str]]:
    """Yield the line number and the content of every text in a file, with code blanked out."""
    if path.endswith(".py"):
        yield from read_comments(source)
        yield from ((line, blank_code(text)) for line, text in read_strings(source))
    else:
        yield 1, source if Path(path).suffix in MARKUP else blank_code(source)


def read_comments(source: str) -> Iterator[tuple[int, str]]:
    """Yield runs of comment lines, each as one text."""
    lines: dict[int, str] = {}
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            lines[token.start[0]] = token.string.lstrip("# ")
    for number, text in lines.items():
        if number - 1 not in lines:
            block = [text]
            while (number + len(block)) in lines:
                block.append(lines[number + len(block)])
            yield number, blank_code("\n".join(block))


def read_strings(source: str) -> Iterator[tuple[int, str]]:
    """Yield string literals that are not a single name; placeholders of f-strings become ``{}``."""
    tree = ast.parse(source)
    parts = {id(part) for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for part in node.values}
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            yield node.lineno, "".join(_text_of(part) for part in node.values)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in parts:
            yield node.lineno, "" if NAME.fullmatch(node.value) else node.value


def _text_of(part: ast.expr) -> str:
    return part.value if isinstance(part, ast.Constant) and isinstance(part.value, str) else "{}"


def blank_code(text: str) -> str:
    """Replace fenced blocks and inline code by blanks, keeping the line breaks."""
    return INLINE_CODE.sub(_blank, FENCE.sub(_blank, text))


def _blank(match: re.Match[str]) -> str:
    return "``" + re.sub(r"[^\n]", "", match[0])


def list_files() -> list[str]:
    """List the checked files that git tracks."""
    command = ["git", "ls-files", "-z", "--", *CHECKED]
    listed = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    return sorted(name for name in set(listed.split("\0")) if name and not name.endswith((".svg", ".png")))


def check_files(names: list[str]) -> list[Match]:
    """Find the phrases in the named files."""
    phrases = read_phrases()
    sources = ((name, (ROOT / name).read_text(encoding="utf-8")) for name in names)
    return [match for name, source in sources for match in find_phrases(name, source, phrases)]


def print_summary(matches: list[Match]) -> None:
    """Print the number of matches per file, the largest first."""
    for path, count in Counter(match.path for match in matches).most_common():
        print(f"{count:5} {path}")


def main(arguments: list[str] | None = None) -> int:
    """Check the tracked files, or those that are named."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("files", nargs="*", help="check these files or directories only")
    parser.add_argument("--summary", action="store_true", help="count matches per file")
    parser.add_argument("--report-only", action="store_true", help="exit with 0 even if there are matches")
    options = parser.parse_args(arguments)
    wanted = tuple(str(Path(name)) for name in options.files)
    names = [
        name
        for name in list_files()
        if not wanted or name in wanted or name.startswith(tuple(f"{each}/" for each in wanted))
    ]
    matches = check_files(names)
    print_summary(matches) if options.summary else print(*matches, sep="\n", end="\n" if matches else "")
    print(f"{len(matches)} overused phrases in {len(names)} files", file=sys.stderr)
    return 0 if options.report_only or not matches else 1


if __name__ == "__main__":
    sys.exit(main())
