"""One star: from a spectrum to the most probable labels with their errors."""

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float64

from scaling.law import ScalingLaw

from . import flags as flag_table
from .arms import Arms
from .compiled import ANCHORED, CompiledEmulator, load_emulator, with_held
from .emulator_error import EmulatorError, amplitude_prior, default_noise
from .flags import Flag, edge_flag
from .goodness import measure_goodness
from .laplace import Laplace, laplace
from .mask import Mismatch
from .model import Problem
from .optimize import SETTLED, Optimum, maximize
from .priors import VELOCITIES, make_prior
from .setup import Setup
from .spectrum import Spectrum
from .spikes import without_spikes

_STARTS = 3
_SCOUT_STEPS = 6
_MAX_STEPS = 60
_ROUNDS = 6  # of freezing the noise and fitting again, at most
_EDGE = 0.005  # of the width of the box
_AIR_TO_VACUUM = 83.0  # km/s, the refractive index of air less one as a velocity
_SLOW = 30.0  # km/s, what most stars nearby do not exceed


@dataclass(frozen=True, eq=False, repr=False)
class Fit:
    """The most probable labels of one star, their errors, and all that went into them.

    Attributes
    ----------
    names : tuple of str
        Free parameters: labels in the emulator's order, then ``v_rad``, ``v_sini``, ``v_mac``,
        then zero points of arms.
    values : [parameter]
        At the maximum of the posterior per unit of the labels (MAP).
    covariance : [parameter, parameter]
        Laplace approximation with everything included; `error` is the square root of its diagonal.
    error_stat, error_emulator, error_mismatch : [parameter]
        The error budget: what photon noise alone would give, what the emulator's error adds, and
        what model mismatch adds where it was found; the squares add up to that of `error`.
        `error_sys` is the last two together. Emulator errors are alike for similar stars: over a
        sample they do not average down.
    fixed : dict
        Parameters held, and their values.
    chi2, dof
        With photon noise and the emulator's covariance as it was expected to be, so a model, or an
        emulator, that misses the data shows; pixels less parameters and continuum coefficients.
    dof_effective, p_value
        Degrees of freedom that the fit really left, and the chance of a `chi2` at least as large,
        where pixels are independent: see `stellarfit.goodness`.
    flags : int
        Bits of `stellarfit.flags.Flag`.
    model_flux, continuum : [pixel]
        On the pixels of `spectrum`, in the unit of its flux; NaN where the model does not reach.
        ``spectrum.split`` sorts them by arm.
    weight : [pixel]
        Factor on the pixel's weight by the rule of `stellarfit.mask`; 0 where not fitted.
    mismatch : float
        Scatter of log gf found by that rule [dex]; 0 where the model explains the data.
    spectrum : Spectrum or Arms
        As given, with the pixels that were not fitted marked; `stellarfit.arms.Arms` of several.
    laplace : Laplace
        The Gaussian in unbounded coordinates that samplers start from.
    problem : Problem
        Data, model, noise and prior as they stood at the end.
    setup : Setup
        What it was made from.
    """

    names: tuple[str, ...]
    values: Float64[np.ndarray, " parameter"]
    covariance: Float64[np.ndarray, "parameter parameter"]
    error_stat: Float64[np.ndarray, " parameter"]
    error_emulator: Float64[np.ndarray, " parameter"]
    error_mismatch: Float64[np.ndarray, " parameter"]
    fixed: dict[str, float]
    chi2: float
    dof: int
    dof_effective: float
    p_value: float
    flags: int
    model_flux: Float64[np.ndarray, " pixel"]
    continuum: Float64[np.ndarray, " pixel"]
    weight: Float64[np.ndarray, " pixel"]
    mismatch: float
    spectrum: Any
    emulator: Any
    laplace: Laplace
    problem: Problem = field(repr=False)
    setup: Setup = field(repr=False)
    seconds: float

    @property
    def error(self) -> Float64[np.ndarray, " parameter"]:
        """One sigma of each parameter, everything included."""
        return np.sqrt(np.diagonal(self.covariance))

    @property
    def error_sys(self) -> Float64[np.ndarray, " parameter"]:
        """Of each parameter, by the emulator and by model mismatch together."""
        return np.hypot(self.error_emulator, self.error_mismatch)

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
    emulator : Emulator, optional
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
    emulator = load_emulator() if emulator is None else emulator
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
    settled = ANCHORED if isinstance(emulator, CompiledEmulator) else SETTLED
    problem, mismatch = setup.photons, None
    for _ in range(_ROUNDS):
        values = setup.prior.values(best.position)
        setup = setup.anchored(values)
        error = setup.emulator_error(values)
        if robust:
            mismatch = setup.find_mismatch(values, error)
        problem = setup.freeze(values, error, mismatch)
        previous, best = best, maximize(problem, best.position, 0.0, _MAX_STEPS)
        if _moved(previous, best) < settled:
            break
    else:
        if isinstance(emulator, CompiledEmulator):
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


