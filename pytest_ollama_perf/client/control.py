"""The control plane: what a server is, which models it has and holds, and loading and unloading them."""

from __future__ import annotations

import difflib
import ssl
import time
from collections.abc import Callable, Iterable, Mapping
from types import TracebackType
from typing import Annotated, Any, TypeVar

import httpx
import msgspec

from pytest_ollama_perf.client.address import Access, Address
from pytest_ollama_perf.client.protocol import MAX_ERROR_BODY_BYTES, extract_body_text
from pytest_ollama_perf.core.errors import ModelNotFoundError, ServerError, ServerUnreachableError
from pytest_ollama_perf.core.text import sanitize


def canonicalize_model(model: str) -> str:
    """Return ``model`` with its tag; without one Ollama means ``latest``."""
    name = model.strip()
    return name if ":" in name.rpartition("/")[2] else f"{name}:latest"


def is_same_model(one: str, other: str) -> bool:
    """Return whether both names mean one model."""
    return canonicalize_model(one).casefold() == canonicalize_model(other).casefold()


def find_similar_models(model: str, installed: Iterable[str], count: int = 3) -> list[str]:
    """Return the ``count`` names most like ``model``, the nearest first; any where none is like it."""
    names = sorted(installed)
    close = sorted(
        (name for name in names if _compute_similarity(model, name) >= _SIMILARITY_CUTOFF),
        key=lambda name: -_compute_similarity(model, name),
    )
    return close[:count] or names[:count]


_SIMILARITY_CUTOFF = 0.5


def _compute_similarity(one: str, other: str) -> float:
    """Return 0..1; names count without their tags, too, for every second model has the tag ``latest``."""
    whole = one.casefold(), other.casefold()
    bare = one.casefold().partition(":")[0], other.casefold().partition(":")[0]
    return max(difflib.SequenceMatcher(None, *pair).ratio() for pair in (whole, bare))


MAX_ANSWER_BYTES = 16 * 1024 * 1024
_UNLOAD_POLL_S = 0.05
_MAX_PARAMETERS = 100
_DECODE_ERRORS = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
_Size = Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]

T = TypeVar("T")


class ModelDetails(msgspec.Struct, frozen=True):
    """What a model is made of; empty where the server does not say."""

    family: str = ""
    parameter_size: str = ""
    quantization_level: str = ""


class InstalledModel(msgspec.Struct, frozen=True):
    """A model of ``/api/tags``; ``size`` in bytes."""

    name: str
    digest: str = ""
    size: _Size = 0
    details: ModelDetails = ModelDetails()


class RunningModel(msgspec.Struct, frozen=True):
    """A model of ``/api/ps``; sizes in bytes, ``context_length`` in tokens."""

    name: str
    digest: str = ""
    size: _Size | None = None
    size_vram: _Size | None = None
    context_length: _Size | None = None
    details: ModelDetails = ModelDetails()
    expires_at: str = ""


class ModelInfo(msgspec.Struct, frozen=True):
    """What ``/api/show`` says; ``model_info`` is the model file's own metadata."""

    details: ModelDetails = ModelDetails()
    model_info: dict[str, Any] = {}
    capabilities: tuple[str, ...] = ()
    parameters: str = ""

    @property
    def default_options(self) -> dict[str, str]:
        """The options that the model file sets, as text; an option that is set several times has all its values."""
        found: dict[str, str] = {}
        for line in self.parameters.splitlines()[:_MAX_PARAMETERS]:
            name, _, value = line.strip().partition(" ")
            if name and value:
                found[name] = f"{found[name]}, {value.strip()}" if name in found else value.strip()
        return {sanitize(name, 40): sanitize(value, 100) for name, value in found.items()}

    @property
    def context_length(self) -> int | None:
        """The longest context that the model was made for, in tokens."""
        lengths = (value for key, value in self.model_info.items() if key.endswith(".context_length"))
        return next((length for length in lengths if type(length) is int and length > 0), None)


class _VersionResponse(msgspec.Struct):
    version: Annotated[str, msgspec.Meta(min_length=1)]


