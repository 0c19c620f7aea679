"""Before and after a load: what the server and the model are, and how the model is loaded."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from importlib.metadata import version as package_version

from pytest_ollama_perf.client.control import Control, Loaded
from pytest_ollama_perf.client.names import canonical
from pytest_ollama_perf.errors import ConfigError
from pytest_ollama_perf.run import Fingerprint, ModelState
from pytest_ollama_perf.text import inert
from pytest_ollama_perf.workload import Workload


def model_state(control: Control, model: str) -> ModelState:
    """Return what ``/api/ps`` says of ``model`` now."""
    return _state(control.loaded(model))


def preflight(
    control: Control,
    workload: Workload,
    *,
    gpu: str = "",
    driver: str = "",
    server_env: Mapping[str, str] | None = None,
) -> tuple[Fingerprint, ModelState]:
    """Return the fingerprint of a run of ``workload`` and the model's state; ask after the model is loaded.

    ``gpu``, ``driver`` and ``server_env`` are what a person declares: the API does not tell.

    Raises:
        Unreachable: nothing answers, or it is not Ollama.
        ModelMissing: the server does not have the model.
        ServerError: the server refuses or answers nonsense.
        ConfigError: the load has images, and the model cannot see.
    """
    server_version = control.version()
    installed = control.installed(workload.model)
    _can_see(control, workload)
    state = model_state(control, workload.model)
    details = installed.details
    fingerprint = Fingerprint(
        server_version=server_version,
        model=inert(canonical(workload.model), 200),
        model_digest=inert(state.digest or installed.digest, 100),
        quantization=inert(details.quantization_level, 40),
        family=inert(details.family, 40),
        parameter_size=inert(details.parameter_size, 40),
        context_length=state.context_length,
        vram_share=state.vram_share,
        gpu=gpu,
        driver=driver,
        server_env=dict(server_env or {}),
        client=client(),
    )
    return fingerprint, state


def _can_see(control: Control, workload: Workload) -> None:
    """Refuse images for a model without vision; a server too old to name capabilities is left to answer itself."""
    if not workload.images:
        return
    able = control.show(workload.model).capabilities
    if able and "vision" not in able:
        what = ", ".join(inert(each, 40) for each in able)
        raise ConfigError(f"images: {workload.model} cannot see (it can: {what}); name a model with vision")


def client() -> dict[str, str]:
    """Return what identifies this client: package, Python and machine."""
    return {
        "pytest-ollama-perf": package_version("pytest-ollama-perf"),
        "python": platform.python_version(),
        "machine": f"{platform.system()} {platform.machine()}",
    }


def _state(loaded: Loaded | None) -> ModelState:
    if loaded is None:
        return ModelState()
    return ModelState(
        loaded=True,
        size=loaded.size,
        size_vram=loaded.size_vram,
        context_length=loaded.context_length,
        digest=inert(loaded.digest, 100),
    )
