"""What a request needs to be let in: headers, credentials and trust. Secrets never show in a repr or an error."""

from __future__ import annotations

import re
import ssl
from dataclasses import dataclass, field

import httpx

from pytest_ollama_perf.client.address import Address
from pytest_ollama_perf.errors import ConfigError
from pytest_ollama_perf.text import inert

_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_VALUE = re.compile(r"[^\x00-\x08\x0a-\x1f\x7f]*")
_OURS = frozenset({"x-request-id", "content-length", "transfer-encoding", "connection", "accept-encoding"})


@dataclass(frozen=True)
class Access:
    """``headers`` are sent as given; ``bearer`` is a token; ``ca_file`` is a PEM file; ``verify`` off trusts anybody.

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

    def all_headers(self) -> list[tuple[str, str]]:
        """Return the headers of every request, the token's included."""
        headers = [*self.headers]
        if self.bearer and not self.authorised:
            headers.append(("Authorization", f"Bearer {self.bearer}"))
        return headers

    @property
    def authorised(self) -> bool:
        """Whether a header already says who asks."""
        return any(name.lower() == "authorization" for name, _ in self.headers)

    def auth(self, address: Address) -> httpx.BasicAuth | None:
        """Return the credentials of ``address`` unless something stronger is given."""
        if address.auth is None or self.bearer or self.authorised:
            return None
        return httpx.BasicAuth(*address.auth)

    def ssl_context(self) -> ssl.SSLContext:
        """Build the TLS context.

        Raises:
            ConfigError: the CA file cannot be read.
        """
        if not self.verify:
            return httpx.create_ssl_context(verify=False)
        try:
            return ssl.create_default_context(cafile=self.ca_file) if self.ca_file else httpx.create_ssl_context()
        except OSError as error:
            why = inert(error.strerror or str(error))
            raise ConfigError(f"CA file '{inert(self.ca_file)}' cannot be used: {why}; give a PEM file") from None


def _check_header(name: str, value: str) -> None:
    if not _TOKEN.fullmatch(name):
        raise ConfigError(f"wrong header name '{inert(name, 60)}'; give 'Name: value'")
    if name.lower() in _OURS:
        raise ConfigError(f"header '{name}' is set by this client and cannot be given")
    if not _VALUE.fullmatch(value) or not value.isascii():
        raise ConfigError(f"the value of header '{name}' holds a line break, control or non-ASCII character")
