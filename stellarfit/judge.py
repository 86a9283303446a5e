"""What is said of one star once its search has ended: the error budget, and the flags.

However a star was fitted, alone or among others, it is judged here.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float, Float64

from .arms import Arms
from .emulator_error import AmplitudePrior
from .flags import Flag, edge_flag
from .goodness import Goodness

_EDGE = 0.005  # of the width of the box
_AIR_TO_VACUUM = 83.0  # km/s, the refractive index of air less one as a velocity
_SLOW = 30.0  # km/s, what most stars nearby do not exceed


@dataclass(frozen=True, eq=False, repr=False)
class Result:
    """The most probable labels of one star and their errors: what a row of a catalogue holds.

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
    spectrum : Spectrum or Arms
        As given, with the pixels that were not fitted marked; `stellarfit.arms.Arms` of several.
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
    spectrum: Any
    emulator: Any

    @property
    def error(self) -> Float64[np.ndarray, " parameter"]:
        """One sigma of each parameter, everything included."""
        return np.sqrt(np.diagonal(self.covariance))

    @property
    def error_sys(self) -> Float64[np.ndarray, " parameter"]:
        """Of each parameter, by the emulator and by model mismatch together."""
        return np.hypot(self.error_emulator, self.error_mismatch)


def judge(
    spectrum: Any,
    emulator: Any,
    names: tuple[str, ...],
    values: Float[np.ndarray, " parameter"],
    box: tuple[Float[np.ndarray, " parameter"], Float[np.ndarray, " parameter"]],
    covariances: Sequence[Float[np.ndarray, "parameter parameter"]],
    fixed: dict[str, float],
    goodness: Goodness,
    *,
    num_coefficients: int,
    num_outside: int,
    converged: bool,
    bad: bool,
    amplitude: AmplitudePrior | None,
    mismatch: float | None = None,
) -> Result:
    """The error budget and the flags of a star.

    Parameters
    ----------
    spectrum
        Whose good pixels are those that were fitted.
    emulator
    names, values, box
        Of the free parameters; the lower and the upper ends of their boxes.
    covariances
        Of photon noise alone; with the emulator's error, where mismatch was looked for; with
        everything.
    fixed
        Parameters held.
    goodness
        Of the fit.
    num_coefficients
        Of the continuum.
    num_outside
        Good pixels that the emulator cannot reach.
    converged, bad
        Whether the search ended in a maximum, and whether any of its curvatures has no inverse.
    amplitude
        Of the emulator's error; None where it was left out.
    mismatch
        Scatter of log gf [dex]; None where it was not looked for.
    """
    variances = [np.diagonal(one) for one in covariances]
    if mismatch is None:
        variances.append(variances[-1])
    # A part may come out a hair above the whole: by rounding, or where down-weighted pixels leave
    # more room to the emulator's error than to the photons'.
    stat, known, whole = np.minimum.accumulate(variances[::-1])[::-1]
    stat, by_emulator, by_mismatch = map(np.sqrt, (stat, known - stat, whole - known))
    pixels = int(np.sum(spectrum.good))
    dof = pixels - len(values) - num_coefficients

    flags = Flag(0)
    if not converged:
        flags |= Flag.NOT_CONVERGED
    if bad:
        flags |= Flag.BAD_HESSIAN
    lower, upper = box
    for name, fraction in zip(names, (values - lower) / (upper - lower), strict=True):
        # A star may well not rotate: only the upper end of the broadening is an edge.
        low = name not in ("v_sini", "v_mac") and fraction < _EDGE
        if low or fraction > 1 - _EDGE:
            flags |= edge_flag(name)
    if not 0.5 < goodness.chi2 / max(dof, 1) < 2.0:
        flags |= Flag.BAD_CHI2
    if spectrum.snr < 10:
        flags |= Flag.LOW_SNR
    if pixels < 10 * len(values):
        flags |= Flag.FEW_PIXELS
    labels = [i for i, name in enumerate(names) if name in emulator.label_space.names]
    if np.any(np.hypot(by_emulator, by_mismatch)[labels] > stat[labels]):
        flags |= Flag.SYSTEMATIC
    if mismatch:
        flags |= Flag.MISMATCH
    if "spike" in spectrum.mask_counts():
        flags |= Flag.SPIKES
    if "v_rad" in names and _is_of_another_medium(values[names.index("v_rad")]):
        flags |= Flag.AIR_VACUUM
    if num_outside:
        flags |= Flag.OUTSIDE
    if isinstance(spectrum, Arms) and spectrum.unused:
        flags |= Flag.ARM_UNUSED
    if amplitude is not None and amplitude.disagrees:
        flags |= Flag.LAW_MISMATCH
    if emulator.error_model is None:
        flags |= Flag.NO_ERROR_MODEL
    return Result(
        names=names,
        values=values,
        covariance=covariances[-1],
        error_stat=stat,
        error_emulator=by_emulator,
        error_mismatch=by_mismatch,
        fixed=fixed,
        chi2=goodness.chi2,
        dof=dof,
        dof_effective=goodness.dof,
        p_value=goodness.p_value,
        flags=int(flags),
        spectrum=spectrum,
        emulator=emulator,
    )


def _is_of_another_medium(v_rad: float) -> bool:
    """Whether a slow star would have this velocity if air and vacuum had been mixed up [km/s]."""
    return bool(abs(abs(v_rad) - _AIR_TO_VACUUM) < _SLOW)
