"""A module like ``pynvml`` as nvidia-ml-py documents it: errors carry NVML's code in ``value`` and its text in str."""

from __future__ import annotations

from types import SimpleNamespace

TEXTS = {
    3: "Not Supported",
    9: "Driver Not Loaded",
    10: "Timeout",
    12: "NVML Shared Library Not Found",
    13: "Function Not Found",
    15: "GPU is lost",
}
USUAL = {
    "nvmlDeviceGetUtilizationRates": SimpleNamespace(gpu=93, memory=40),
    "nvmlDeviceGetMemoryInfo": SimpleNamespace(total=24 * 2**30, free=6 * 2**30, used=18 * 2**30),
    "nvmlDeviceGetPowerUsage": 410_500,
    "nvmlDeviceGetTemperature": 71,
    "nvmlDeviceGetClockInfo": 1980,
    "nvmlDeviceGetTotalEnergyConsumption": 5_000_000,
    "nvmlDeviceGetCurrentClocksEventReasons": 0x4,
}


class NVMLError(Exception):
    def __init__(self, value):
        super().__init__(value)
        self.value = value

    def __str__(self):
        return TEXTS[self.value]


class FakeNvml:
    """``answers`` overrides what functions return; an int in ``errors`` is the code that a function fails with."""

    NVMLError = NVMLError
    NVML_TEMPERATURE_GPU = 0
    NVML_CLOCK_SM = 1

    def __init__(self, gpus=1, errors=None, missing=(), **answers):
        self.gpus = gpus
        self.errors = dict(errors or {})
        self.missing = missing
        self.answers = {**USUAL, **answers}
        self.asked = []
        self.open = 0

    def nvmlInit(self):
        self._fail("nvmlInit")
        self.open += 1

    def nvmlShutdown(self):
        self._fail("nvmlShutdown")
        self.open -= 1

    def nvmlSystemGetDriverVersion(self):
        return "570.86.15"

    def nvmlDeviceGetCount(self):
        return self.gpus

    def nvmlDeviceGetHandleByIndex(self, index):
        return index

    def nvmlDeviceGetName(self, handle):
        return b"NVIDIA H200"

    def __getattr__(self, name):
        if name in self.missing or name not in {*USUAL, "nvmlDeviceGetCurrentClocksThrottleReasons"}:
            raise AttributeError(name)

        def ask(handle, *arguments):
            self.asked.append((name, handle, *arguments))
            self._fail(name)
            self._fail((name, handle))
            found = self.answers[name]
            return found(handle) if callable(found) else found

        return ask

    def _fail(self, key):
        if key in self.errors:
            raise NVMLError(self.errors[key])
