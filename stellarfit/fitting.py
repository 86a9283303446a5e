"""One star: from a spectrum to the most probable labels with their errors."""

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float64

from scaling.law import ScalingLaw

from . import flags as flag_table
from .arms import Arms
from .compiled import ANCHORED, CompiledEmulator, load_emulator, with_held
from .emulator_error import EmulatorError, amplitude_prior, default_noise
from .goodness import measure_goodness
from .judge import Result, judge
from .laplace import Laplace, laplace
from .mask import Mismatch
from .model import Problem
from .optimize import SETTLED, Optimum, maximize, moved
from .priors import VELOCITIES, between, make_prior
from .setup import Setup
from .spectrum import Spectrum
from .spikes import without_spikes

_STARTS = 3
_SCOUT_STEPS = 6
_MAX_STEPS = 60
_ROUNDS = 6  # of freezing the noise and fitting again, at most


@dataclass(frozen=True, eq=False, repr=False)
class Fit(Result):
    """The most probable labels of one star, their errors, and all that went into them.

    Attributes
    ----------
    model_flux, continuum : [pixel]
        On the pixels of `spectrum`, in the unit of its flux; NaN where the model does not reach.
        ``spectrum.split`` sorts them by arm.
    weight : [pixel]
        Factor on the pixel's weight by the rule of `stellarfit.mask`; 0 where not fitted.
    mismatch : float
        Scatter of log gf found by that rule [dex]; 0 where the model explains the data.
    laplace : Laplace
        The Gaussian in unbounded coordinates that samplers start from.
    problem : Problem
        Data, model, noise and prior as they stood at the end.
    setup : Setup
        What it was made from.

    See Also
    --------
    stellarfit.judge.Result : labels, errors, chi^2 and flags, which a `Fit` has as well.
    """

    model_flux: Float64[np.ndarray, " pixel"]
    continuum: Float64[np.ndarray, " pixel"]
    weight: Float64[np.ndarray, " pixel"]
    mismatch: float
    laplace: Laplace
    problem: Problem = field(repr=False)
    setup: Setup = field(repr=False)
    seconds: float

    @property
    def table(self) -> Any:
        """An astropy Table: one row a free parameter."""
        from astropy.table import Table

        return Table(
            {
                "name": list(self.names),
                "value": self.values,
                "error": self.error,
                "error_stat": self.error_stat,
                "error_sys": self.error_sys,
                "error_emulator": self.error_emulator,
                "error_mismatch": self.error_mismatch,
            }
        )

    def to_dict(self) -> dict[str, Any]:
        """What ``stellarfit fit --json`` prints: plain numbers and strings."""

        def entry(i):
            return {
                "value": float(self.values[i]),
                "error": float(self.error[i]),
                "error_stat": float(self.error_stat[i]),
                "error_sys": float(self.error_sys[i]),
                "error_emulator": float(self.error_emulator[i]),
                "error_mismatch": float(self.error_mismatch[i]),
            }

        found = {name: entry(i) for i, name in enumerate(self.names)}
        spectrum = self.spectrum
        velocities = {
            name: found.pop(name) if name in found else _held_entry(self.fixed[name])
            for name in (*VELOCITIES, *_zero_points(spectrum))
        }
        by_arm = {}
        if isinstance(spectrum, Arms):
            by_arm["arms"] = {
                name: {
                    "name": one.name,
                    "num_pixels": int(np.sum(one.good)),
                    "masked_pixels": one.mask_counts(),
                    "medium": one.medium,
                }
                for name, one in spectrum.spectra.items()
            }
        return {
            "name": spectrum.name,
            "labels": found,
            **velocities,
            "fixed": dict(self.fixed),
            "chi2": float(self.chi2),
            "dof": int(self.dof),
            "dof_effective": float(self.dof_effective),
            "p_value": float(self.p_value),
            "flags": int(self.flags),
            "flag_names": flag_table.names(self.flags),
            "mismatch": float(self.mismatch),
            "num_pixels": int(np.sum(spectrum.good)),
            "num_downweighted": int(np.sum(spectrum.good & (self.weight < 1))),
            "masked_pixels": spectrum.mask_counts(),
            "emulator": {"name": self.emulator.name, "fingerprint": self.emulator.fingerprint},
            "solar_scale": self.emulator.label_space.solar_scale,
            "medium": spectrum.medium,
            **by_arm,
            "seconds": float(self.seconds),
        }

    def plot(self) -> Any:
        """Data, model and residuals, as a matplotlib figure."""
        from .plots import plot_fit

        return plot_fit(self)

    def plot_budget(self) -> Any:
        """What each error is made of, as a matplotlib figure."""
        from .plots import plot_budget

        return plot_budget(self)

    def __repr__(self) -> str:
        parts = [
            f"{name}={value:.5g}±{error:.2g}"
            for name, value, error in zip(self.names, self.values, self.error, strict=True)
        ]
        quality = f"chi2/dof={self.chi2:.0f}/{self.dof_effective:.0f}, flags={self.flags}"
        return f"Fit({', '.join(parts)}, {quality})"