def _search(setup: Setup) -> Optimum:
    """Short searches from several starts with photon noise alone, and a long one from the best."""
    scouts = [
        maximize(setup.photons, setup.prior.position(start), 0.0, _SCOUT_STEPS)
        for start in setup.starts[:_STARTS]
    ]
    best = min(scouts, key=lambda optimum: float(optimum.curvature.cost))
    return maximize(setup.photons, best.position, 0.0, _MAX_STEPS)


def _is_of_another_medium(v_rad: float) -> bool:
    """Whether a slow star would have this velocity if air and vacuum had been mixed up [km/s]."""
    return bool(abs(abs(v_rad) - _AIR_TO_VACUUM) < _SLOW)


def _moved(before: Optimum, after: Optimum) -> float:
    """Largest change between two optima in units of the error, in unbounded positions."""
    covariance = laplace(after.position, after.curvature.hessian).covariance
    error = np.sqrt(np.diagonal(np.asarray(covariance)))
    # Far out on the slope to an edge a position may move without the label moving.
    old, new = (np.clip(np.asarray(one.position), -6, 6) for one in (before, after))
    return float(np.max(np.abs(new - old) / error))


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
    *_, gaussian = gaussians
    covariance = gaussian.label_covariance(prior)
    variances = [np.diagonal(one.label_covariance(prior)) for one in gaussians]
    if mismatch is None:
        variances.append(variances[-1])
    # A part may come out a hair above the whole: by rounding, or where down-weighted pixels leave
    # more room to the emulator's error than to the photons'.
    stat, known, whole = np.minimum.accumulate(variances[::-1])[::-1]
    stat, emulator_error = np.sqrt(stat), np.sqrt(known - stat)
    by_mismatch = np.sqrt(whole - known)
    systematic = np.hypot(emulator_error, by_mismatch)
    flux, continuum = setup.predict(problem, values)
    expected = setup.expected(emulator_covariance)
    chi2, dof_effective, p_value = measure_goodness(expected, values, emulator_covariance)
    dof = len(setup.keep) - len(values) - len(problem.continuum.mean)
    weight = np.zeros(len(spectrum))
    weight[setup.keep] = 1.0 if mismatch is None else mismatch.weight

    flags = Flag(0)
    if not bool(best.converged):
        flags |= Flag.NOT_CONVERGED
    if any(one.bad for one in gaussians):
        flags |= Flag.BAD_HESSIAN
    unit = (values - np.asarray(prior.lower)) / np.asarray(prior.upper - prior.lower)
    for name, fraction in zip(prior.names, unit, strict=True):
        # A star may well not rotate: only the upper end of the broadening is an edge.
        low = name not in ("v_sini", "v_mac") and fraction < _EDGE
        if low or fraction > 1 - _EDGE:
            flags |= edge_flag(name)
    if not 0.5 < chi2 / max(dof, 1) < 2.0:
        flags |= Flag.BAD_CHI2
    if spectrum.snr < 10:
        flags |= Flag.LOW_SNR
    if len(setup.keep) < 10 * len(values):
        flags |= Flag.FEW_PIXELS
    labels = [i for i, name in enumerate(prior.names) if name in setup.emulator.label_space.names]
    if np.any(systematic[labels] > stat[labels]):
        flags |= Flag.SYSTEMATIC
    if mismatch is not None and mismatch.scatter > 0:
        flags |= Flag.MISMATCH
    if "spike" in spectrum.mask_counts():
        flags |= Flag.SPIKES
    if "v_rad" in prior.names and _is_of_another_medium(values[prior.names.index("v_rad")]):
        flags |= Flag.AIR_VACUUM
    if setup.num_outside:
        flags |= Flag.OUTSIDE
    if isinstance(spectrum, Arms) and spectrum.unused:
        flags |= Flag.ARM_UNUSED
    if setup.amplitude is not None and setup.amplitude.disagrees:
        flags |= Flag.LAW_MISMATCH
    if setup.emulator.error_model is None:
        flags |= Flag.NO_ERROR_MODEL
    return Fit(
        names=prior.names,
        values=values,
        covariance=covariance,
        error_stat=stat,
        error_emulator=emulator_error,
        error_mismatch=by_mismatch,
        fixed=setup.held,
        chi2=chi2,
        dof=dof,
        dof_effective=dof_effective,
        p_value=p_value,
        flags=int(flags),
        model_flux=flux,
        continuum=continuum,
        weight=weight,
        mismatch=0.0 if mismatch is None else mismatch.scatter,
        spectrum=spectrum,
        emulator=setup.emulator,
        laplace=gaussian,
        problem=problem,
        setup=setup,
        seconds=time.perf_counter() - began,
    )
