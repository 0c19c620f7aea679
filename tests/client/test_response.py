"""The answer of a server, byte by byte: no socket, and time is a number."""

import itertools
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_ollama_perf.client import protocol as body_module
from pytest_ollama_perf.client.exchange import Exchange, compute_deadline
from pytest_ollama_perf.client.protocol import MAX_LINE_BYTES
from pytest_ollama_perf.client.response import MAX_HEADER_BYTES
from pytest_ollama_perf.core.sample import Counters, Outcome, Phase
from pytest_ollama_perf.core.workload import Endpoint, Timeouts
from pytest_ollama_perf.loadgen import Request

TRANSCRIPTS = sorted((Path(__file__).parent.parent / "transcripts").glob("*.json"))
HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: application/x-ndjson\r\nTransfer-Encoding: chunked\r\n\r\n"
FINAL = b'{"response":"","done":true,"done_reason":"stop","total_duration":9,"eval_count":2,"eval_duration":5}\n'
END = b"0\r\n\r\n"


def token(text, key="response"):
    return json.dumps({"model": "m", key: text, "done": False}, ensure_ascii=False).encode() + b"\n"


def chunk(body):
    return b"%x\r\n%s\r\n" % (len(body), body)


def request(endpoint=Endpoint.GENERATE, stream=True, **timeouts):
    return Request(
        index=3,
        client=1,
        target=0,
        request_id="id-3",
        stage=Phase.MEASURED,
        endpoint=endpoint,
        stream=stream,
        body=b"{}",
        timeouts=Timeouts(**timeouts),
    )


def begin(endpoint=Endpoint.GENERATE, stream=True, **timeouts):
    return Exchange(request(endpoint, stream, **timeouts), "http://h:1", 1000)


def answer(*reads, closed=None, **kind):
    """The sample of ``reads``, which arrive at 1010, 1020, ... and are read 3 later; ``closed`` says how it broke."""
    exchange = begin(**kind)
    for number, data in enumerate(reads, 1):
        if not exchange.response.finished:
            exchange.response.receive(data, 1000 + 10 * number, 1003 + 10 * number)
    if closed is not None:
        exchange.response.on_connection_closed(5000, closed)
    assert exchange.response.finished
    return exchange.build_sample(str)


def whole(body, status=b"200 OK", content_type=b"application/json"):
    head = b"HTTP/1.1 %s\r\nContent-Type: %s\r\nContent-Length: %d\r\n\r\n" % (status, content_type, len(body))
    return head + body


def test_a_streamed_answer_has_the_arrival_of_every_token():
    sample = answer(HEAD, chunk(token("")), chunk(token("a")), chunk(token("b")), chunk(FINAL), END)
    assert sample.outcome is Outcome.OK
    assert (sample.sent_ns, sample.header_ns, sample.first_token_ns, sample.first_answer_ns) == (1000, 1010, 1030, 1030)
    assert sample.chunk_ns == (1030, 1040)
    assert sample.done_ns == 1050
    assert (sample.line_count, sample.read_count, sample.read_lag_ns) == (4, 4, 3)
    assert sample.counters == Counters(total_duration_ns=9, eval_count=2, eval_duration_ns=5)
    assert (sample.done_reason, sample.status, sample.request_id, sample.url) == ("stop", 200, "id-3", "http://h:1")


def test_a_thinking_model_has_its_first_token_before_its_first_answer():
    think = chunk(b'{"message":{"role":"assistant","content":"","thinking":"hm"},"done":false}\n')
    say = chunk(b'{"message":{"role":"assistant","content":"yes"},"done":false}\n')
    final = chunk(b'{"message":{"role":"assistant","content":""},"done":true}\n')
    sample = answer(HEAD, think, say, final, END, endpoint=Endpoint.CHAT)
    assert (sample.first_token_ns, sample.first_answer_ns, sample.chunk_ns) == (1020, 1030, (1020, 1030))
    assert sample.ok


def test_an_answer_in_one_piece_does_not_show_when_its_first_token_came():
    sample = answer(whole(b'{"response":"all of it","done":true,"eval_count":4}'), stream=False)
    assert sample.ok
    assert (sample.first_token_ns, sample.first_answer_ns, sample.chunk_ns) == (None, None, ())
    assert (sample.done_ns, sample.line_count) == (1010, 1)
    assert sample.counters.eval_count == 4


