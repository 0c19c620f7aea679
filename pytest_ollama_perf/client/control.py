"""The control plane: what a server is, which models it has and holds, and loading and unloading them."""

from __future__ import annotations

import ssl
import time
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Annotated, Any, TypeVar

import httpx
import msgspec

from pytest_ollama_perf.client.access import Access
from pytest_ollama_perf.client.address import Address
from pytest_ollama_perf.client.errortext import BODY_LIMIT, body_text
from pytest_ollama_perf.client.names import nearest, same_model
from pytest_ollama_perf.errors import ModelMissing, ServerError, Unreachable
from pytest_ollama_perf.text import inert

ANSWER_LIMIT = 16 * 1024 * 1024
_POLL_S = 0.05
_DECODE_ERRORS = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
_Size = Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]

T = TypeVar("T")


class Details(msgspec.Struct, frozen=True):
    """What a model is made of; empty where the server does not say."""

    family: str = ""
    parameter_size: str = ""
    quantization_level: str = ""


class Installed(msgspec.Struct, frozen=True):
    """A model of ``/api/tags``; ``size`` in bytes."""

    name: str
    digest: str = ""
    size: _Size = 0
    details: Details = Details()


class Loaded(msgspec.Struct, frozen=True):
    """A model of ``/api/ps``; sizes in bytes, ``context_length`` in tokens."""

    name: str
    digest: str = ""
    size: _Size | None = None
    size_vram: _Size | None = None
    context_length: _Size | None = None
    details: Details = Details()


class Shown(msgspec.Struct, frozen=True):
    """What ``/api/show`` says; ``model_info`` is the model file's own metadata."""

    details: Details = Details()
    model_info: dict[str, Any] = {}
    capabilities: tuple[str, ...] = ()

    @property
    def context_length(self) -> int | None:
        """The longest context that the model was made for, in tokens."""
        lengths = (value for key, value in self.model_info.items() if key.endswith(".context_length"))
        return next((length for length in lengths if type(length) is int and length > 0), None)


class _Version(msgspec.Struct):
    version: Annotated[str, msgspec.Meta(min_length=1)]


class _Tags(msgspec.Struct):
    models: tuple[Installed, ...]


class _Ps(msgspec.Struct):
    models: tuple[Loaded, ...]


class _Refused(Exception):
    """An answer with a status of an error; never leaves this module."""

    def __init__(self, status: int, text: str, empty: bool) -> None:
        super().__init__(text)
        self.status = status
        self.text = text
        self.empty = empty


