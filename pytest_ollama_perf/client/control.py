"""The control plane: version, installed and loaded models, loading and unloading."""

from __future__ import annotations

import ssl
import time
from collections.abc import Callable, Mapping
from functools import partial
from types import TracebackType
from typing import Annotated, Any, TypeVar

import httpx
import msgspec

from pytest_ollama_perf.client.address import Access, Address, SecretMask
from pytest_ollama_perf.client.models import InstalledModel, ModelInfo, RunningModel, find_similar_models, is_same_model
from pytest_ollama_perf.client.protocol import (
    DECODE_ERRORS,
    MAX_ERROR_BODY_BYTES,
    extract_body_text,
    extract_error_text,
)
from pytest_ollama_perf.client.transport import describe_connection_error
from pytest_ollama_perf.client.waiting import call_with_deadline
from pytest_ollama_perf.core import ModelNotFoundError, ServerError, ServerUnreachableError
from pytest_ollama_perf.core.text import sanitize

MAX_ANSWER_BYTES = 16 * 1024 * 1024
_UNLOAD_POLL_S = 0.05
_DEADLINE_MARGIN_S = 0.1
"""Left to the timeouts of single steps, whose errors name the step."""

_NO_GENERATION = "does not support generate"
"""Part of the server's error for a model that only embeds."""

T = TypeVar("T")


class _VersionResponse(msgspec.Struct):
    version: Annotated[str, msgspec.Meta(min_length=1)]


class _TagsResponse(msgspec.Struct):
    models: tuple[InstalledModel, ...]


class _PsResponse(msgspec.Struct):
    models: tuple[RunningModel, ...]