class _TagsResponse(msgspec.Struct):
    models: tuple[InstalledModel, ...]


class _PsResponse(msgspec.Struct):
    models: tuple[RunningModel, ...]


class _HttpStatusError(Exception):
    """An answer with a status of an error; never leaves this module."""

    def __init__(self, status: int, text: str, empty: bool) -> None:
        super().__init__(text)
        self.status = status
        self.text = text
        self.empty = empty


class ControlClient:
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
            headers=[("Accept-Encoding", "identity"), ("User-Agent", "pytest-ollama-perf"), *access.build_headers()],
            auth=access.build_basic_auth(address),
            verify=access.build_ssl_context() if address.tls else ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT),
            trust_env=trust_env,
            transport=transport,
        )

    def __enter__(self) -> ControlClient:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def get_version(self) -> str:
        """Return the server's version; this is also how one asks whether it is Ollama at all."""
        return sanitize(self._fetch("GET", "/api/version", _VersionResponse).version, 40)

    def list_models(self) -> tuple[InstalledModel, ...]:
        """Return the models that the server has."""
        return self._fetch("GET", "/api/tags", _TagsResponse).models

    def list_running(self) -> tuple[RunningModel, ...]:
        """Return the models that are loaded."""
        return self._fetch("GET", "/api/ps", _PsResponse).models

    def get_model_info(self, model: str) -> ModelInfo:
        """Return what the server knows of ``model``."""
        return self._fetch("POST", "/api/show", ModelInfo, {"model": model}, model=model)

    def get_installed(self, model: str) -> InstalledModel:
        """Return the entry of ``model`` in ``tags``, or raise ``ModelMissing``."""
        models = self.list_models()
        for entry in models:
            if is_same_model(entry.name, model):
                return entry
        raise self._make_missing_error(model, [entry.name for entry in models])

    def find_running(self, model: str) -> RunningModel | None:
        """Return the entry of ``model`` in ``ps``; ``None`` while it is not loaded."""
        return next((entry for entry in self.list_running() if is_same_model(entry.name, model)), None)

    def load(
        self,
        model: str,
        *,
        keep_alive: str | float | None = None,
        num_ctx: int | None = None,
        options: Mapping[str, Any] | None = None,
        timeout_s: float = 600.0,
    ) -> float:
        """Load ``model`` without generating anything and return how many seconds that took, on this client's clock.

        The server chooses what is left out: the context length without ``num_ctx``, the time that the model stays
        loaded without ``keep_alive``.
        """
        chosen = {**(options or {}), **({} if num_ctx is None else {"num_ctx": num_ctx})}
        body: dict[str, Any] = {"model": model, "stream": False, **({"options": chosen} if chosen else {})}
        if keep_alive is not None:
            body["keep_alive"] = keep_alive
        began = self._clock()
        try:
            self._send_request("POST", "/api/generate", body, timeout_s)
        except _HttpStatusError as refused:
            if refused.status != 400 or "does not support generate" not in refused.text:
                raise self._make_status_error(refused, "/api/generate", model) from None
            began = self._clock()
            self._fetch("POST", "/api/embed", dict[str, Any], {**body, "input": []}, model=model, timeout_s=timeout_s)
        return self._clock() - began

    def unload(self, model: str, *, timeout_s: float = 60.0) -> None:
        """Unload ``model`` and wait until ``/api/ps`` no longer lists it; nothing happens where it is not loaded."""
        if self.find_running(model) is None:
            return
        body = {"model": model, "stream": False, "keep_alive": 0}
        self._fetch("POST", "/api/generate", dict[str, Any], body, model=model, timeout_s=timeout_s)
        deadline = self._clock() + timeout_s
        while self.find_running(model) is not None:
            if self._clock() >= deadline:
                raise ServerError(
                    f"model '{sanitize(model, 100)}' is still loaded {timeout_s:g} s after it was unloaded on "
                    f"{self.address.url}; is something else using it?"
                )
            self._sleep(_UNLOAD_POLL_S)

    def _fetch(
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
            content_type, answer = self._send_request(method, path, body, timeout_s or self._timeout_s)
        except _HttpStatusError as refused:
            raise self._make_status_error(refused, path, model) from None
        try:
            return msgspec.json.decode(answer, type=kind)
        except _DECODE_ERRORS as error:
            raise self._make_foreign_error(path, content_type, answer, error) from None

    def _send_request(
        self, method: str, path: str, body: Mapping[str, Any] | None, timeout_s: float
    ) -> tuple[str, bytes]:
        timeout = httpx.Timeout(timeout_s, connect=min(timeout_s, self._timeout_s))
        deadline = self._clock() + timeout_s
        try:
            with self._http.stream(method, path, json=body, timeout=timeout) as response:
                limit = MAX_ANSWER_BYTES if response.is_success else MAX_ERROR_BODY_BYTES
                answer = self._read_body(response, limit, deadline)
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise self._make_connection_error(error, path, timeout_s) from None
        content_type = response.headers.get("content-type", "")
        if not response.is_success:
            raise _HttpStatusError(response.status_code, extract_body_text(content_type, answer), not answer.strip())
        return content_type, answer

    def _read_body(self, response: httpx.Response, limit: int, deadline: float) -> bytes:
        answer = bytearray()
        for piece in response.iter_bytes():
            answer += piece
            if len(answer) > limit:
                if not response.is_success:
                    break
                raise ServerError(f"{self.address.url} answers with more than {limit} bytes; is this Ollama?")
            if self._clock() > deadline:
                raise httpx.ReadTimeout("the answer does not end")
        return bytes(answer[:limit])

    def _make_connection_error(self, error: Exception, path: str, timeout_s: float) -> ServerError:
        where = self.address.url
        if isinstance(error, httpx.ConnectTimeout):
            return ServerUnreachableError(
                f"nothing answers at {where} within {min(timeout_s, self._timeout_s):g} s; {_START_HINT}"
            )
        if isinstance(error, httpx.ConnectError):
            return ServerUnreachableError(f"nothing answers at {where} ({sanitize(str(error), 150)}); {_START_HINT}")
        if isinstance(error, httpx.TimeoutException):
            return ServerError(f"{where}{path} gave no whole answer within {timeout_s:g} s")
        if isinstance(error, httpx.RemoteProtocolError):
            return ServerUnreachableError(f"what answers at {where} is not Ollama: {sanitize(str(error), 150)}")
        return ServerUnreachableError(
            f"the connection to {where} broke: {sanitize(str(error) or type(error).__name__, 150)}"
        )

    def _make_foreign_error(self, path: str, content_type: str, answer: bytes, error: Exception) -> ServerError:
        is_html = "html" in content_type.lower() or answer.lstrip()[:1] == b"<"
        what = "an HTML page" if is_html else sanitize(str(error), 150)
        return ServerUnreachableError(f"what answers at {self.address.url}{path} is not Ollama: {what}; {_START_HINT}")

    def _make_status_error(self, refused: _HttpStatusError, path: str, model: str) -> ServerError:
        where = self.address.url
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
            return self._make_missing_error(model, [entry.name for entry in self.list_models()])
        if 300 <= refused.status < 400 or (refused.status in (404, 405) and not model):
            return ServerUnreachableError(
                f"what answers at {where} is not Ollama: HTTP {refused.status} for {path}; {_START_HINT}"
            )
        return ServerError(f"{where} answers HTTP {refused.status} for {path}: {refused.text}")

    def _make_missing_error(self, model: str, installed: list[str]) -> ModelNotFoundError:
        name = sanitize(model, 100)
        has = ", ".join(sanitize(other, 60) for other in find_similar_models(model, installed))
        more = "" if len(installed) <= 3 else f" and {len(installed) - 3} more"
        return ModelNotFoundError(
            f"model '{name}' is not on {self.address.url}; type: ollama pull {name}"
            + (f"; it has {has}{more}" if has else "; it has no models at all")
        )


_START_HINT = "start it with 'ollama serve', or name another server with --ollama-url or OLLAMA_HOST"
