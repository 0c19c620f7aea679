"""The address of a server, in every form that Ollama accepts for ``OLLAMA_HOST``, and the credentials for it."""

from __future__ import annotations

import base64
import ipaddress
import re
import ssl
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote, unquote

import httpx

from pytest_ollama_perf.core import ConfigError
from pytest_ollama_perf.core.text import sanitize

DEFAULT_PORT = 11434
_SCHEME_PORTS = {"http": 80, "https": 443}
_VALID_FORMS = "valid: host, host:port, :port, [IPv6]:port, http://host:port/path, https://host"
_HOSTNAME_PATTERN = re.compile(r"(?!-)[\w-]{1,63}(?:\.[\w-]{1,63})*\.?", re.ASCII)
_PATH_PATTERN = re.compile(r"[!-~]*")


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


def parse_address(given: str) -> Address:
    """Return the address that ``given`` names, read as Ollama reads ``OLLAMA_HOST``.

    Spaces and quotes around it are dropped, an empty value is ``127.0.0.1:11434``, an address that means "every
    interface" becomes loopback, and the port defaults to 11434, or to 80 and 443 where a scheme is written.

    Raises:
        ConfigError: one line, without the text before an ``@``.
    """
    text = given.strip().strip("\"'").strip()
    scheme, found, rest = text.partition("://")
    scheme = scheme.lower() if found else "http"
    if not found:
        rest, scheme = text, "https" if text == "ollama.com" else "http"
    if scheme not in _SCHEME_PORTS:
        raise _make_address_error(text, f"scheme '{sanitize(scheme, 40)}' is not http or https")
    port = _SCHEME_PORTS[scheme] if found or text == "ollama.com" else DEFAULT_PORT
    authority, _, path = rest.partition("/")
    userinfo, _, hostport = authority.rpartition("@")
    host, port = _parse_host_port(text, hostport, port)
    return Address(host, port, scheme == "https", _parse_path(text, path), _parse_userinfo(userinfo))


def _parse_host_port(text: str, hostport: str, default: int) -> tuple[str, int]:
    bracketed = re.fullmatch(r"\[([^\[\]]*)\](?::(.*))?", hostport)
    if bracketed:
        return _parse_host(text, bracketed[1], ipv6=True), _parse_port(text, bracketed[2], default)
    if hostport.count(":") > 1:
        return _parse_host(text, hostport, ipv6=True), default
    host, colon, port = hostport.partition(":")
    if not colon and host.isdigit():
        raise _make_address_error(text, f"a port alone is written ':{sanitize(host, 20)}'")
    return _parse_host(text, host), _parse_port(text, port if colon else None, default)


def _parse_host(text: str, host: str, *, ipv6: bool = False) -> str:
    try:
        address = ipaddress.IPv6Address(host) if ipv6 else ipaddress.ip_address(host or "127.0.0.1")
    except ValueError:
        if ipv6:
            raise _make_address_error(text, "not an IPv6 address") from None
        return _parse_hostname(text, host)
    if "%" in host:
        raise _make_address_error(text, "an IPv6 zone is not allowed in a URL")
    if address.is_unspecified:
        return "::1" if ipv6 else "127.0.0.1"
    return str(address)


def _parse_hostname(text: str, host: str) -> str:
    if len(host) > 253 or not _HOSTNAME_PATTERN.fullmatch(host) or re.fullmatch(r"[\d.]+", host):
        raise _make_address_error(text, "not a host name or IP address")
    return host.lower()


def _parse_port(text: str, port: str | None, default: int) -> int:
    if port is None:
        return default
    if not re.fullmatch(r"[0-9]{1,5}", port) or not 0 < int(port) < 65536:
        raise _make_address_error(text, "the port must be a number from 1 to 65535")
    return int(port)


def _parse_path(text: str, path: str) -> str:
    path = path.rstrip("/")
    if "?" in path or "#" in path or "@" in path or not _PATH_PATTERN.fullmatch(path):
        raise _make_address_error(text, "the path may hold no query, fragment, space, '@' or non-ASCII character")
    return f"/{path}" if path else ""


def _parse_userinfo(userinfo: str) -> tuple[str, str] | None:
    if not userinfo:
        return None
    user, _, password = userinfo.partition(":")
    return unquote(user), unquote(password)


def _make_address_error(text: str, why: str) -> ConfigError:
    if "@" in text:
        scheme, found, _ = text.partition("://")
        text = f"{scheme + found if found else ''}***@{text.rpartition('@')[2]}"
    shown, query, _ = text.partition("?")
    shown += "?***" if query else ""
    return ConfigError(f"wrong server address '{sanitize(shown, 100)}': {why}; {_VALID_FORMS}")


_HEADER_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_HEADER_VALUE = re.compile(r"[^\x00-\x08\x0a-\x1f\x7f]*")
_RESERVED_HEADERS = frozenset({"x-request-id", "content-length", "transfer-encoding", "connection", "accept-encoding"})


