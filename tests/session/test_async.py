"""Loads from async tests: on anyio with both its backends, and on a loop that the test runs itself."""

from __future__ import annotations

import pytest

LOAD = "model='tiny', requests=20, warmup=0, num_predict=4"


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_a_load_is_awaited_under_anyio(perf, backend: str) -> None:
    perf.write(f"""
        import anyio

        @pytest.fixture
        def anyio_backend():
            return {backend!r}

        @pytest.mark.anyio
        async def test_it(ollama):
            ticks = 0

            async def tick():
                nonlocal ticks
                while True:
                    await anyio.sleep(0)
                    ticks += 1

            async with anyio.create_task_group() as group:
                group.start_soon(tick)
                result = await ollama.aload({LOAD})
                group.cancel_scope.cancel()
            assert result.tps > 0
            assert ticks > 0

        @pytest.mark.anyio
        async def test_bad(ollama):
            await ollama.aload({LOAD}, min_tps=1e9)

        @pytest.mark.anyio
        @pytest.mark.ollama_load({LOAD})
        async def test_marked(ollama_load):
            assert ollama_load.error_rate == 0
    """)
    found = perf.run("-p", "anyio.pytest_plugin")
    assert found.counts == {"passed": 2, "failed": 1}
    assert [test["verdict"] for test in found.report["tests"]] == ["ok", "broken", "ok"]


def test_a_load_is_awaited_on_a_loop_of_the_test(perf) -> None:
    perf.write(f"""
        import asyncio

        def test_it(ollama):
            async def main():
                return await asyncio.gather(ollama.aload({LOAD}), asyncio.sleep(0, "free"))

            result, word = asyncio.run(main())
            assert (result.error_rate, word) == (0, "free")
    """)
    assert perf.run().counts == {"passed": 1}


def test_a_load_fires_inside_a_running_loop(perf) -> None:
    perf.write(f"""
        import asyncio

        def test_it(ollama):
            async def main():
                return ollama.load({LOAD})

            assert asyncio.run(main()).error_rate == 0
    """)
    assert perf.run().counts == {"passed": 1}


def test_a_cancelled_load_stops(perf, sim) -> None:
    perf.write("""
        import anyio

        def test_it(ollama):
            async def main():
                with anyio.move_on_after(0.3):
                    await ollama.aload(model="tiny", requests=100000, warmup=0, num_predict=4)
                return "stopped"

            assert anyio.run(main) == "stopped"
    """)
    sim.reset()
    assert perf.run().counts == {"passed": 1}
    assert len(sim.requests()) < 20000
