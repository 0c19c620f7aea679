"""The errors this package raises on purpose.

OllamaPerfError
├── ConfigError          a wrong option, marker word, ini value or file; shown as a usage error
├── ServerError          the control plane could not do what was asked
│   ├── Unreachable      nothing answers, or not Ollama
│   ├── ServerBusyError        another session ran loads on it for too long
│   └── ModelMissing     the server does not have the model
├── PreconditionBroken   the server or model is not as a contract requires: nothing was measured
├── StoreError           a history that cannot be read or written
│   ├── CorruptRecord    a record that is damaged, truncated or foreign
│   └── NewerSchema      a record written by a newer version
└── MissingExtra         an optional package is not installed

A failed request is no error: it is a sample with an outcome.
"""

from __future__ import annotations


class OllamaPerfError(Exception):
    """Base of every error of this package. The message stands alone: what was given, what is valid, what to do."""


class ConfigError(OllamaPerfError):
    """A value that a person wrote is wrong."""


class ServerError(OllamaPerfError):
    """The control plane could not do what was asked."""


class ServerUnreachableError(ServerError):
    """Nothing answers at the address, or what answers is not Ollama."""


class ServerBusyError(ServerError):
    """Another session ran loads on the server for longer than this one may wait."""


class ModelNotFoundError(ServerError):
    """The server does not have the model."""


class PreconditionError(OllamaPerfError):
    """The server or the model is not as required; a load would say nothing."""


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
