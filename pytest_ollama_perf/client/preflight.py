"""Facts about the server and the model, read before and after a load."""

from __future__ import annotations

import contextlib
import platform
from collections.abc import Mapping
from importlib.metadata import version as package_version

from pytest_ollama_perf.client.control import ControlClient
from pytest_ollama_perf.client.models import ModelInfo, RunningModel, canonicalize_model
from pytest_ollama_perf.client.polling import describe_clock
from pytest_ollama_perf.core import ConfigError, ServerError
from pytest_ollama_perf.core.run import Fingerprint, ModelState
from pytest_ollama_perf.core.text import sanitize
from pytest_ollama_perf.core.workload import Workload


def read_model_state(control: ControlClient, model: str) -> ModelState:
    """Return the state of ``model`` according to ``/api/ps``."""
    return _to_model_state(control.find_running(model))


def run_preflight(
    control: ControlClient,
    workload: Workload,
    *,
    gpu: str = "",
    driver: str = "",
    server_env: Mapping[str, str] | None = None,
) -> tuple[Fingerprint, ModelState]:
    """Return the fingerprint of a run of ``workload`` and the model's state; ask after the model is loaded.

    ``gpu``, ``driver`` and ``server_env`` are declared by the user, because the API does not report them.

    Raises:
        ServerUnreachableError: nothing answers, or it is not Ollama.
        ModelNotFoundError: the server does not have the model.
        ServerError: the server refuses, or its answer is invalid.
        ConfigError: the load has images, and the model does not support them.
    """
    server_version = control.get_version()
    installed = control.get_installed(workload.model)
    info = _read_model_info(control, workload.model)
    _require_vision(info, workload)
    state = read_model_state(control, workload.model)
    details = installed.details
    fingerprint = Fingerprint(
        server_version=server_version,
        model=sanitize(canonicalize_model(workload.model), 200),
        model_digest=sanitize(state.digest or installed.digest, 100),
        quantization=sanitize(details.quantization_level, 40),
        family=sanitize(details.family, 40),
        parameter_size=sanitize(details.parameter_size, 40),
        context_length=state.context_length,
        vram_share=state.vram_share,
        parameters=info.default_options,
        capabilities=tuple(sanitize(each, 40) for each in info.capabilities),
        gpu=gpu,
        driver=driver,
        server_env=dict(server_env or {}),
        client=collect_client_info(),
    )
    return fingerprint, state


def _read_model_info(control: ControlClient, model: str) -> ModelInfo:
    """Return the answer of ``/api/show``, an empty one if the server or a proxy does not support that path."""
    with contextlib.suppress(ServerError):
        return control.get_model_info(model)
    return ModelInfo()


def _require_vision(info: ModelInfo, workload: Workload) -> None:
    """Refuse images for a model without vision. Old servers do not list capabilities; there the server decides."""
    able = info.capabilities if workload.images else ()
    if able and "vision" not in able:
        what = ", ".join(sanitize(each, 40) for each in able)
        raise ConfigError(
            f"images: {workload.model} does not support images (capabilities: {what}); use a model with vision"
        )


def collect_client_info() -> dict[str, str]:
    """Return what identifies this client: package, Python, machine, and the clock of its times."""
    return {
        "pytest-ollama-perf": package_version("pytest-ollama-perf"),
        "python": platform.python_version(),
        "machine": f"{platform.system()} {platform.machine()}",
        "clock": describe_clock(),
    }


def _to_model_state(loaded: RunningModel | None) -> ModelState:
    if loaded is None:
        return ModelState()
    return ModelState(
        loaded=True,
        size=loaded.size,
        size_vram=loaded.size_vram,
        context_length=loaded.context_length,
        digest=sanitize(loaded.digest, 100),
    )
