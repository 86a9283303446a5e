"""Draws from a posterior, and what can be said of them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jaxtyping import Float64

from .. import flags as flag_table
from ..abundances import over_hydrogen
from .diagnostics import e_bfmi, ess, judge, r_hat
from .predictive import Predictive, predict


@dataclass(frozen=True, eq=False, repr=False)
class Posterior:
    """Samples of the free parameters of one star.

    Attributes
    ----------
    names : tuple of str
    samples : [chain, draw, parameter]
    stats : dict
        ``diverging``, ``energy``, ``lp`` (log density), ``n_steps`` (leapfrogs),
        ``acceptance_rate``, each [chain, draw].
    fit : Fit
        The fit that the chains started from.
    backend : str
    seed : int
    num_warmup : int
    step_size : float
        Of the leapfrog integrator, in units of the Laplace approximation's sigma.
    seconds : float
        Of the sampling alone.
    k_hat : float or None
        Shape of the tail of the importance weights, of the backend that has them: above 0.7 they
        say little.
    """

    names: tuple[str, ...]
    samples: Float64[np.ndarray, "chain draw parameter"]
    stats: dict[str, np.ndarray]
    fit: Any
    backend: str
    seed: int
    num_warmup: int
    step_size: float
    seconds: float
    k_hat: float | None = None
    flags: int = field(init=False)

    def __post_init__(self):
        diverging = int(self.stats["diverging"].sum())
        flags = judge(self.samples, self.stats["energy"], diverging, self.k_hat)
        object.__setattr__(self, "flags", int(flags))

    def __repr__(self) -> str:
        chains, draws, _ = self.samples.shape
        parts = [
            f"{name}={mean:.5g}±{sigma:.2g}"
            for name, mean, sigma in zip(self.names, self.mean, self.sigma, strict=True)
        ]
        return f"Posterior({chains} x {draws} by {self.backend}: {', '.join(parts)})"

    @property
    def mean(self) -> Float64[np.ndarray, " parameter"]:
        """Posterior mean of each parameter."""
        return self.samples.mean(axis=(0, 1))

    @property
    def sigma(self) -> Float64[np.ndarray, " parameter"]:
        """Posterior standard deviation of each parameter."""
        return self.samples.std(axis=(0, 1), ddof=1)

    @property
    def draws(self) -> dict[str, Float64[np.ndarray, "chain draw"]]:
        """By name: the free parameters, then ``<element>_h``, [X/H] = [X/Fe] + [Fe/H] [dex]."""
        free = dict(zip(self.names, np.moveaxis(self.samples, -1, 0), strict=True))
        return free | over_hydrogen(free, self.fit.fixed)

    def summary(self) -> Any:
        """An astropy Table of moments, percentiles, R-hat and effective draws.

        One row a parameter, then one an abundance [X/H] that follows from them.
        """
        from astropy.table import Table

        samples = np.stack(list(self.draws.values()), axis=-1)
        low, middle, high = np.percentile(samples, [16, 50, 84], axis=(0, 1))
        table = Table(
            {
                "name": list(self.draws),
                "mean": samples.mean(axis=(0, 1)),
                "sigma": samples.std(axis=(0, 1), ddof=1),
                "p16": low,
                "p50": middle,
                "p84": high,
                "r_hat": r_hat(samples),
                "ess": ess(samples),
            }
        )
        table.meta = {
            "backend": self.backend,
            "seed": self.seed,
            "diverging": int(self.stats["diverging"].sum()),
            "e_bfmi": float(e_bfmi(self.stats["energy"]).min()),
            "leapfrogs_per_draw": float(self.stats["n_steps"].mean()),
            "flags": flag_table.names(self.flags),
        }
        if self.k_hat is not None:
            table.meta["k_hat"] = self.k_hat
        return table

    def to_arviz(self) -> Any:
        """An ArviZ InferenceData: all of `draws`, and the sample statistics."""
        import arviz  # late: it takes a second and announces its next version

        attributes = {
            "inference_library": self.backend,
            "seed": self.seed,
            "num_warmup": self.num_warmup,
            "emulator": self.fit.emulator.name,
            "emulator_fingerprint": self.fit.emulator.fingerprint,
            "solar_scale": self.fit.emulator.label_space.solar_scale,
            "wavelength_medium": "vacuum",
            "flags": int(self.flags) | int(self.fit.flags),
        }
        return arviz.from_dict(
            posterior=self.draws,
            sample_stats=dict(self.stats),
            posterior_attrs=attributes,
        )

    def predictive(self, num: int = 200, *, seed: int = 0) -> Predictive:
        """Replicated spectra under the full noise, and p-values of how the data compare.

        Parameters
        ----------
        num : int
            Draws that are replicated, one spectrum each.
        seed : int
            Of which draws, and of their noise.

        Raises
        ------
        InputError
            If there are not so many draws.
        """
        return predict(self, num, seed)

    def plot_corner(
        self, truth: Mapping[str, float] | None = None, names: Sequence[str] | None = None
    ) -> Any:
        """All pairs of parameters, or of some `draws` by name, as a matplotlib figure."""
        from ..plots import plot_corner

        return plot_corner(self, truth, names)