def test_an_embedding_has_no_tokens():
    sample = answer(
        whole(b'{"embeddings":[[0.5,1]],"total_duration":7,"prompt_eval_count":3}'), endpoint=Endpoint.EMBED
    )
    assert sample.ok
    assert (sample.first_token_ns, sample.chunk_ns, sample.done_ns) == (None, (), 1010)
    assert sample.counters == Counters(total_duration_ns=7, prompt_eval_count=3)


@pytest.mark.parametrize(
    ("body", "outcome"),
    [
        (b'{"total_duration":7}', Outcome.TRUNCATED),
        (b'{"embeddings":["x"]}', Outcome.MALFORMED),
        (b'{"error":"broken"}', Outcome.SERVER_ERROR),
        (b"", Outcome.MALFORMED),
    ],
)
def test_an_answer_without_embeddings_is_no_success(body, outcome):
    assert answer(whole(body), endpoint=Endpoint.EMBED).outcome is outcome


FULL = HEAD + chunk(token("a\u2028b\u0085")) + chunk(token("ü") + token("d")) + chunk(FINAL) + END


@pytest.mark.parametrize("cut", range(1, len(FULL)))
def test_a_cut_at_any_byte_changes_nothing_but_times(cut):
    sample = answer(FULL[:cut], FULL[cut:])
    assert (sample.outcome, sample.line_count, len(sample.chunk_ns)) == (Outcome.OK, 4, 3)
    assert sample.counters.eval_count == 2
    assert sample.bytes_received == len(FULL)


def test_one_byte_at_a_time_is_enough():
    sample = answer(*(FULL[at : at + 1] for at in range(len(FULL))))
    assert (sample.outcome, sample.line_count, len(sample.chunk_ns)) == (Outcome.OK, 4, 3)


@given(
    st.lists(st.text(min_size=1, max_size=5), max_size=6),
    st.sets(st.integers(1, 900)),
    st.sets(st.integers(1, 2000)),
    st.sampled_from([b"\n", b"\r\n", b"\n\n"]),
)
def test_chunks_and_reads_may_split_the_stream_anywhere(texts, chunk_cuts, read_cuts, ending):
    body = b"".join(token(text).replace(b"\n", ending) for text in texts) + FINAL
    framed = HEAD + b"".join(chunk(piece) for piece in pieces(body, chunk_cuts)) + END
    sample = answer(*pieces(framed, read_cuts))
    assert (sample.outcome, sample.line_count, len(sample.chunk_ns)) == (Outcome.OK, len(texts) + 1, len(texts))
    assert list(sample.chunk_ns) == sorted(sample.chunk_ns)


def pieces(data, cuts):
    edges = [0, *sorted(cut for cut in cuts if cut < len(data)), len(data)]
    return [data[a:b] for a, b in itertools.pairwise(edges) if a < b]


@pytest.mark.parametrize("cut", range(1, len(FULL)))
def test_a_connection_that_breaks_at_any_byte_is_never_a_success(cut):
    for why in ("", "the connection was reset"):
        sample = answer(FULL[:cut], closed=why)
        assert sample.outcome is Outcome.CUT_OFF
        assert sample.done_ns == 5000
        assert (why or "the server closed the connection") in sample.error


@given(st.binary(max_size=200), st.integers(0, len(FULL)))
def test_garbage_never_raises_and_never_succeeds(garbage, at):
    sample = answer(FULL[:at], b"\xff" + garbage, closed="") if at else answer(b"\xff" + garbage, closed="")
    assert at == len(FULL) or sample.outcome is not Outcome.OK
    assert "\n" not in sample.error


def test_a_stream_without_done_is_truncated():
    sample = answer(HEAD, chunk(token("a")), END)
    assert (sample.outcome, sample.error) == (Outcome.TRUNCATED, "the answer ended without done: true after 1 objects")
    assert sample.first_token_ns == 1020


def test_an_answer_that_ends_with_the_connection_is_judged_by_done():
    head = b"HTTP/1.0 200 OK\r\nContent-Type: application/x-ndjson\r\n\r\n"
    assert answer(head, token("a") + FINAL, closed="").ok
    assert answer(head, token("a") + FINAL.rstrip(), closed="").ok
    assert answer(head, token("a"), closed="").outcome is Outcome.TRUNCATED
    assert answer(head, token("a") + FINAL, closed="the connection was reset").outcome is Outcome.CUT_OFF