@dataclass(frozen=True)
class Access:
    """Credentials and TLS trust. ``headers`` are sent as given, ``bearer`` is a token, ``ca_file`` is a PEM file.

    Without ``verify``, certificates are not checked.

    An ``Authorization`` header beats the token, the token beats credentials in the address.

    Raises:
        ConfigError: a header that cannot be sent; its value is not shown.
    """

    headers: tuple[tuple[str, str], ...] = field(default=(), repr=False)
    bearer: str = field(default="", repr=False)
    verify: bool = True
    ca_file: str = ""

    def __post_init__(self) -> None:
        for name, value in self.headers:
            _check_header(name, value)
        _check_header("Authorization", self.bearer)

    def build_headers(self) -> list[tuple[str, str]]:
        """Return the headers of every request, the token's included."""
        headers = [*self.headers]
        if self.bearer and not self.has_authorization:
            headers.append(("Authorization", f"Bearer {self.bearer}"))
        return headers

    @property
    def has_authorization(self) -> bool:
        """Whether a header carries credentials."""
        return any(name.lower() == "authorization" for name, _ in self.headers)

    def build_basic_auth(self, address: Address) -> httpx.BasicAuth | None:
        """Return the credentials of ``address``, unless a token or an ``Authorization`` header is given."""
        if address.auth is None or self.bearer or self.has_authorization:
            return None
        return httpx.BasicAuth(*address.auth)

    def build_ssl_context(self) -> ssl.SSLContext:
        """Build the TLS context.

        Raises:
            ConfigError: the CA file cannot be read.
        """
        if not self.verify:
            return httpx.create_ssl_context(verify=False)
        try:
            return ssl.create_default_context(cafile=self.ca_file) if self.ca_file else httpx.create_ssl_context()
        except OSError as error:
            why = sanitize(error.strerror or str(error))
            raise ConfigError(f"CA file '{sanitize(self.ca_file)}' cannot be used: {why}; give a PEM file") from None


def _check_header(name: str, value: str) -> None:
    if not _HEADER_NAME.fullmatch(name):
        raise ConfigError(f"wrong header name '{sanitize(name, 60)}'; give 'Name: value'")
    if name.lower() in _RESERVED_HEADERS:
        raise ConfigError(f"header '{name}' is set by this client and cannot be given")
    if not _HEADER_VALUE.fullmatch(value) or not value.isascii():
        raise ConfigError(f"the value of header '{name}' holds a line break, control or non-ASCII character")


_MASK = "***"
_MIN_SUBSTRING = 8
_MIN_IN_ANSWER = 16
"""Shorter secrets are hidden only as whole words: hiding every ``a`` would make the text unreadable."""


class SecretMask:
    """Hides the credentials of one server in texts that the server sent."""

    def __init__(self, access: Access, address: Address) -> None:
        secrets = sorted(_collect_secrets(access, address), key=len, reverse=True)
        self._secrets = tuple(secrets)
        self._pattern = re.compile("|".join(map(_build_secret_pattern, secrets))) if secrets else None
        certain = [
            secret for secret in secrets if len(secret) >= _MIN_IN_ANSWER or _is_credential(secret, access, address)
        ]
        self._certain = re.compile("|".join(map(re.escape, certain))) if certain else None

    def apply(self, text: str) -> str:
        """Return ``text`` with ``***`` in place of every secret, also where the text was cut inside one."""
        if self._pattern is None or not text:
            return text
        shown = self._pattern.sub(_MASK, text)
        return self._hide_cut_secret(shown) if shown.endswith("…") else shown

    def apply_to_answer(self, answer: Any) -> Any:
        """Return decoded JSON with ``***`` in place of every secret in its texts.

        A short header may be a name that the answer needs, such as a model's: it is not replaced.
        """
        if self._certain is None:
            return answer
        if isinstance(answer, str):
            return self._certain.sub(_MASK, answer)
        if isinstance(answer, dict):
            return {name: self.apply_to_answer(value) for name, value in answer.items()}
        return list(map(self.apply_to_answer, answer)) if isinstance(answer, list) else answer

    def _hide_cut_secret(self, text: str) -> str:
        kept = text[:-1]
        for secret in self._secrets:
            for size in range(len(secret) - 1, 3, -1):
                if kept.endswith(secret[:size]):
                    return f"{kept[:-size]}{_MASK}…"
        return text


def _build_secret_pattern(secret: str) -> str:
    escaped = re.escape(secret)
    return escaped if len(secret) >= _MIN_SUBSTRING else rf"(?<!\w){escaped}(?!\w)"


def _is_credential(secret: str, access: Access, address: Address) -> bool:
    """Whether ``secret`` is a token or a password that is long enough not to be a word of the answer."""
    passwords = {access.bearer, address.auth[1] if address.auth else ""}
    return len(secret) >= _MIN_SUBSTRING and secret in passwords


def _collect_secrets(access: Access, address: Address) -> set[str]:
    plain = {access.bearer, *(value.strip() for _, value in access.headers)}
    for name, value in access.headers:
        if name.lower() in ("authorization", "proxy-authorization"):
            plain.add(value.strip().partition(" ")[2].strip())
    if address.auth is not None:
        plain |= {address.auth[1], base64.b64encode(":".join(address.auth).encode()).decode()}
    plain.discard("")
    return plain | {quote(secret, safe="") for secret in plain}
