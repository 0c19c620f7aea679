"""The values that all other packages share."""

from __future__ import annotations


class OllamaPerfError(Exception):
    """Base class. The message is complete: what was given, what is valid, what to do."""


class ConfigError(OllamaPerfError):
    """A value in the user's configuration is wrong."""


class ServerError(OllamaPerfError):
    """A request to the server's API failed."""


class ServerUnreachableError(ServerError):
    """Nothing answers at the address, or what answers is not Ollama."""


class ServerBusyError(ServerError):
    """Another session ran loads on the server for longer than this one may wait."""


class ModelNotFoundError(ServerError):
    """The server does not have the model."""


class PreconditionError(OllamaPerfError):
    """The server or the model is not as required, so nothing was measured."""


class StoreError(OllamaPerfError):
    """A history that cannot be read or written."""


class CorruptRecordError(StoreError):
    """A record that is damaged, truncated or foreign."""


class NewerSchemaError(StoreError):
    """A record written by a newer version of this package."""


class MissingExtraError(OllamaPerfError):
    """An optional package is not installed; the message names the extra."""

    def __init__(self, feature: str, extra: str) -> None:
        super().__init__(f"{feature} needs an extra: pip install 'pytest-ollama-perf[{extra}]'")
