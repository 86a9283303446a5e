"""Whether chains can be trusted: R-hat, effective sample size, energy."""

import numpy as np
from jaxtyping import Float64
from numpyro.diagnostics import effective_sample_size, split_gelman_rubin
from scipy.special import ndtri
from scipy.stats import rankdata

from ..flags import Flag

_R_HAT, _ESS_PER_CHAIN, _E_BFMI = 1.01, 100, 0.3
MIXED = 1.05  # R-hat of chains that are to tell percentiles by some tens of draws
TRUSTED = 0.7  # k-hat up to which weighted draws can be (Vehtari et al. 2024, JMLR 25, 72)


def r_hat(
    samples: Float64[np.ndarray, "chain draw parameter"],
) -> Float64[np.ndarray, " parameter"]:
    """Rank-normalised split R-hat (Vehtari et al. 2021), the larger of bulk and tail."""
    folded = np.abs(samples - np.median(samples, axis=(0, 1)))
    with np.errstate(invalid="ignore", divide="ignore"):  # a chain that never moved gives NaN
        both = [split_gelman_rubin(_normal_scores(array)) for array in (samples, folded)]
    return np.maximum(*(np.asarray(value, np.float64) for value in both))


def ess(samples: Float64[np.ndarray, "chain draw parameter"]) -> Float64[np.ndarray, " parameter"]:
    """Effective number of draws for the mean, over all chains."""
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(effective_sample_size(_normal_scores(samples)), np.float64)


def e_bfmi(energy: Float64[np.ndarray, "chain draw"]) -> Float64[np.ndarray, " chain"]:
    """Energy fraction of missing information of each chain (Betancourt 2016)."""
    return np.mean(np.diff(energy, axis=1) ** 2, axis=1) / np.var(energy, axis=1)


def judge(
    samples: Float64[np.ndarray, "chain draw parameter"],
    energy: Float64[np.ndarray, "chain draw"],
    num_diverging: int,
    k_hat: float | None = None,
) -> Flag:
    """The flags that chains deserve, and their importance weights where they have them."""
    flags = Flag(0)
    if num_diverging:
        flags |= Flag.DIVERGENCES
    # A parameter that cannot move has NaN here, which must not pass for good.
    if not np.all(r_hat(samples) <= _R_HAT):
        flags |= Flag.HIGH_R_HAT
    if not np.all(ess(samples) >= _ESS_PER_CHAIN * samples.shape[0]):
        flags |= Flag.LOW_ESS
    if not np.all(e_bfmi(energy) >= _E_BFMI):
        flags |= Flag.LOW_E_BFMI
    if k_hat is not None and not k_hat <= TRUSTED:
        flags |= Flag.K_HAT
    return flags


def _normal_scores(samples):
    """Ranks over all chains, turned into normal scores, parameter by parameter."""
    num = samples.shape[0] * samples.shape[1]
    ranks = rankdata(samples.reshape(num, -1), axis=0)
    return ndtri((ranks - 0.375) / (num + 0.25)).reshape(samples.shape)