def _held_entry(value: float) -> dict[str, float]:
    parts = ("error", "error_stat", "error_sys", "error_emulator", "error_mismatch")
    return {"value": float(value), **dict.fromkeys(parts, 0.0)}


def _zero_points(spectrum: Any) -> tuple[str, ...]:
    return spectrum.zero_points if isinstance(spectrum, Arms) else ()


def fit(
    spectrum: Any,
    emulator: Any = None,
    *,
    fixed: Mapping[str, float | int] | None = None,
    priors: Mapping[Any, Any] | None = None,
    noise: str | None = None,
    law: ScalingLaw | None = None,
    continuum_degree: int | Mapping[str, int] | None = None,
    mask: Any = None,
    resolution: float | int | Mapping[str, Any] | None = None,
    robust: bool = True,
) -> Fit:
    """Find the most probable labels, velocities and broadening of one star, with errors.

    Parameters
    ----------
    spectrum : Spectrum, or several
        Several are arms that saw one star: a mapping such as ``{"blue": blue, "red": red}``, or a
        list, where arms are called 1, 2, ... Each keeps its resolving power, unit of flux and
        continuum. An arm that the emulator cannot model is left out and flagged.
    emulator : Emulator, its name or the path of its file, optional
        The shipped default otherwise.
    fixed : mapping, optional
        Parameters to hold, such as ``{"vmic": 1.0, "v_rad": 0.0}``.
    priors : mapping, optional
        ``numpyro.distributions.Uniform``, ``Normal`` or ``TruncatedNormal`` by name, or
        ``MultivariateNormal`` by a tuple of names, in place of the defaults of
        `stellarfit.priors`. ``v_mac`` is held at 0 unless it has one, and so is
        ``zero_point_<arm>``, the velocity [km/s] of an arm against that of the first.
    noise : {"law", "validation", "none"}, optional
        Where the amplitude of the emulator's error comes from that joins the photon noise: a
        scaling law, or spectra that the emulator did not see; ``"none"`` leaves the error out. By
        default ``"law"`` where there is a shipped law of the emulator's labels, ``"validation"``
        otherwise.
    law : ScalingLaw, optional
        Of emulators like this one, in place of the shipped law.
    continuum_degree : int, optional
        Of the marginalised polynomial; by default one for every 70 Angstrom. Of several arms, one
        for all or a mapping by arm.
    mask : [pixel], optional
        Nonzero marks further pixels not to be used. Of several arms, a mapping by arm.
    resolution : float, optional
        Resolving power, where the spectrum does not carry it. Of several arms, one for all or a
        mapping by arm.
    robust : bool
        Down-weight pixels that the model describes badly, by the rule of `stellarfit.mask`, and
        leave out those far above the continuum (`stellarfit.spikes`).

    Returns
    -------
    Fit

    Raises
    ------
    InputError
        Unknown or out-of-box parameters or arms, no resolution, nothing within the emulator's
        range in any arm.
    """
    began = time.perf_counter()
    emulator = load_emulator(emulator)
    if noise is None:
        noise = default_noise(emulator) if law is None else "law"
    amplitude = amplitude_prior(emulator, noise, law)
    if not isinstance(spectrum, Spectrum):
        spectrum = Arms.gather(spectrum)
    fixed = with_held(emulator, fixed, priors)
    prior, held = make_prior(emulator.label_space, fixed, priors, _zero_points(spectrum))
    if mask is not None:
        spectrum = spectrum.masked(mask)
    if robust:
        spectrum = without_spikes(spectrum)
    setup = Setup.build(
        spectrum,
        emulator,
        prior,
        held,
        resolution=resolution,
        continuum_degree=continuum_degree,
        amplitude=amplitude,
    )
    best = _search(setup)
    compiled = isinstance(emulator, CompiledEmulator)
    settled = ANCHORED if compiled else SETTLED
    problem, mismatch = setup.photons, None
    place, last, astray = best.position, jnp.zeros(()), False
    for _ in range(_ROUNDS):
        if astray:
            best = best._replace(position=between(setup.prior, place, best.position))
        place, values = best.position, setup.prior.values(best.position)
        setup = setup.anchored(values)
        error = setup.emulator_error(values)
        if robust:
            mismatch = setup.find_mismatch(values, error)
        problem = setup.freeze(values, error, mismatch)
        best = maximize(problem, place, 0.0, _MAX_STEPS)
        if float(jnp.max(_moved(problem, place, best))) < settled:
            break
        # Where a label may be almost anything, anchors may send a star to and fro.
        step = best.position - place
        astray, last = astray or (compiled and float(jnp.sum(step * last)) < 0), step
    else:
        if compiled:
            # Anchored elsewhere, it is not known to be right here.
            best = best._replace(converged=jnp.asarray(False))
    # The mode that samplers see lies inside the box also where the MAP is on its edge.
    peak = maximize(problem, best.position, 1.0, _MAX_STEPS)
    gaussian = laplace(peak.position, peak.curvature.hessian)
    error = setup.emulator_error(setup.prior.values(best.position))
    lesser = [setup.photons]
    if mismatch is not None:
        lesser.append(setup.without_mismatch(error, float(problem.noise.log_amplitude)))
    # The same place without the mismatch, and with photon noise alone.
    parts = [
        laplace(peak.position, maximize(one, peak.position, 1.0, 1).curvature.hessian)
        for one in lesser
    ]
    return _report(setup, problem, best, error, (*parts, gaussian), mismatch, began)