class Control:
    """Talks to one server, one request after another. Close it, or use it as a context manager.

    Args:
        address: the server.
        access: credentials, headers and trust.
        timeout_s: for one answer; loading has a limit of its own.
        trust_env: whether proxies and netrc of the environment count.
        transport: an httpx transport in place of the network.

    Raises:
        Unreachable: nothing answers, or it is not Ollama.
        ModelMissing: the server does not have the model.
        ServerError: the server refuses or answers nonsense. Each in one line, from every method.
    """

    def __init__(
        self,
        address: Address,
        access: Access | None = None,
        *,
        timeout_s: float = 10.0,
        trust_env: bool = False,
        transport: httpx.BaseTransport | None = None,
        sleep: Callable[[float], None] = time.sleep,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        access = access or Access()
        self.address = address
        self._timeout_s = timeout_s
        self._sleep = sleep
        self._clock = clock
        self._http = httpx.Client(
            base_url=address.url,
            headers=[("Accept-Encoding", "identity"), ("User-Agent", "pytest-ollama-perf"), *access.all_headers()],
            auth=access.auth(address),
            verify=access.ssl_context() if address.tls else ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT),
            trust_env=trust_env,
            transport=transport,
        )

    def __enter__(self) -> Control:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def version(self) -> str:
        """Return the server's version; this is also how one asks whether it is Ollama at all."""
        return inert(self._ask("GET", "/api/version", _Version).version, 40)

    def tags(self) -> tuple[Installed, ...]:
        """Return the models that the server has."""
        return self._ask("GET", "/api/tags", _Tags).models

    def ps(self) -> tuple[Loaded, ...]:
        """Return the models that are loaded."""
        return self._ask("GET", "/api/ps", _Ps).models

    def show(self, model: str) -> Shown:
        """Return what the server knows of ``model``."""
        return self._ask("POST", "/api/show", Shown, {"model": model}, model=model)

    def installed(self, model: str) -> Installed:
        """Return the entry of ``model`` in ``tags``, or raise ``ModelMissing``."""
        models = self.tags()
        for entry in models:
            if same_model(entry.name, model):
                return entry
        raise self._missing(model, [entry.name for entry in models])

    def loaded(self, model: str) -> Loaded | None:
        """Return the entry of ``model`` in ``ps``; ``None`` while it is not loaded."""
        return next((entry for entry in self.ps() if same_model(entry.name, model)), None)

    def load(
        self,
        model: str,
        *,
        keep_alive: str | float | None = None,
        num_ctx: int | None = None,
        options: Mapping[str, Any] | None = None,
        timeout_s: float = 600.0,
    ) -> float:
        """Load ``model`` without generating anything and return the seconds that took, on this client's clock."""
        chosen = {**(options or {}), **({} if num_ctx is None else {"num_ctx": num_ctx})}
        body: dict[str, Any] = {"model": model, "stream": False, "options": chosen}
        if keep_alive is not None:
            body["keep_alive"] = keep_alive
        began = self._clock()
        try:
            self._request("POST", "/api/generate", body, timeout_s)
        except _Refused as refused:
            if refused.status != 400 or "does not support generate" not in refused.text:
                raise self._error(refused, "/api/generate", model) from None
            began = self._clock()
            self._ask("POST", "/api/embed", dict[str, Any], {**body, "input": []}, model=model, timeout_s=timeout_s)
        return self._clock() - began

    def unload(self, model: str, *, timeout_s: float = 60.0) -> None:
        """Unload ``model`` and wait until ``/api/ps`` no longer lists it; nothing happens where it is not loaded."""
        if self.loaded(model) is None:
            return
        body = {"model": model, "stream": False, "keep_alive": 0}
        self._ask("POST", "/api/generate", dict[str, Any], body, model=model, timeout_s=timeout_s)
        deadline = self._clock() + timeout_s
        while self.loaded(model) is not None:
            if self._clock() >= deadline:
                raise ServerError(
                    f"model '{inert(model, 100)}' is still loaded {timeout_s:g} s after it was unloaded on "
                    f"{self.address.display}; is something else using it?"
                )
            self._sleep(_POLL_S)

    def _ask(
        self,
        method: str,
        path: str,
        kind: type[T],
        body: Mapping[str, Any] | None = None,
        *,
        model: str = "",
        timeout_s: float | None = None,
    ) -> T:
        try:
            content_type, answer = self._request(method, path, body, timeout_s or self._timeout_s)
        except _Refused as refused:
            raise self._error(refused, path, model) from None
        try:
            return msgspec.json.decode(answer, type=kind)
        except _DECODE_ERRORS as error:
            raise self._foreign(path, content_type, answer, error) from None

    def _request(self, method: str, path: str, body: Mapping[str, Any] | None, timeout_s: float) -> tuple[str, bytes]:
        timeout = httpx.Timeout(timeout_s, connect=min(timeout_s, self._timeout_s))
        deadline = self._clock() + timeout_s
        try:
            with self._http.stream(method, path, json=body, timeout=timeout) as response:
                limit = ANSWER_LIMIT if response.is_success else BODY_LIMIT
                answer = self._read(response, limit, deadline)
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise self._unreachable(error, path, timeout_s) from None
        content_type = response.headers.get("content-type", "")
        if not response.is_success:
            raise _Refused(response.status_code, body_text(content_type, answer), not answer.strip())
        return content_type, answer

    def _read(self, response: httpx.Response, limit: int, deadline: float) -> bytes:
        answer = bytearray()
        for piece in response.iter_bytes():
            answer += piece
            if len(answer) > limit:
                if not response.is_success:
                    break
                raise ServerError(f"{self.address.display} answers with more than {limit} bytes; is this Ollama?")
            if self._clock() > deadline:
                raise httpx.ReadTimeout("the answer does not end")
        return bytes(answer[:limit])

    def _unreachable(self, error: Exception, path: str, timeout_s: float) -> ServerError:
        where = self.address.display
        if isinstance(error, httpx.ConnectTimeout):
            return Unreachable(f"nothing answers at {where} within {min(timeout_s, self._timeout_s):g} s; {_REMEDY}")
        if isinstance(error, httpx.ConnectError):
            return Unreachable(f"nothing answers at {where} ({inert(str(error), 150)}); {_REMEDY}")
        if isinstance(error, httpx.TimeoutException):
            return ServerError(f"{where}{path} gave no whole answer within {timeout_s:g} s")
        if isinstance(error, httpx.RemoteProtocolError):
            return Unreachable(f"what answers at {where} is not Ollama: {inert(str(error), 150)}")
        return Unreachable(f"the connection to {where} broke: {inert(str(error) or type(error).__name__, 150)}")

    def _foreign(self, path: str, content_type: str, answer: bytes, error: Exception) -> ServerError:
        is_html = "html" in content_type.lower() or answer.lstrip()[:1] == b"<"
        what = "an HTML page" if is_html else inert(str(error), 150)
        return Unreachable(f"what answers at {self.address.display}{path} is not Ollama: {what}; {_REMEDY}")

    def _error(self, refused: _Refused, path: str, model: str) -> ServerError:
        where = self.address.display
        if refused.status in (401, 407):
            return ServerError(
                f"{where} asks for credentials (HTTP {refused.status}); set OLLAMA_API_KEY for a bearer token or give "
                "--ollama-header 'Authorization: ...'"
            )
        if refused.status == 403 and refused.empty:
            return ServerError(
                f"{where} refuses this Host header (HTTP 403); name the server by IP address or localhost, or start it "
                "with OLLAMA_HOST=0.0.0.0"
            )
        if refused.status == 404 and model and "not found" in refused.text and "page" not in refused.text:
            return self._missing(model, [entry.name for entry in self.tags()])
        if 300 <= refused.status < 400 or (refused.status in (404, 405) and not model):
            return Unreachable(f"what answers at {where} is not Ollama: HTTP {refused.status} for {path}; {_REMEDY}")
        return ServerError(f"{where} answers HTTP {refused.status} for {path}: {refused.text}")

    def _missing(self, model: str, installed: list[str]) -> ModelMissing:
        name = inert(model, 100)
        has = ", ".join(inert(other, 60) for other in nearest(model, installed))
        more = "" if len(installed) <= 3 else f" and {len(installed) - 3} more"
        return ModelMissing(
            f"model '{name}' is not on {self.address.display}; type: ollama pull {name}"
            + (f"; it has {has}{more}" if has else "; it has no models at all")
        )


_REMEDY = "start it with 'ollama serve', or name another server with --ollama-url or OLLAMA_HOST"
