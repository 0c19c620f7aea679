"""Servers that are not there, not Ollama, or up to no good: named in one line, never green, never trusted."""

from __future__ import annotations

import re
import socket

import pytest

from pytest_ollama_perf.core import StoreError
from pytest_ollama_perf.store.directory import DirectoryStore

LOAD = "model='tiny', requests=20, warmup=0, num_predict=4"
MARKED = f"@pytest.mark.ollama_load({LOAD})\ndef test_it():\n    pass"


@pytest.fixture
def nobody() -> str:
    """An address where nothing listens."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{taken.getsockname()[1]}"


def test_a_missing_model_names_the_pull_to_type(perf) -> None:
    perf.write("@pytest.mark.ollama_load(model='llama9:1b')\ndef test_it():\n    pass")
    found = perf.run()
    assert found.counts == {"failed": 1}
    first = found.failure("test_it")[0]
    assert "llama9:1b" in first
    assert "ollama pull llama9:1b" in "\n".join(found.failure("test_it"))
    assert [(test["verdict"], test["loads"]) for test in found.report["tests"]] == [("invalid", [])]


def test_an_unreachable_server_fails_every_test_in_one_line(perf, nobody: str) -> None:
    perf.write(MARKED + "\n\ndef test_free():\n    pass")
    found = perf.run(url=nobody)
    assert (found.status, found.counts) == (1, {"failed": 1, "passed": 1})
    text = " ".join(found.failure("test_it"))
    assert text.startswith(f"nothing answers at {nobody} (")
    assert "start it with 'ollama serve', or name another server with --ollama-url or OLLAMA_HOST" in text
    assert f"ollama not reached at {nobody}: tiny" in found.out


def test_the_environment_names_the_server(perf, sim, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OLLAMA_HOST", sim.url)
    perf.write(MARKED)
    sim.reset()
    assert perf.run(url="").counts == {"passed": 1}
    assert len([one for one in sim.requests() if one.eval_count]) == 20


def test_the_ini_file_names_the_server(perf, sim) -> None:
    perf.write(MARKED, pytest=f"[pytest]\nollama_url =\n    {sim.url}\nollama_model = mid")
    assert perf.run(url="").counts == {"passed": 1}


def test_several_servers_share_the_load(perf, sim) -> None:
    perf.write(
        "@pytest.mark.ollama_load(model='tiny', requests=20, concurrency=4, num_predict=2)\ndef test_it():\n    pass"
    )
    sim.reset()
    found = perf.run("--ollama-url=sim:?load_time=0&models=tiny")
    samples = found.report["tests"][0]["loads"][0]["samples"]
    per_server = [sum(sample["url"] == url for sample in samples) for url in {sample["url"] for sample in samples}]
    assert sorted(per_server) == [12, 12]


def test_what_is_no_ollama_is_not_measured(perf, httpserver) -> None:
    httpserver.expect_request(re.compile(".*")).respond_with_data("<html>hello</html>", content_type="text/html")
    perf.write(MARKED)
    found = perf.run(url=httpserver.url_for("/"))
    assert found.counts == {"failed": 1}
    assert "Ollama" in " ".join(found.failure("test_it"))
    assert [test["verdict"] for test in found.report["tests"]] == ["invalid"]


def test_credentials_go_to_the_server_and_nowhere_else(perf, httpserver, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[str, str]] = []

    def answer(request):
        from werkzeug import Response

        seen.append((request.headers.get("Authorization", ""), request.headers.get("X-Team", "")))
        return Response('{"error": "who are you? Bearer s3cret"}', 401, content_type="application/json")

    httpserver.expect_request(re.compile(".*")).respond_with_handler(answer)
    monkeypatch.setenv("OLLAMA_API_KEY", "s3cret")
    perf.write(MARKED)
    found = perf.run("--ollama-header=X-Team: t0psecret", url=httpserver.url_for("/"))
    assert found.counts == {"failed": 1}
    assert set(seen) == {("Bearer s3cret", "t0psecret")}
    assert "t0psecret" not in found.out + found.err + str(found.report)


def test_a_password_in_the_url_is_shown_nowhere(perf, sim) -> None:
    perf.write(MARKED)
    found = perf.run("-v", url=sim.url.replace("http://", "http://me:s3cret@"))
    assert found.counts == {"passed": 1}
    assert "s3cret" not in found.out + found.err + str(found.report)


NASTY = r"\u001b[2J\u001b]0;owned\u0007 line\nbreak \u202e \u0000 end"


def test_control_characters_of_a_server_reach_no_terminal(perf, httpserver) -> None:
    httpserver.expect_request(re.compile(".*")).respond_with_data(
        f'{{"error": "{NASTY}"}}', status=500, content_type="application/json"
    )
    perf.write(MARKED)
    found = perf.run("-v", "--color=no", "--junitxml=junit.xml", url=httpserver.url_for("/"))
    assert found.counts == {"failed": 1}
    texts = [found.out, (perf.path / "junit.xml").read_text(encoding="utf-8"), (perf.path / "report.json").read_text()]
    for text in texts:
        assert not set("\x1b\x07\x00\u202e") & set(text)
        assert r"\u001b" not in text
    assert "owned" in found.out


@pytest.mark.parametrize(
    ("fault", "outcome"),
    [
        ("http_500", "http_error"),
        ("error:1", "server_error"),
        ("truncate:1", "truncated"),
        ("drop:1", "cut_off"),
        ("busy", "busy"),
    ],
)
def test_one_failed_request_breaks_the_default_contract(perf, fault: str, outcome: str) -> None:
    perf.write("@pytest.mark.ollama_load(model='tiny', requests=4, warmup=0, num_predict=4)\ndef test_it():\n    pass")
    found = perf.run(url=f"sim:?load_time=0&models=tiny&fault={fault}@2")
    assert found.counts == {"failed": 1}
    (test,) = found.report["tests"]
    assert test["verdict"] in {"broken", "invalid"}
    assert [sample["outcome"] for sample in test["loads"][0]["samples"]] == ["ok", outcome, "ok", "ok"]
    assert outcome.split("_", maxsplit=1)[0] in "\n".join(found.failure("test_it"))


def test_a_simulator_of_the_command_line_ends_with_the_session(perf) -> None:
    perf.write(f"""
        import pathlib

        @pytest.mark.ollama_load({LOAD})
        def test_it(ollama_url):
            pathlib.Path("url").write_text(ollama_url)
    """)
    assert perf.run(url="sim:?load_time=0&models=tiny").counts == {"passed": 1}
    host, _, port = (perf.path / "url").read_text().removeprefix("http://").partition(":")
    with pytest.raises(OSError), socket.create_connection((host, int(port)), timeout=2):
        pass


def test_simulators_of_a_fixture_are_each_their_own_and_end_with_the_test(perf, nobody: str) -> None:
    perf.write("""
        import socket
        urls = []

        def test_it(ollama_simulator):
            one, other = ollama_simulator(slots=2, tps=100), ollama_simulator(models="a,b")
            assert one.url != other.url
            assert one.settings.slot_count == 2
            assert other.requests() == []
            urls.extend([one.url, other.url])

        def test_next():
            for url in urls:
                with pytest.raises(OSError):
                    socket.create_connection(("127.0.0.1", int(url.rpartition(":")[2])), timeout=2)
    """)
    assert perf.run(url=nobody).counts == {"passed": 2}


def test_a_quiet_build_says_why_it_could_not_save(perf, monkeypatch) -> None:
    def full(store: object, run: object, kind: object) -> None:
        raise StoreError("run 1 could not be saved: No space left on device")

    monkeypatch.setattr(DirectoryStore, "add", full)
    perf.write(MARKED)
    found = perf.run("-q", "--ollama-save", "--ollama-store=history")
    assert (found.status, found.counts) == (1, {"passed": 1})
    assert found.out.count("No space left on device") == 1