def test_an_error_line_after_tokens_is_a_server_error_with_its_text():
    sample = answer(HEAD, chunk(token("a")), chunk(b'{"error":"engine died\\u001b[31m"}\n'), END)
    assert (sample.outcome, sample.error, sample.status) == (Outcome.SERVER_ERROR, "engine died[31m", 200)
    assert sample.done_ns == 1030


def test_an_error_after_done_is_no_success():
    assert answer(HEAD, chunk(FINAL), chunk(b'{"error":"late"}\n'), END).outcome is Outcome.SERVER_ERROR
    assert answer(HEAD, chunk(FINAL), chunk(token("more")), END).outcome is Outcome.MALFORMED


@pytest.mark.parametrize(
    ("status", "content_type", "body", "outcome", "error"),
    [
        (
            b"404 Not Found",
            b"application/json",
            b'{"error":"model \'x\' not found"}',
            Outcome.HTTP_ERROR,
            "model 'x' not found",
        ),
        (b"503 Unavailable", b"application/json", b'{"error":"server busy"}', Outcome.BUSY, "server busy"),
        (b"400 Bad", b"application/json", b'{"error":{"message":"nested","type":"t"}}', Outcome.HTTP_ERROR, "nested"),
        (
            b"400 Bad",
            b"application/json",
            rb'{"error":"{\"error\":{\"code\":400,\"message\":\"too long\"}}"}',
            Outcome.HTTP_ERROR,
            "too long",
        ),
        (b"404 Not Found", b"text/plain", b"404 page not found", Outcome.HTTP_ERROR, "404 page not found"),
        (b"502 Bad", b"text/html", b"<html>nginx</html>", Outcome.HTTP_ERROR, "an HTML page"),
        (b"403 Forbidden", b"text/plain", b"", Outcome.HTTP_ERROR, "empty answer"),
        (b"500 Oops", b"text/plain", b"\x1b]0;x\x07\xff", Outcome.HTTP_ERROR, "]0;x\N{REPLACEMENT CHARACTER}"),
    ],
)
def test_a_refusal_keeps_what_the_server_said(status, content_type, body, outcome, error):
    sample = answer(whole(body, status, content_type))
    assert (sample.outcome, sample.error) == (outcome, f"HTTP {status[:3].decode()}: {error}")
    assert sample.first_token_ns is None


def test_a_refusal_that_is_cut_off_is_still_a_refusal():
    data = whole(b'{"error":"boom"}' + b" " * 50, b"500 Oops")[:-40]
    assert answer(data, closed="").outcome is Outcome.HTTP_ERROR


def test_a_huge_refusal_is_read_but_not_kept():
    sample = answer(whole(b"x" * 1_000_000, b"500 Oops", b"text/plain"))
    assert sample.outcome is Outcome.HTTP_ERROR
    assert len(sample.error) < 400


def test_a_redirect_is_not_followed():
    sample = answer(b"HTTP/1.1 301 Moved\r\nLocation: https://elsewhere/\r\nContent-Length: 0\r\n\r\n")
    assert sample.outcome is Outcome.HTTP_ERROR
    assert sample.error == "HTTP 301: empty answer (redirect to https://elsewhere/ not followed)"


@pytest.mark.parametrize(
    ("given", "shown"),
    [
        (b"https://bob:secret@elsewhere/login?token=secret", "https://elsewhere/login"),
        (b"/login?token=secret", "/login"),
        (b"https://elsewhere#secret", "https://elsewhere"),
    ],
)
def test_a_redirect_shows_no_secrets(given, shown):
    sample = answer(b"HTTP/1.1 302 Found\r\nLocation: " + given + b"\r\nContent-Length: 0\r\n\r\n")
    assert sample.error == f"HTTP 302: empty answer (redirect to {shown} not followed)"


@pytest.mark.parametrize(
    "line",
    [
        b"not json\n",
        b"[1]\n",
        b'"text"\n',
        b"{}{}\n",
        b'{"response":5}\n',
        b'{"response":"\xff"}\n',
        b'{"message":"text"}\n',
        b'{"done":"yes"}\n',
        b'{"done":1}\n',
        b"[" * 100_000 + b"\n",
    ],
)
def test_a_line_that_is_no_such_object_is_malformed(line):
    assert answer(HEAD, chunk(line), chunk(FINAL), END).outcome is Outcome.MALFORMED


@pytest.mark.parametrize("value", ["true", "-1", "1.5", "1e3", '"7"', "[]", str(2**63), "NaN"])
@pytest.mark.parametrize("name", ["total_duration", "eval_count", "prompt_eval_cached_count"])
def test_counters_that_are_no_counts_are_malformed(name, value):
    line = f'{{"response":"","done":true,"{name}":{value}}}\n'.encode()
    assert answer(HEAD, chunk(token("a")), chunk(line), END).outcome is Outcome.MALFORMED


