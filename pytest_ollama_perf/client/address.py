"""Where an Ollama server is: every form that Ollama itself accepts for ``OLLAMA_HOST``, and credentials kept apart."""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass, field
from urllib.parse import unquote

from pytest_ollama_perf.errors import ConfigError
from pytest_ollama_perf.text import inert

DEFAULT_PORT = 11434
_SCHEME_PORTS = {"http": 80, "https": 443}
_FORMS = "valid: host, host:port, :port, [IPv6]:port, http://host:port/path, https://host"
_HOSTNAME = re.compile(r"(?!-)[\w-]{1,63}(?:\.[\w-]{1,63})*\.?", re.ASCII)
_PATH = re.compile(r"[!-~]*")


@dataclass(frozen=True)
class Address:
    """One server. ``host`` has no brackets, ``path`` is empty or ``/prefix``; ``auth`` is ``(user, password)``."""

    host: str
    port: int
    tls: bool = False
    path: str = ""
    auth: tuple[str, str] | None = field(default=None, repr=False)

    @property
    def url(self) -> str:
        """The base URL, without credentials."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{'https' if self.tls else 'http'}://{host}:{self.port}{self.path}"

    @property
    def display(self) -> str:
        """What may be shown to anybody; credentials are never part of it."""
        return self.url


def parse_address(given: str) -> Address:
    """Return the address that ``given`` names, read as Ollama reads ``OLLAMA_HOST``.

    Spaces and quotes around it are dropped, an empty value is ``127.0.0.1:11434``, an address that means "every
    interface" becomes loopback, and the port defaults to 11434, or to 80 and 443 where a scheme is written.

    Raises:
        ConfigError: one line, without what stands before an ``@``.
    """
    text = given.strip().strip("\"'").strip()
    scheme, found, rest = text.partition("://")
    scheme = scheme.lower() if found else "http"
    if not found:
        rest, scheme = text, "https" if text == "ollama.com" else "http"
    if scheme not in _SCHEME_PORTS:
        raise _wrong(text, f"scheme '{inert(scheme, 40)}' is not http or https")
    port = _SCHEME_PORTS[scheme] if found or text == "ollama.com" else DEFAULT_PORT
    authority, _, path = rest.partition("/")
    userinfo, _, hostport = authority.rpartition("@")
    host, port = _host_port(text, hostport, port)
    return Address(host, port, scheme == "https", _path(text, path), _auth(userinfo))


def _host_port(text: str, hostport: str, default: int) -> tuple[str, int]:
    bracketed = re.fullmatch(r"\[([^\[\]]*)\](?::(.*))?", hostport)
    if bracketed:
        return _host(text, bracketed[1], ipv6=True), _port(text, bracketed[2], default)
    if hostport.count(":") > 1:
        return _host(text, hostport, ipv6=True), default
    host, colon, port = hostport.partition(":")
    if not colon and host.isdigit():
        raise _wrong(text, f"a port alone is written ':{inert(host, 20)}'")
    return _host(text, host), _port(text, port if colon else None, default)


def _host(text: str, host: str, *, ipv6: bool = False) -> str:
    try:
        address = ipaddress.IPv6Address(host) if ipv6 else ipaddress.ip_address(host or "127.0.0.1")
    except ValueError:
        if ipv6:
            raise _wrong(text, "not an IPv6 address") from None
        return _hostname(text, host)
    if "%" in host:
        raise _wrong(text, "an IPv6 zone cannot stand in a URL")
    if address.is_unspecified:
        return "::1" if ipv6 else "127.0.0.1"
    return str(address)


def _hostname(text: str, host: str) -> str:
    if len(host) > 253 or not _HOSTNAME.fullmatch(host) or re.fullmatch(r"[\d.]+", host):
        raise _wrong(text, "not a host name or IP address")
    return host.lower()


def _port(text: str, port: str | None, default: int) -> int:
    if port is None:
        return default
    if not re.fullmatch(r"[0-9]{1,5}", port) or not 0 < int(port) < 65536:
        raise _wrong(text, "the port must be a number from 1 to 65535")
    return int(port)


def _path(text: str, path: str) -> str:
    path = path.rstrip("/")
    if "?" in path or "#" in path or "@" in path or not _PATH.fullmatch(path):
        raise _wrong(text, "the path may hold no query, fragment, space, '@' or non-ASCII character")
    return f"/{path}" if path else ""


def _auth(userinfo: str) -> tuple[str, str] | None:
    if not userinfo:
        return None
    user, _, password = userinfo.partition(":")
    return unquote(user), unquote(password)


def _wrong(text: str, why: str) -> ConfigError:
    if "@" in text:
        scheme, found, _ = text.partition("://")
        text = f"{scheme + found if found else ''}***@{text.rpartition('@')[2]}"
    shown, query, _ = text.partition("?")
    shown += "?***" if query else ""
    return ConfigError(f"wrong server address '{inert(shown, 100)}': {why}; {_FORMS}")
