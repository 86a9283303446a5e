"""Are the error bars right? Posteriors of synthesised stars whose labels are known.

Truths are drawn from the prior of the fit, spectra come from the synthesiser, never from the
emulator that fits them, and every star gets its own photon noise. If posteriors are right, the
rank of the truth among the draws is uniform for every label (simulation-based calibration, Talts
et al. 2018, arXiv:1804.06788), and the truth lies in the central 68% of 68% of them.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float64
from scipy.stats import chisquare

from emulators.bundle import read_bundle, tree_to_arrays, write_bundle
from emulators.errors import InputError
from emulators.storage import array_hash

LEVELS = (0.5, 0.68, 0.95)
_KIND = "calibration"
_BINS = 10


@dataclass(frozen=True, eq=False)
class Calibration:
    """Ranks of the truths in the posteriors of many stars.

    Attributes
    ----------
    names : tuple of str
        Free parameters.
    noise : str
        Of the fits, see `stellarfit.fit`, or `stellarfit.trial.WHITE`.
    emulator : str
        Which, by `identity`.
    snr : [star]
        Signal to noise a pixel, at the continuum.
    truth : [star, parameter]
    rank : [star, parameter]
        Share of the draws below the truth.
    mean, sigma : [star, parameter]
        Of the draws; a chain that never moved has the sigma 0.
    draws : [star, draw, parameter]
        Some of them, for joint tests.
    converged : [star]
        Whether the search before the sampling ended at a maximum.
    diverging : [star]
        Share of transitions that diverged.
    """

    names: tuple[str, ...]
    noise: str
    emulator: str
    snr: Float64[np.ndarray, " star"]
    truth: Float64[np.ndarray, "star parameter"]
    rank: Float64[np.ndarray, "star parameter"]
    mean: Float64[np.ndarray, "star parameter"]
    sigma: Float64[np.ndarray, "star parameter"]
    draws: Float64[np.ndarray, "star draw parameter"]
    converged: np.ndarray
    diverging: Float64[np.ndarray, " star"]

    @classmethod
    def join(cls, parts: Sequence["Calibration"]) -> "Calibration":
        """Of the stars of all parts, which share parameters and noise."""
        first = parts[0]
        for part in parts:
            if (part.names, part.noise) != (first.names, first.noise):
                raise InputError("calibration: parts of different parameters or noise do not join")
            part.check_emulator(first)
        arrays = {name: np.concatenate([getattr(part, name) for part in parts]) for name in _ARRAYS}
        return cls(first.names, first.noise, first.emulator, **arrays)

    def check_emulator(self, other: "Calibration") -> None:
        """Refuse another emulator, or another error model of it."""
        if self.emulator != other.emulator:
            raise InputError(
                f"calibration: results are of two emulators or error models, {other.emulator} and "
                f"{self.emulator}; give each its own folder"
            )

    def at(self, snr: float) -> "Calibration":
        """The stars of one S/N."""
        rows = self.snr == snr
        arrays = {name: getattr(self, name)[rows] for name in _ARRAYS}
        return Calibration(self.names, self.noise, self.emulator, **arrays)

    def coverage(self, level: float) -> Float64[np.ndarray, " parameter"]:
        """Share of the stars whose truth lies in the central interval of that probability."""
        return np.mean(np.abs(self.rank - 0.5) < 0.5 * level, axis=0)

    @property
    def bias(self) -> Float64[np.ndarray, " parameter"]:
        """Mean of posterior mean minus truth, in posterior sigma, of chains that moved."""
        moved = ~self.stuck
        return np.mean((self.mean - self.truth)[moved] / self.sigma[moved], axis=0)

    @property
    def stuck(self) -> np.ndarray:
        """Stars whose chain never moved: their ranks are 0 or 1."""
        return np.any(self.sigma == 0, axis=1)

    @property
    def uniformity(self) -> Float64[np.ndarray, " parameter"]:
        """p-value of chi^2 over ten bins of the ranks, each parameter for itself."""
        bins = np.clip((self.rank * _BINS).astype(int), 0, _BINS - 1)
        counts = np.stack([np.sum(bins == b, axis=0) for b in range(_BINS)])
        found: Any = chisquare(counts, axis=0)
        return np.asarray(found.pvalue)

    def joint_coverage(self, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
        """Expected coverage against credibility by random points (TARP, Lemos et al. 2023)."""
        from tarp import get_tarp_coverage

        coverage, credibility = get_tarp_coverage(
            self.draws.swapaxes(0, 1), self.truth, norm=True, bootstrap=False, seed=seed
        )
        return np.asarray(coverage), np.asarray(credibility)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write one sealed file that `load` reads back."""
        arrays = {name: np.asarray(getattr(self, name)) for name in _ARRAYS}
        arrays["draws"] = arrays["draws"].astype(np.float32)
        record = {"names": list(self.names), "noise": self.noise, "emulator": self.emulator}
        write_bundle(path, _KIND, arrays, record)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "Calibration":
        """Read what `save` wrote."""
        arrays, record = read_bundle(path, _KIND)
        arrays["draws"] = arrays["draws"].astype(np.float64)
        return cls(tuple(record["names"]), record["noise"], record["emulator"], **arrays)


_ARRAYS = ("snr", "truth", "rank", "mean", "sigma", "draws", "converged", "diverging")


def identity(emulator: Any) -> str:
    """Name and hashes of an emulator's weights and of its error model."""
    errors = emulator.error_model
    of_errors = "none" if errors is None else array_hash(tree_to_arrays(errors))[:12]
    return f"{emulator.name} {emulator.fingerprint} {of_errors}"


def read_parts(folder: Path) -> dict[str, Calibration]:
    """The calibrations of a folder, by noise, from all files of it."""
    parts = [Calibration.load(path) for path in sorted(folder.glob("*.h5"))]
    if not parts:
        raise InputError(f"calibrate: no results in {folder}")
    for part in parts:
        part.check_emulator(parts[0])
    noises = dict.fromkeys(part.noise for part in parts)
    return {
        noise: Calibration.join([part for part in parts if part.noise == noise]) for noise in noises
    }
