"""The Markdown for pull requests and job summaries, and the annotations beside it."""

from __future__ import annotations

import re

import msgspec
import pytest
from document_makers import META, document_of, many
from hypothesis import given
from hypothesis import strategies as st
from report_makers import load, result, row, sample

from pytest_ollama_perf.core.verdict import Hint, HintCode, Problem, ProblemCode, VerdictStatus
from pytest_ollama_perf.report.document import ReportMeta
from pytest_ollama_perf.report.markdown import (
    MAX_COMMENT_BYTES,
    escape_inline,
    format_annotation,
    format_code_block,
    format_comment,
    format_markdown,
)

BROKEN = result(
    VerdictStatus.BROKEN,
    "tps 84.1 /s, limit >= 150 /s: 44 % below",
    loads=[load([sample(0), sample(1)])],
    rows=(
        row("tps", status=VerdictStatus.BROKEN, op=">=", bound=150.0, value=84.1),
        row(
            "ttft",
            "p50",
            status=VerdictStatus.REGRESSED,
            value=0.231,
            baseline=0.182,
            change=0.269,
            margin=0.2,
            gating=False,
        ),
    ),
    problems=(Problem(code=ProblemCode.SHORT_OUTPUTS, text="2 answers ended early", invalidates=False),),
    hints=(Hint(code=HintCode.SLOTS, text="OLLAMA_NUM_PARALLEL is probably 1"),),
    changed=("ollama 0.32.10 -> 0.32.15",),
    accept='pytest-ollama-perf accept test_chat_speed --why "..."',
)


def test_a_failing_test_is_told_whole():
    fine = result(loads=[load([sample(0)])], test="tests/test_chat.py::test_fine")
    assert format_comment(document_of(fine, BROKEN)).decode() == WHOLE


WHOLE = r"""## ❌ Performance: 1 ok, 1 broken

ollama 0.32.15, llama3.2:3b Q4\_K\_M

| | test | verdict | numbers |
| --- | --- | --- | --- |
| ❌ | tests/test\_chat.py::test\_chat\_speed | broken | tps 110 /s, ttft p50 200 ms, latency p50 300 ms, throughput 73.3 /s, error\_rate 0 % |
| ✅ | tests/test\_chat.py::test\_fine | ok | tps 110 /s, ttft p50 200 ms, latency p50 300 ms, throughput 36.7 /s, error\_rate 0 % |

<details open>
<summary>❌ tests/test_chat.py::test_chat_speed: broken</summary>

**tps 84.1 /s, limit &gt;= 150 /s: 44 % below**

- short outputs: 2 answers ended early

| number | now | limit or baseline | change | margin | verdict |
| --- | --: | --: | --: | --: | --- |
| tps | 84.1 /s | &gt;= 150 /s |  |  | broken |
| ttft p50 | 231 ms | 182 ms | +26.9 % | 20 % | regressed (not gating) |

- changed since the baseline: ollama 0.32.10 -&gt; 0.32.15
- hint: OLLAMA\_NUM\_PARALLEL is probably 1

To accept:

```text
pytest-ollama-perf accept test_chat_speed --why "..."
```

</details>

<details>
<summary>✅ tests/test_chat.py::test_fine: ok</summary>

**every limit is met**


</details>
"""  # noqa: E501


MANY = many(300, requests=2)


def test_a_session_without_loads_says_so():
    meta = ReportMeta(plugin_version="1", started_at=0.0, aborted="interrupted (Ctrl-C)")
    assert format_comment(document_of(meta=meta)).decode() == (
        "## ✅ Performance: no test generated a load\n\nThe session ended early: interrupted \\(Ctrl-C\\)\n"
    )


