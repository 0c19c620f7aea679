"""The HTML page: what it says, that it is inert, that it is small, and what a real browser makes of it."""

from __future__ import annotations

import html.parser
import json
import re
import shutil
import subprocess
import threading
from functools import cache
from http.server import BaseHTTPRequestHandler, HTTPServer
from itertools import pairwise

import msgspec
import pytest
from document_makers import MS, document_of, judged, many, past
from report_makers import START, WORKLOAD, load, result, row, sample

from pytest_ollama_perf.core.run import GpuStats, HostStats, Telemetry
from pytest_ollama_perf.core.sample import Outcome, Phase
from pytest_ollama_perf.core.verdict import Hint, HintCode, VerdictStatus
from pytest_ollama_perf.report.document import encode_document, parse_document
from pytest_ollama_perf.report.html import build_page, chart_data
from pytest_ollama_perf.report.html.charts import PHASE_NAMES

pytest.importorskip("vl_convert", reason="the extra html is not installed")
pytest.importorskip("jinja2", reason="the extra html is not installed")

from pytest_ollama_perf.report.html import render_html as page

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
MEGABYTE = 1_000_000


@cache
def text_of_one() -> str:
    return page(document_of(judged(runs=2))).decode()


class Elements(html.parser.HTMLParser):
    """Every tag with its attributes, and the text outside scripts and styles."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text, self._silent = "", False
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self._silent = tag in {"script", "style"}

    def handle_endtag(self, tag):
        self._silent = False

    def handle_data(self, data):
        self.text += "" if self._silent else f"{data} "


def charts_of(text: str) -> list[dict]:
    data = re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.DOTALL)
    return json.loads(data[1])["charts"]


def test_a_test_stands_with_its_verdict_its_reason_and_its_numbers():
    said = " ".join(Elements(text_of_one()).text.split())
    for words in (
        "1 performance test",
        "1 regressed",
        "ttft +26.9 % (182 ms -> 231 ms), margin 20 %",
        "ttft 182 ms 231 ms +26.9 % +21 % to +33 % +20 % regressed",
        "tps >= 80 /s 84.1 /s 82 /s to 86 /s ok",
        "short outputs : 2 answers ended early",
        "ollama 0.32.10 -> 0.32.15",
        "Hint: requests ran one at a time",
        'pytest-ollama-perf accept test_chat_speed --why "..."',
        "drifts since 2026-09-10",
        "accepted: a new driver",
        "ollama 0.32.15, llama3.2:3b Q4_K_M, 100 % on the GPU",
    ):
        assert words in said


def test_the_cell_of_a_verdict_has_the_class_of_its_status():
    changes = [
        row("tps", value=110.0, baseline=100.0, change=0.1, status=VerdictStatus.FASTER),
        row("latency", "p50", value=1.1, baseline=1.0, change=0.1, status=VerdictStatus.REGRESSED, gating=False),
    ]
    text = page(document_of(result(VerdictStatus.OK, "fine", rows=tuple(changes), loads=[]))).decode()
    assert re.findall(r'<td class="word ([^"]*)">([^<]*)</td>', text) == [
        ("faster", "faster"),
        ("regressed", "regressed (not gating)"),
    ]


def test_nothing_on_the_page_comes_from_elsewhere():
    found = Elements(text_of_one())
    for tag, attributes in found.tags:
        assert tag not in {"link", "img", "iframe", "object", "embed", "base", "form", "video", "audio"}
        assert not {"src", "srcset", "action", "background", "style"} & set(attributes)
        assert not [name for name in attributes if name.startswith("on")]
        assert (attributes.get("href") or "#").startswith("#")


def test_the_policy_allows_the_scripts_of_the_page_and_nothing_else():
    policy = next(
        attributes["content"]
        for tag, attributes in Elements(text_of_one()).tags
        if tag == "meta" and attributes.get("http-equiv") == "Content-Security-Policy"
    )
    rules = dict(rule.strip().split(" ", 1) for rule in policy.split(";"))
    assert rules.keys() == {"default-src", "script-src", "style-src", "base-uri", "form-action"}
    assert rules["default-src"] == rules["base-uri"] == rules["form-action"] == "'none'"
    assert re.fullmatch(r"'sha256-[A-Za-z0-9+/]{43}='", rules["script-src"])
    assert re.fullmatch(r"'sha256-[A-Za-z0-9+/]{43}='", rules["style-src"])


def test_every_chart_and_control_has_a_name_for_those_who_do_not_see_it():
    found = Elements(text_of_one()).tags
    charts = [attributes for tag, attributes in found if attributes.get("class") == "chart"]
    assert charts
    assert all(attributes["role"] == "img" and attributes["aria-label"] for attributes in charts)
    regions = [attributes for tag, attributes in found if attributes.get("role") == "region"]
    assert all(attributes["tabindex"] == "0" and attributes["aria-label"] for attributes in regions)
    tags = [tag for tag, _ in found]
    assert tags.count("h1") == tags.count("main") == 1
    assert ("html", {"lang": "en"}) in found
    assert tags.count("caption") == tags.count("table")


def test_a_page_of_fifty_tests_is_below_three_megabytes():
    assert MEGABYTE < len(page(many(50, runs=3, requests=200))) < 3 * MEGABYTE


def test_a_session_without_loads_has_a_page():
    said = Elements(page(document_of()).decode()).text
    assert "0 performance tests" in said
    assert "No test generated a load." in said


def test_a_distribution_ends_below_one_where_requests_failed():
    rows = list(chart_data.build_steps("run", [0.1, 0.2, float("inf"), float("inf")], 1000.0))
    assert rows == [("run", 100.0, 0.25), ("run", 200.0, 0.5)]


def test_a_distribution_of_many_requests_keeps_its_ends():
    rows = list(chart_data.build_steps("run", [float(number) for number in range(1, 10_001)], 1.0))
    assert len(rows) == chart_data.MAX_STEPS
    assert (rows[0], rows[-1]) == (("run", 1.0, 0.0001), ("run", 10_000.0, 1.0))


def test_the_phases_of_a_request_fill_its_time_without_gaps():
    one = sample(0)
    found = list(chart_data.split_phases(one))
    assert [phase for phase, *_ in found] == ["on its way", "load", "queue", "prefill", "decode"]
    assert (found[0][1], found[-1][2]) == (one.sent_ns, one.done_ns)
    assert all(before[2] == after[1] for before, after in pairwise(found))
    durations = {phase: (until - start) / MS for phase, start, until in found}
    assert durations == {"on its way": 1.0, "load": 1.0, "queue": 8.0, "prefill": 190.0, "decode": 100.0}


def test_counters_that_claim_more_than_the_client_saw_are_cut_to_it():
    early = sample(0, first_token_ns=START + 100 * MS)
    found = {phase: until - start for phase, start, until in chart_data.split_phases(early)}
    assert found["on its way"] == 0
    assert sum(found[phase] for phase in ("load", "queue", "prefill")) == pytest.approx(100 * MS)


def test_a_late_start_a_failure_and_a_request_without_counters_are_shown_as_such():
    late = sample(0, scheduled_ns=START - 5 * MS)
    assert next(chart_data.split_phases(late)) == ("not sent yet", START - 5 * MS, START)
    failed = sample(0, outcome=Outcome.BUSY)
    assert list(chart_data.split_phases(failed)) == [("failed", failed.sent_ns, failed.done_ns)]
    silent = sample(0, first_token_ns=None)
    assert list(chart_data.split_phases(silent)) == [("whole", silent.sent_ns, silent.done_ns)]
    assert {"not sent yet", "failed", "whole"} <= set(PHASE_NAMES)


def test_requests_of_an_open_loop_take_the_first_free_line():
    rate = msgspec.structs.replace(WORKLOAD, concurrency=None, rate=5.0)
    times = ((0, 100), (50, 150), (120, 200), (130, 300))
    made = [sample(0, sent_ns=start * MS, scheduled_ns=start * MS, done_ns=done * MS) for start, done in times]
    assert chart_data.assign_lanes(rate, made) == [0, 1, 0, 2]


def test_a_long_timeline_says_what_it_leaves_out():
    rows, shown, lanes = chart_data.build_timeline_rows(WORKLOAD, [sample(index) for index in range(40)], 10)
    assert (shown, lanes) == (10, 4)
    assert {row[4] for row in rows} == set(range(1, 11))


def test_servers_are_compared_where_there_are_several():
    made = [
        sample(0, server="a"),
        sample(1, server="b"),
        sample(2, server="b", outcome=Outcome.BUSY),
        sample(3, server="b", stage=Phase.WARMUP),
    ]
    assert chart_data.count_by_server(made) == [("a", "ok", 1, 200.0), ("b", "ok", 1, 200.0), ("b", "failed", 1, None)]
    assert chart_data.count_by_server(made[:1]) == []


def test_a_history_marks_what_was_not_compared_and_what_began_an_epoch():
    made = build_page(document_of(judged()))
    shown = next(chart for chart in made.tests[0].charts if chart.title == "ttft of every run")
    rows = [dict(zip(shown.columns, row, strict=True)) for row in shown.rows]
    assert [row["kind"] for row in rows] == [
        *["not compared"] * 4,
        *["compared"] * 2,
        "left out",
        *["compared"] * 5,
        "now",
    ]
    assert [row["run"] for row in rows if row["note"]] == [5]
    assert {row["reference"] for row in rows if row["epoch"] == 2} == {180.0}
    assert len(rows) == len(past().runs)


SWEEP = {
    "kind": "sweep",
    "axis": "concurrency",
    "curves": [
        {
            "at": {},
            "knee": {"axis": "concurrency", "at": 2, "reached": True},
            "saturation": {"at": 4},
            "levels": [
                {"at": {"concurrency": at}, "throughput": 10.0 * at, "throughput_ci": [9.0, 41.0], "ttft_mean_s": 0.1}
                for at in (1, 2, 4)
            ],
        }
    ],
    "text": ["  knee: concurrency 2"],
}
COLD = {
    "kind": "cold_start",
    "starts": [{"cold_ttft_s": 2.0, "warm_ttft_s": 0.1, "load_time_s": 1.5}],
}
UNKNOWN = {"kind": "telepathy", "text": ["  what it says"]}


def with_findings(*findings):
    document = document_of(result(loads=[load([sample(0)])]))
    tests = tuple(msgspec.structs.replace(test, findings=findings) for test in document.tests)
    return msgspec.structs.replace(document, tests=tests)


def test_a_sweep_is_drawn_with_its_knee_and_its_saturation():
    throughput, ttft = build_page(with_findings(SWEEP)).tests[0].charts[:2]
    assert [(row[1], row[5]) for row in throughput.rows] == [(1, None), (2, "knee"), (4, None)]
    assert [(row[2], row[5]) for row in ttft.rows] == [(100.0, None), (100.0, None), (100.0, "saturation")]


def test_cold_starts_stand_beside_warm_ones():
    (shown, *_) = build_page(with_findings(COLD)).tests[0].charts
    assert shown.rows == [
        ("cold 1", "loading the model", 1500.0),
        ("cold 1", "the rest", 500.0),
        ("warm 1", "the rest", 100.0),
    ]


def test_a_finding_of_a_kind_unknown_here_is_told_in_its_own_words():
    assert "what it says" in page(with_findings(UNKNOWN)).decode()


def test_gpus_and_machine_are_told_of_each_load():
    gpu = GpuStats(
        name="NVIDIA H200",
        utilization=0.93,
        memory_bytes=3 * 1024**3,
        memory_total_bytes=140 * 1024**3,
        power_w=410.6,
        max_power_w=520.0,
        energy_j=1234.6,
        max_temperature_c=61.0,
        clock_mhz=1980.0,
        min_clock_mhz=1755.0,
        throttled={"power": 0.04},
    )
    host = HostStats(cpu_share=0.12, memory_bytes=8 * 1024**3)
    told = Telemetry(gpus=(gpu,), host=host, missing="1 reading failed")
    (test,) = build_page(document_of(result(loads=[load([sample(0)], telemetry=told)]))).tests
    assert test.loads[0].facts[-3:] == (
        "NVIDIA H200: 93 % busy, at most 3 of 140 GiB in use, 411 W (at most 520), 1235 J, at most 61 °C, "
        "1980 MHz (at least 1755), throttled by power in 4 %",
        "machine: 12 % of the CPUs busy, at most 8 GiB in use",
        "telemetry: 1 reading failed",
    )


MARK = "HOSTILE"


def hostile(*payloads: str):
    """A test for each payload in which every text from outside is that payload, put into the JSON past all cleaning."""
    workload = msgspec.structs.replace(WORKLOAD, model=MARK)
    samples = [
        sample(0, server=MARK, url=MARK),
        sample(1, server=f"{MARK}2"),
        sample(2, outcome=Outcome.BUSY, error=MARK),
    ]
    made = result(
        VerdictStatus.BROKEN,
        MARK,
        loads=[load(samples, workload=workload)],
        test=MARK,
        hints=(Hint(code=HintCode.SLOTS, text=MARK),),
        changed=(MARK,),
    )
    one = encode_document(document_of(made)).decode()
    documents = [
        parse_document(one.replace(MARK, json.dumps(payload)[1:-1]).encode(), "a test") for payload in payloads
    ]
    return msgspec.structs.replace(documents[0], tests=tuple(test for document in documents for test in document.tests))


def payloads(place: str) -> list[str]:
    """Ways out of text, attributes, scripts and expressions; each would ask ``place`` or mark the document."""
    act = f"fetch('{place}/fetched');document.documentElement.dataset.broken='yes'"
    return [
        f"<script>{act}</script>",
        f"</script><script>{act}</script>",
        f'<img src={place}/image onerror="{act}">',
        f'"><svg onload="{act}">',
        f"' onmouseover='{act}' x='",
        f"<style>@import '{place}/style';</style><link rel=stylesheet href={place}/link>",
        f"<iframe src={place}/frame></iframe><meta http-equiv=refresh content='0;url={place}/moved'>",
        f"{{{{ 7 * 191 }}}}{{% raw %}}${{{act}}}",
        f"datum'] + ({act}) + ['",
        f"<!--<script>{act}//-->",
        f"javascript:{act}",
        "\u2028\u2029\u202e\x00\ufeff",
    ]


class Counting(BaseHTTPRequestHandler):
    asked: list[str] = []

    def do_GET(self):
        self.asked.append(self.path)
        self.send_response(204)
        self.end_headers()

    def log_message(self, *arguments): ...


@pytest.fixture
def elsewhere():
    """A server that nothing on the page may ever ask."""
    server = HTTPServer(("127.0.0.1", 0), Counting)
    Counting.asked.clear()
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def browse(text: str, folder, *options: str) -> tuple[str, str]:
    """Return the document that a real browser makes of the page, and what its console says."""
    file = folder / "page.html"
    file.write_text(text, encoding="utf-8")
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--no-first-run"]
    flags += [f"--user-data-dir={folder / 'browser'}", "--window-size=1200,900", "--virtual-time-budget=20000"]
    command = [str(BROWSER), *flags, "--enable-logging=stderr", *options, "--dump-dom", f"{file.as_uri()}#all"]
    done = subprocess.run(command, capture_output=True, text=True, encoding="utf-8", timeout=120, check=True)
    return done.stdout, "\n".join(line for line in done.stderr.splitlines() if "CONSOLE" in line)


def drawn(dom: str) -> int:
    """How many charts the browser has drawn."""
    return len(re.findall(r'<svg [^>]*class="marks"', dom))


def test_text_from_outside_stays_text(elsewhere):
    text = page(hostile(*payloads(elsewhere))).decode()
    plain = Elements(page(hostile(*["plain"] * len(payloads(elsewhere)))).decode())
    assert [tag for tag, _ in Elements(text).tags] == [tag for tag, _ in plain.tags]
    assert [sorted(attributes) for _, attributes in Elements(text).tags] == [sorted(each) for _, each in plain.tags]
    assert "1337" not in Elements(text).text


@pytest.mark.skipif(BROWSER is None, reason="no Chromium is installed")
def test_a_browser_draws_every_chart_under_its_policy_and_runs_nothing_of_a_server(elsewhere, tmp_path):
    text = page(hostile(*payloads(elsewhere))).decode()
    dom, console = browse(text, tmp_path)
    assert console == ""
    assert Counting.asked == []
    assert "data-broken" not in dom
    assert drawn(dom) == len(charts_of(text)) > len(payloads(elsewhere)) * 4
    assert "could not be drawn" not in dom.rpartition("<script")[0].partition('id="data"')[0]


@pytest.mark.skipif(BROWSER is None, reason="no Chromium is installed")
def test_a_browser_draws_every_kind_of_chart(tmp_path):
    document = document_of(judged(runs=1))
    tests = tuple(msgspec.structs.replace(test, findings=(SWEEP, COLD)) for test in document.tests)
    text = page(msgspec.structs.replace(document, tests=tests)).decode()
    dom, console = browse(text, tmp_path)
    assert console == ""
    assert drawn(dom) == len(charts_of(text)) == 3 + 1 + 3 + 2 + 1
