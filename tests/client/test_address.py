import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_ollama_perf.client.address import parse_address
from pytest_ollama_perf.core import ConfigError


@pytest.mark.parametrize(
    ("given", "url"),
    [
        ("", "http://127.0.0.1:11434"),
        ("1.2.3.4", "http://1.2.3.4:11434"),
        (":1234", "http://127.0.0.1:1234"),
        ("1.2.3.4:1234", "http://1.2.3.4:1234"),
        ("example.com", "http://example.com:11434"),
        ("gpu_box:1234", "http://gpu_box:1234"),
        ("Example.COM:1234", "http://example.com:1234"),
        ("[::1]", "http://[::1]:11434"),
        ("::1", "http://[::1]:11434"),
        ("[::1]:1337", "http://[::1]:1337"),
        ("2001:DB8::5", "http://[2001:db8::5]:11434"),
        ("0.0.0.0", "http://127.0.0.1:11434"),
        ("0.0.0.0:8080", "http://127.0.0.1:8080"),
        ("[::]", "http://[::1]:11434"),
        (" 1.2.3.4 ", "http://1.2.3.4:11434"),
        ('"1.2.3.4"', "http://1.2.3.4:11434"),
        (' " 1.2.3.4 " ', "http://1.2.3.4:11434"),
        ("'1.2.3.4'", "http://1.2.3.4:11434"),
        ("http://1.2.3.4", "http://1.2.3.4:80"),
        ("http://1.2.3.4:4321", "http://1.2.3.4:4321"),
        ("https://1.2.3.4", "https://1.2.3.4:443"),
        ("HTTPS://1.2.3.4:4321/", "https://1.2.3.4:4321"),
        ("https://example.com/ollama", "https://example.com:443/ollama"),
        ("example.com/a/b/", "http://example.com:11434/a/b"),
        ("http://[::1]/x", "http://[::1]:80/x"),
        ("ollama.com", "https://ollama.com:443"),
    ],
)
def test_every_form_that_ollama_accepts_names_the_same_server(given, url):
    address = parse_address(given)
    assert address.url == url


@pytest.mark.parametrize(
    ("given", "why"),
    [
        ("ftp://host", "scheme 'ftp' is not http or https"),
        ("host:", "the port must be a number from 1 to 65535"),
        (":0", "the port must be a number from 1 to 65535"),
        (":66000", "the port must be a number from 1 to 65535"),
        (":-1", "the port must be a number from 1 to 65535"),
        ("host:port", "the port must be a number from 1 to 65535"),
        ("host:٣", "the port must be a number from 1 to 65535"),
        ("11434", "a port alone is written ':11434'"),
        ("[::1", "not an IPv6 address"),
        ("[zz::1]", "not an IPv6 address"),
        ("fe80::1%eth0", "an IPv6 zone is not allowed in a URL"),
        ("a b", "not a host name or IP address"),
        ("300.1.1.1", "not a host name or IP address"),
        ("büro:1", "not a host name or IP address"),
        ("-x", "not a host name or IP address"),
        ("http://host/p#q", "the path may hold no query, fragment, space, '@' or non-ASCII character"),
        ("http://host/p q", "the path may hold no query, fragment, space, '@' or non-ASCII character"),
    ],
)
def test_a_wrong_address_is_one_line_that_names_what_is_valid(given, why):
    with pytest.raises(ConfigError) as caught:
        parse_address(given)
    assert str(caught.value) == (
        f"wrong server address '{given}': {why}; "
        "valid: host, host:port, :port, [IPv6]:port, http://host:port/path, https://host"
    )


@pytest.mark.parametrize(
    ("given", "auth"),
    [
        ("http://user:se%3Acret@host:1", ("user", "se:cret")),
        ("user:pass@host:1", ("user", "pass")),
        ("https://token@host:1", ("token", "")),
        ("http://you:pw@x@host:1", ("you", "pw@x")),
    ],
)
def test_credentials_are_kept_apart_and_never_shown(given, auth):
    address = parse_address(given)
    assert address.auth == auth
    assert address.host == "host"
    for secret in filter(None, auth):
        assert secret not in repr(address) + address.url


@pytest.mark.parametrize(
    "given",
    [
        "http://u:hunter2@host:x",
        "u:hunter2@:0",
        "ftp://u:hunter2@h",
        "http://u:hunter2/x@h:1",
        "hunter2@a b",
        "http://h:1?key=hunter2",
        "http://h/p?key=hunter2",
        "http://u@h/?key=hunter2",
    ],
)
def test_a_wrong_address_never_echoes_a_password(given):
    with pytest.raises(ConfigError) as caught:
        parse_address(given)
    assert "hunter2" not in str(caught.value)
    assert caught.value.__cause__ is None


@given(st.text(max_size=40))
def test_any_text_is_an_address_or_a_config_error_on_one_line(text):
    try:
        shown = parse_address(parse_address(text).url).url
    except ConfigError as error:
        shown = str(error)
    assert len(shown.splitlines()) == 1
