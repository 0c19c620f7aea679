"""Every fault of the configuration is one line and exit status 4, before the first test."""

from __future__ import annotations

import importlib.util
import sys

import pytest

TEST = "@pytest.mark.ollama_load(model='tiny', requests=2)\ndef test_it():\n    print('ran')\n"


@pytest.mark.parametrize(
    "text", ["not a certificate", "", "-----BEGIN CERTIFICATE-----\nx\n-----END CERTIFICATE-----\n"]
)
def test_a_ca_file_without_a_certificate(perf, text: str) -> None:
    perf.write(TEST)
    (perf.path / "ca.pem").write_text(text)
    outcome = perf.run("--ollama-ca-file=ca.pem", url="https://127.0.0.1:1")
    assert outcome.status == pytest.ExitCode.USAGE_ERROR, outcome.out
    assert outcome.err.strip() == "ERROR: --ollama-ca-file 'ca.pem': it holds no certificate in PEM format"


def test_a_missing_package_for_the_store(perf, monkeypatch) -> None:
    perf.write(TEST)
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *more: None if name == "psycopg" else find_spec(name))
    monkeypatch.setitem(sys.modules, "psycopg", None)
    monkeypatch.delitem(sys.modules, "pytest_ollama_perf.store.postgresql", raising=False)
    outcome = perf.run("--ollama-store=postgresql://user@127.0.0.1:1/perf", "--ollama-save")
    assert outcome.status == pytest.ExitCode.USAGE_ERROR, outcome.out
    assert "pip install 'pytest-ollama-perf[" in outcome.err
    assert "INTERNALERROR" not in outcome.out + outcome.err


@pytest.mark.parametrize(
    "option",
    [
        "--ollama-wait=soon",
        "--ollama-wait=-1",
        "--ollama-invalid=maybe",
        "--ollama-unreachable=no",
        "--ollama-store=nowhere://x",
        "--ollama-url=http://[::1",
        "--ollama-telemetry=",
    ],
)
def test_a_wrong_value(perf, option: str) -> None:
    perf.write(TEST)
    outcome = perf.run(option)
    if option == "--ollama-telemetry=":  # an empty one is none
        assert outcome.status == 0, outcome.out
        return
    assert outcome.status == pytest.ExitCode.USAGE_ERROR, outcome.out
    (line,) = outcome.err.strip().splitlines()
    assert line.startswith("ERROR: ")
