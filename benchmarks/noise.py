"""A noise model of measured runs: what a machine does to a number that did not change.

The logarithm of a run's cost is the sum of

- an autocorrelated normal part (AR 1), the machine's state from run to run;
- slow runs, 8 to 20 % slower, that persist: one in two slow runs is followed by another (a hot GPU, a busy process);
- optionally, a start mode: every load of the model lands in one of two modes;
- optionally, drift.

Within a run requests share all of that; their own noise is autocorrelated, and one in fifty is a straggler.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class World:
    """``sd`` is the standard deviation between runs, ``slow`` the share of slow runs, ``mode`` the gap of two modes."""

    sd: float
    slow: float = 0.0
    persistence: float = 0.5
    autocorrelation: float = 0.2
    slow_by: tuple[float, float] = (0.08, 0.20)
    mode: float = 0.0
    mode_share: float = 0.3

    def runs(self, rng: np.random.Generator, histories: int, count: int) -> Floats:
        """Return ``histories`` rows of ``count`` consecutive run costs."""
        shape = (histories, count)
        modes = self.mode * (rng.random(shape) < self.mode_share)
        return self.sd * _ar1(rng, shape, self.autocorrelation) + self._slow(rng, shape) + modes

    def _slow(self, rng: np.random.Generator, shape: tuple[int, int]) -> Floats:
        """A two-state Markov chain in its stationary state."""
        enter = self.slow * (1 - self.persistence) / (1 - self.slow)
        state = rng.random(shape[0]) < self.slow
        found = np.zeros(shape)
        for run in range(shape[1]):
            found[:, run] = np.where(state, rng.uniform(*self.slow_by, shape[0]), 0.0)
            state = rng.random(shape[0]) < np.where(state, self.persistence, enter)
        return found


WORLDS = {
    "quiet": World(0.006),
    "clean": World(0.016),
    "typical": World(0.016, slow=0.03),
    "noisy": World(0.032, slow=0.05),
    "two modes": World(0.010, mode=0.06),
}


def _ar1(rng: np.random.Generator, shape: tuple[int, int], correlation: float) -> Floats:
    """Rows of an AR 1 process with standard deviation 1, started in its stationary state."""
    found = rng.normal(size=shape)
    for step in range(1, shape[1]):
        found[:, step] = correlation * found[:, step - 1] + np.sqrt(1 - correlation**2) * found[:, step]
    return found


def requests(rng: np.random.Generator, runs: Floats, count: int, sd: float = 0.02) -> Floats:
    """Return the costs of ``count`` requests for each run of ``runs``: one more axis."""
    flat = runs.reshape(-1, 1)
    own = sd * _ar1(rng, (len(flat), count), 0.3)
    stragglers = (rng.random(own.shape) < 0.02) * rng.exponential(0.5, own.shape)
    return (flat + own + stragglers).reshape(*runs.shape, count)