_moved = eqx.filter_jit(moved)


def _search(setup: Setup) -> Optimum:
    """Short searches from several starts with photon noise alone, and a long one from the best."""
    scouts = [
        maximize(setup.photons, setup.prior.position(start), 0.0, _SCOUT_STEPS)
        for start in setup.starts[:_STARTS]
    ]
    best = min(scouts, key=lambda optimum: float(optimum.curvature.cost))
    return maximize(setup.photons, best.position, 0.0, _MAX_STEPS)


def _report(
    setup: Setup,
    problem: Problem,
    best: Optimum,
    emulator_covariance: EmulatorError | None,
    gaussians: tuple[Laplace, ...],
    mismatch: Mismatch | None,
    began: float,
) -> Fit:
    """Everything a user reads, from where the search ended.

    `gaussians` are of photon noise alone, with the emulator's error where mismatch was looked for,
    and with everything.
    """
    prior, spectrum = setup.prior, setup.spectrum
    values = np.asarray(prior.values(best.position))
    flux, continuum = setup.predict(problem, values)
    expected = setup.expected(emulator_covariance)
    weight = np.zeros(len(spectrum))
    weight[setup.keep] = 1.0 if mismatch is None else mismatch.weight
    result = judge(
        spectrum,
        setup.emulator,
        prior.names,
        values,
        (np.asarray(prior.lower), np.asarray(prior.upper)),
        [one.label_covariance(prior) for one in gaussians],
        setup.held,
        measure_goodness(expected, values, emulator_covariance),
        num_coefficients=len(problem.continuum.mean),
        num_outside=setup.num_outside,
        converged=bool(best.converged),
        bad=any(one.bad for one in gaussians),
        amplitude=setup.amplitude,
        mismatch=None if mismatch is None else mismatch.scatter,
    )
    return Fit(
        **vars(result),
        model_flux=flux,
        continuum=continuum,
        weight=weight,
        mismatch=0.0 if mismatch is None else mismatch.scatter,
        laplace=gaussians[-1],
        problem=problem,
        setup=setup,
        seconds=time.perf_counter() - began,
    )