class _LoadResponse(msgspec.Struct):
    done: bool | None = None
    embeddings: list[Any] | None = None
    error: Any = None


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
        timeout_s: limit of one call, from name resolution to the last byte; ``load`` and ``unload`` take another.
        trust_env: whether proxies and netrc of the environment count.
        transport: an httpx transport in place of the network.

    Raises:
        ServerUnreachableError: nothing answers, or it is not Ollama.
        ModelNotFoundError: the server does not have the model.
        ServerError: the server refuses, or its answer is invalid. Every method raises these, with one line of text.
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
        self._secrets = SecretMask(access, address)
        self._mask = self._secrets.apply
        self._open_http = partial(
            httpx.Client,
            base_url=address.url,
            headers=[("Accept-Encoding", "identity"), ("User-Agent", "pytest-ollama-perf"), *access.build_headers()],
            auth=access.build_basic_auth(address),
            verify=access.build_ssl_context() if address.tls else ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT),
            trust_env=trust_env,
            transport=transport,
        )
        self._http = self._open_http()

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
        """Return the server's version. An error means that it is not an Ollama server."""
        return self._mask(sanitize(self._fetch("GET", "/api/version", _VersionResponse).version, 40))

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
        """Return the entry of ``model`` in ``tags``, or raise ``ModelNotFoundError``."""
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
            content_type, answer = self._send_request("POST", "/api/generate", body, timeout_s)
        except _HttpStatusError as refused:
            if refused.status != 400 or _NO_GENERATION not in refused.text:
                raise self._make_status_error(refused, "/api/generate", model) from None
            return self._load_embedding_model(model, body, timeout_s)
        took_s = self._clock() - began
        self._check_loaded("/api/generate", self._decode("/api/generate", content_type, answer, _LoadResponse))
        return took_s

    def _load_embedding_model(self, model: str, body: Mapping[str, Any], timeout_s: float) -> float:
        began = self._clock()
        answer = self._fetch(
            "POST", "/api/embed", _LoadResponse, {**body, "input": []}, model=model, timeout_s=timeout_s
        )
        took_s = self._clock() - began
        self._check_loaded("/api/embed", answer)
        return took_s

    def _check_loaded(self, path: str, answer: _LoadResponse) -> None:
        """Raise unless the answer says that the model is loaded: a status of 200 alone does not."""
        if answer.error is not None:
            text = self._mask(extract_error_text(answer.error))
            raise ServerError(f"{self.address.url} could not load the model: {text}")
        if not answer.done and answer.embeddings is None:
            raise ServerUnreachableError(
                f"what answers at {self.address.url}{path} is not Ollama: no done: true; {_START_HINT}"
            )

    def unload(self, model: str, *, timeout_s: float = 60.0) -> None:
        """Unload ``model`` and wait until ``/api/ps`` no longer lists it; does nothing if it is not loaded."""
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
        return self._decode(path, content_type, answer, kind)

    def _decode(self, path: str, content_type: str, answer: bytes, kind: type[T]) -> T:
        try:
            return msgspec.convert(self._secrets.apply_to_answer(msgspec.json.decode(answer)), kind)
        except DECODE_ERRORS as error:
            raise self._make_foreign_error(path, content_type, answer, error) from None

    def _send_request(
        self, method: str, path: str, body: Mapping[str, Any] | None, timeout_s: float
    ) -> tuple[str, bytes]:
        call = partial(self._exchange, self._http, method, path, body, timeout_s)
        try:
            response, answer = call_with_deadline(call, timeout_s + _DEADLINE_MARGIN_S)
        except TimeoutError:
            self._replace_http()
            raise self._make_timeout_error(path, timeout_s) from None
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise self._make_connection_error(error, path, timeout_s) from None
        content_type = response.headers.get("content-type", "")
        if not response.is_success:
            text = self._mask(extract_body_text(content_type, answer))
            raise _HttpStatusError(response.status_code, text, not answer.strip())
        return content_type, answer

    def _exchange(
        self, http: httpx.Client, method: str, path: str, body: Mapping[str, Any] | None, timeout_s: float
    ) -> tuple[httpx.Response, bytes]:
        timeout = httpx.Timeout(timeout_s, connect=min(timeout_s, self._timeout_s))
        deadline = self._clock() + timeout_s
        with http.stream(method, path, json=body, timeout=timeout) as response:
            limit = MAX_ANSWER_BYTES if response.is_success else MAX_ERROR_BODY_BYTES
            try:
                return response, self._read_body(response, limit, deadline)
            except httpx.HTTPError:
                if response.is_success:
                    raise
                return response, b"the body of the error did not end"

    def _replace_http(self) -> None:
        """Abandon the HTTP client whose thread still waits for the server."""
        abandoned, self._http = self._http, self._open_http()
        abandoned.close()

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
        if (tls_error := _find_tls_error(error)) is not None:
            return ServerUnreachableError(f"no connection to {where}: {sanitize(describe_connection_error(tls_error))}")
        text = self._mask(sanitize(str(error) or type(error).__name__, 150))
        if isinstance(error, httpx.ConnectError):
            return ServerUnreachableError(f"nothing answers at {where} ({text}); {_START_HINT}")
        if isinstance(error, httpx.TimeoutException):
            return self._make_timeout_error(path, timeout_s)
        if isinstance(error, httpx.RemoteProtocolError):
            return ServerUnreachableError(f"what answers at {where} is not Ollama: {text}")
        return ServerUnreachableError(f"the connection to {where} broke: {text}")

    def _make_timeout_error(self, path: str, timeout_s: float) -> ServerError:
        return ServerError(f"{self.address.url}{path} gave no complete answer within {timeout_s:g} s")

    def _make_foreign_error(self, path: str, content_type: str, answer: bytes, error: Exception) -> ServerError:
        is_html = "html" in content_type.lower() or answer.lstrip()[:1] == b"<"
        what = "an HTML page" if is_html else self._mask(sanitize(str(error), 150))
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


def _find_tls_error(error: BaseException | None) -> ssl.SSLError | None:
    """Return the TLS error among the causes of ``error``."""
    seen = 0
    while error is not None and seen < 10:
        if isinstance(error, ssl.SSLError):
            return error
        error, seen = error.__cause__ or error.__context__, seen + 1
    return None


_START_HINT = "start it with 'ollama serve', or name another server with --ollama-url or OLLAMA_HOST"