def test_counters_that_are_absent_stay_absent():
    assert answer(HEAD, chunk(b'{"done":true,"done_reason":"load"}\n'), END).counters == Counters()


def test_a_line_may_have_8_mib_and_not_a_byte_more():
    head, tail = b'{"response":"', b'"}\n'
    fill = MAX_LINE_BYTES - len(head) - len(tail) + 1
    for extra, outcome in ((0, Outcome.OK), (1, Outcome.MALFORMED)):
        body = head + b"x" * (fill + extra) + tail
        reads = pieces(chunk(body), set(range(0, len(body), 65_536)))
        assert answer(HEAD, *reads, chunk(FINAL), END).outcome is outcome
    assert answer(HEAD, *reads, chunk(FINAL), END).error == f"a line of more than {MAX_LINE_BYTES} bytes"


def test_a_line_without_end_is_stopped_at_the_limit():
    exchange = begin()
    exchange.response.receive(HEAD, 1010, 1010)
    for _ in range(MAX_LINE_BYTES // 65_536 + 1):
        exchange.response.receive(chunk(b"x" * 65_536), 1020, 1020)
    assert exchange.response.outcome is Outcome.MALFORMED
    assert not exchange.response.reusable


@pytest.mark.parametrize("prefix", [b"HTTP/1.1 200 OK\r\nX: ", HEAD + chunk(token("a")) + b"0\r\nX: "])
def test_headers_and_trailers_without_end_are_stopped(prefix):
    reads = [prefix, *[b"y" * 65_536] * (MAX_HEADER_BYTES // 65_536 + 1)]
    sample = answer(*reads)
    assert (sample.outcome, sample.error) == (Outcome.MALFORMED, f"headers of more than {MAX_HEADER_BYTES} bytes")


def test_a_stream_without_end_is_stopped(monkeypatch):
    monkeypatch.setattr(body_module, "MAX_STREAM_OBJECTS", 3)
    assert answer(HEAD, *[chunk(token("a"))] * 4).error == "a stream of more than 3 tokens"


def test_an_encoded_answer_is_refused():
    sample = answer(
        b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nTransfer-Encoding: chunked\r\n\r\n" + chunk(b"\x1f\x8b")
    )
    assert sample.outcome is Outcome.MALFORMED
    assert sample.error == "the answer is encoded (gzip), but only identity was offered"


def test_an_encoded_answer_in_one_piece_is_called_that_too():
    body = b"\x1f\x8b\n"
    sample = answer(b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 3\r\n\r\n" + body)
    assert sample.outcome is Outcome.MALFORMED
    assert sample.error == "the answer is encoded (gzip), but only identity was offered"


def test_an_encoded_refusal_is_a_refusal():
    answered = b"HTTP/1.1 502 Bad Gateway\r\nContent-Encoding: gzip\r\nContent-Length: 2\r\n\r\n\x1f\x8b"
    sample = answer(answered)
    assert (sample.outcome, sample.status) == (Outcome.HTTP_ERROR, 502)


def test_an_html_page_in_place_of_a_stream_is_called_that():
    sample = answer(whole(b"<html>\n<body>", content_type=b"text/html"))
    assert sample.error == "an HTML page in place of an answer; is this Ollama?"


def test_a_switch_of_protocols_is_malformed():
    sample = answer(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n")
    assert sample.outcome is Outcome.MALFORMED


def test_an_interim_answer_is_passed_over():
    sample = answer(b"HTTP/1.1 100 Continue\r\n\r\n", FULL)
    assert (sample.outcome, sample.status, sample.header_ns) == (Outcome.OK, 200, 1020)


@pytest.mark.parametrize(
    ("data", "reusable"),
    [
        (FULL, True),
        (whole(b'{"error":"x"}', b"500 Oops"), True),
        (FULL.replace(b"Transfer", b"Connection: close\r\nTransfer"), False),
        (FULL.replace(b"HTTP/1.1", b"HTTP/1.0"), False),
        (FULL + FULL, False),
        (FULL + b"HTTP/1.1 200 OK\r\nContent-Len", False),
    ],
)
def test_a_connection_serves_again_only_after_an_answer_that_ended_in_order(data, reusable):
    exchange = begin()
    exchange.response.receive(data, 1010, 1010)
    assert exchange.response.finished
    assert exchange.response.reusable is reusable
    assert exchange.build_sample(str).line_count <= 4


def test_the_upstream_is_named_from_the_most_telling_header():
    head = HEAD.replace(b"\r\n\r\n", b"\r\nVia: 1.1 proxy\r\nX-Served-By: gpu-3\r\n\r\n")
    assert answer(head, chunk(FINAL), END).server == "gpu-3"


def test_a_stamp_older_than_the_send_gives_way_to_the_time_of_the_read():
    exchange = begin()
    exchange.response.receive(HEAD + chunk(token("a")), 900, 1100)
    exchange.response.receive(chunk(token("b")), 1050, 1200)
    exchange.response.receive(chunk(FINAL) + END, 1300, 1301)
    sample = exchange.build_sample(str)
    assert (sample.header_ns, sample.chunk_ns, sample.done_ns, sample.read_lag_ns) == (1100, (1100, 1100), 1300, 1)


def deadline(exchange):
    return compute_deadline(exchange.response, exchange.request.timeouts)


def test_deadlines_follow_what_has_come():
    second = 10**9
    exchange = begin(first_token_s=5, idle_s=2, total_s=9)
    assert deadline(exchange) == (1000 + 5 * second, Outcome.FIRST_TOKEN_TIMEOUT)
    exchange.response.receive(HEAD + chunk(token("")), second, second)
    assert deadline(exchange) == (1000 + 5 * second, Outcome.FIRST_TOKEN_TIMEOUT)
    exchange.response.receive(chunk(token("a")), 4 * second, 4 * second)
    assert deadline(exchange) == (6 * second, Outcome.IDLE_TIMEOUT)
    exchange.response.receive(chunk(token("b")), 8 * second, 8 * second)
    assert deadline(exchange) == (1000 + 9 * second, Outcome.TOTAL_TIMEOUT)
    assert deadline(begin(stream=False, first_token_s=5, total_s=9)) == (
        1000 + 9 * second,
        Outcome.TOTAL_TIMEOUT,
    )


def test_a_failure_that_comes_later_does_not_change_the_outcome():
    exchange = begin()
    exchange.response.fail(Outcome.IDLE_TIMEOUT, "first", 2000)
    exchange.response.fail(Outcome.CANCELLED, "second", 3000)
    exchange.response.on_connection_closed(4000)
    sample = exchange.build_sample(str)
    assert (sample.outcome, sample.error, sample.done_ns) == (Outcome.IDLE_TIMEOUT, "first", 2000)


def recorded():
    for path in TRANSCRIPTS:
        for number, pair in enumerate(json.loads(path.read_text())["exchanges"]):
            if pair["request"]["path"] in ("/api/generate", "/api/chat", "/api/embed") and pair.get("response"):
                yield pytest.param(pair, id=f"{path.stem}-{number}")


def replay(pair):
    response = pair["response"]
    endpoint = Endpoint(pair["request"]["path"].rpartition("/")[2])
    chunked = "chunked" in response["headers"].get("transfer-encoding", "")
    exchange = begin(endpoint=endpoint, stream=chunked)
    head = f"HTTP/1.1 {response['status']} X\r\n"
    head += "".join(f"{name}: {value}\r\n" for name, value in response["headers"].items()) + "\r\n"
    exchange.response.receive(head.encode(), 1001, 1001)
    for at, text in response["chunks"]:
        body = text.encode()
        when = 2000 + int(at * 1e9)
        exchange.response.receive(chunk(body) if chunked else body, when, when)
    if chunked and not response.get("error"):
        exchange.response.receive(END, when, when)
    if not exchange.response.finished:
        exchange.response.on_connection_closed(10**15)
    return exchange.build_sample(str)


@pytest.mark.parametrize("pair", list(recorded()))
def test_what_the_real_server_said_is_read_as_it_was_meant(pair):
    sample = replay(pair)
    texts = "".join(text for _, text in pair["response"]["chunks"])
    if pair["response"]["status"] != 200:
        assert sample.outcome in (Outcome.HTTP_ERROR, Outcome.BUSY)
        assert len(sample.error) > len("HTTP 500: ")
    elif '"error"' in texts:
        assert sample.outcome is Outcome.SERVER_ERROR
    elif '"done":true' in texts or '"embeddings"' in texts:
        assert sample.ok, sample.error
    else:
        assert sample.outcome in (Outcome.CUT_OFF, Outcome.TRUNCATED)
