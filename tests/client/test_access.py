import pytest

from pytest_ollama_perf.client.address import Access, parse_address
from pytest_ollama_perf.client.backend import build_request_head
from pytest_ollama_perf.core import ConfigError
from pytest_ollama_perf.core.workload import Endpoint


def head(address, access=None):
    lines = build_request_head(parse_address(address), access or Access(), Endpoint.CHAT).decode().split("\r\n")
    return lines[0], dict(line.split(": ", 1) for line in lines[1:-1])


def test_the_head_names_path_host_and_what_may_come_back():
    line, headers = head("https://example.com:8443/ollama")
    assert line == "POST /ollama/api/chat HTTP/1.1"
    assert headers == {
        "Host": "example.com:8443",
        "Accept": "application/x-ndjson, application/json",
        "Accept-Encoding": "identity",
        "Content-Type": "application/json",
        "User-Agent": "pytest-ollama-perf",
    }


def test_the_host_header_of_an_ipv6_address_has_brackets():
    assert head("[::1]:1234")[1]["Host"] == "[::1]:1234"


def test_a_custom_header_replaces_our_own():
    headers = head("h", Access(headers=(("user-agent", "mine"), ("X-Team", "a"))))[1]
    assert (headers["user-agent"], headers["X-Team"]) == ("mine", "a")
    assert "User-Agent" not in headers


@pytest.mark.parametrize(
    ("access", "authorization"),
    [
        (Access(), "Basic dTpw"),
        (Access(bearer="token"), "Bearer token"),
        (Access(bearer="token", headers=(("Authorization", "Own"),)), "Own"),
    ],
)
def test_a_header_beats_the_token_and_the_token_beats_the_address(access, authorization):
    assert head("http://u:p@h", access)[1]["Authorization"] == authorization


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("X Y", "v", "wrong header name 'X Y'; give 'Name: value'"),
        ("", "v", "wrong header name ''; give 'Name: value'"),
        ("X-Request-Id", "v", "header 'X-Request-Id' is set by this client and cannot be given"),
        ("X", "s3cret\r\nY: z", "the value of header 'X' holds a line break, control or non-ASCII character"),
        ("X", "s3crét", "the value of header 'X' holds a line break, control or non-ASCII character"),
    ],
)
def test_a_header_that_cannot_be_sent_is_refused_without_its_value(name, value, message):
    with pytest.raises(ConfigError) as caught:
        Access(headers=((name, value),))
    assert str(caught.value) == message


def test_secrets_do_not_show_in_a_repr():
    assert "s3cret" not in repr(Access(bearer="s3cret", headers=(("X", "s3cret"),)))


def test_a_ca_file_that_is_missing_or_no_pem_is_named(tmp_path):
    junk = tmp_path / "junk.pem"
    junk.write_text("no certificate")
    for path in (tmp_path / "none.pem", junk):
        with pytest.raises(ConfigError, match=path.name):
            Access(ca_file=str(path)).build_ssl_context()
