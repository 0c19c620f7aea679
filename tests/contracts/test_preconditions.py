"""What a contract requires of a loaded model, where a load begins without one."""

from __future__ import annotations

import msgspec
import pytest
from run_makers import one_after_another, run_of

from pytest_ollama_perf.contracts.preconditions import parse_precondition
from pytest_ollama_perf.core.run import ModelState, Run

LOADED = ModelState(loaded=True, size=100, size_vram=80, context_length=4096)


def begun(state: ModelState, *, cold: bool) -> Run:
    run = run_of(*one_after_another(2), before={"http://box:11434": state})
    return msgspec.structs.replace(run, workload=msgspec.structs.replace(run.workload, cold=cold))


@pytest.mark.parametrize(("name", "value"), [("gpu_offload", "100%"), ("context_length", 8192)])
def test_a_cold_load_breaks_no_requirement_that_only_a_loaded_model_can_answer(name: str, value: object) -> None:
    requirement = parse_precondition(name, value)
    assert requirement.explain_violation(begun(ModelState(), cold=True)) == ""
    assert "the server does not say" in requirement.explain_violation(begun(ModelState(), cold=False))
    assert "is broken" in requirement.explain_violation(begun(LOADED, cold=True))