@pytest.mark.parametrize("limit", [2_000, 20_000, MAX_COMMENT_BYTES])
def test_the_size_is_bounded_and_what_is_lost_is_counted(limit):
    text = format_markdown(MANY, limit).decode()
    assert len(text.encode()) <= limit
    assert len(text.encode()) > limit / 3
    assert "300 regressed" in text.splitlines()[0]
    shown = len(re.findall(r"^\| ❌ ", text, re.MULTILINE))
    told = text.count("<details open>")
    assert text.count("</details>") == told
    assert f"... and {300 - shown} more tests: the JSON and HTML reports have everything." in text or shown == 300
    assert f"... and details of {300 - told} more tests: the JSON and HTML reports have everything." in text


def test_what_failed_is_kept_before_what_passed():
    passed = tuple(msgspec.structs.replace(test, verdict=VerdictStatus.OK) for test in MANY.tests)
    broken = document_of(BROKEN).tests
    text = format_markdown(msgspec.structs.replace(MANY, tests=(*passed, *broken)), 5_000).decode()
    assert "<summary>❌ tests/test_chat.py::test_chat_speed: broken</summary>" in text


HOSTILE = (
    "<script>alert(1)</script>",
    "| a | b |",
    "[x](http://evil.example)",
    "![x](http://evil.example/x.png)",
    "@everyone and #1",
    "`code` ~~gone~~ **bold**",
    "</details>",
    "a\n\n## heading",
    "<!-- ",
)


@pytest.mark.parametrize("text", HOSTILE)
def test_text_from_outside_stays_text(text):
    made = result(
        VerdictStatus.BROKEN,
        text,
        loads=[],
        test=text,
        hints=(Hint(code=HintCode.SLOTS, text=text),),
        changed=(text,),
        accept=text,
    )
    lines = format_comment(document_of(made)).decode().splitlines()
    assert sum(line.startswith("## ") for line in lines) == 1
    assert sum("</details>" in line for line in lines) == 1 + (text == "</details>")  # once in the block of the command
    table = [line for line in lines[: lines.index("To accept:")] if line.startswith("|")]
    assert {len(re.findall(r"(?<!\\)\|", line)) for line in table} == {5}
    # What stands in <summary> is HTML, not Markdown; what stands in the block of the command is neither.
    outside = "\n".join(line for line in lines[: lines.index("To accept:")] if not line.startswith("<summary>"))
    assert "<script" not in outside
    assert "](" not in outside
    assert "@everyone" not in outside


@given(st.text(max_size=60))
def test_inline_text_holds_no_markup_and_no_line_end(text):
    shown = escape_inline(text)
    assert "\n" not in shown
    assert not re.search(r"(?<!\\)[`*_\[\]|~]", shown)
    assert re.sub(r"<!-- -->", "", shown).count("<") == 0


@given(st.text(alphabet="`ab \n", max_size=60))
def test_no_text_ends_its_block(text):
    fence, *inside, last = format_code_block(text).split("\n")
    assert last == fence.removesuffix("text")
    assert not any(line.strip().startswith(last) for line in inside)


def test_a_failure_is_annotated_at_its_line():
    assert format_annotation(BROKEN, "tests/test_chat.py", 12) == (
        "::error file=tests/test_chat.py,line=12,title=broken%3A tests/test_chat.py%3A%3Atest_chat_speed"
        "::tps 84.1 /s, limit >= 150 /s: 44 %25 below%0Ahint: OLLAMA_NUM_PARALLEL is probably 1"
    )


@given(st.text(max_size=60), st.text(max_size=20))
def test_no_text_becomes_a_command_of_its_own(text, file):
    shown = format_annotation(
        result(VerdictStatus.BROKEN, text, loads=[], test=text, hints=(Hint(code=HintCode.SLOTS, text=text),)),
        file,
        None,
    )
    assert len(shown.splitlines()) == 1
    head, _, _ = shown.removeprefix("::error ").partition("::")
    assert [part.partition("=")[0] for part in head.split(",")] == ["file", "title"]


def test_the_document_says_which_version_wrote_it():
    assert document_of().plugin_version == META.plugin_version
