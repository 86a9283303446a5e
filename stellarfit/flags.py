"""What may be wrong with a result: one bit each, with a name and a sentence."""

import enum
from typing import Any

from .arms import ZERO_POINT


class Flag(enum.IntFlag):
    """Bits of `Fit.flags` and `Posterior.flags`; 0 means nothing to report."""

    NOT_CONVERGED = 1 << 0
    EDGE_TEFF = 1 << 1
    EDGE_LOGG = 1 << 2
    EDGE_FE_H = 1 << 3
    EDGE_ABUNDANCE = 1 << 4
    EDGE_VMIC = 1 << 5
    EDGE_V_RAD = 1 << 6
    EDGE_BROADENING = 1 << 7
    BAD_CHI2 = 1 << 8
    LOW_SNR = 1 << 9
    FEW_PIXELS = 1 << 10
    BAD_HESSIAN = 1 << 11
    SYSTEMATIC = 1 << 12
    MISMATCH = 1 << 13
    OUTSIDE = 1 << 14
    NO_ERROR_MODEL = 1 << 15
    DIVERGENCES = 1 << 16
    HIGH_R_HAT = 1 << 17
    LOW_ESS = 1 << 18
    LOW_E_BFMI = 1 << 19
    LAW_MISMATCH = 1 << 20
    ARM_UNUSED = 1 << 21
    SPIKES = 1 << 22
    AIR_VACUUM = 1 << 23
    K_HAT = 1 << 24
    FAILED = 1 << 25
    POOR_DRAWS = 1 << 26


SENTENCES = {
    Flag.NOT_CONVERGED: "the optimiser did not reach a maximum of the posterior",
    Flag.EDGE_TEFF: "teff lies on the edge of its range",
    Flag.EDGE_LOGG: "logg lies on the edge of its range",
    Flag.EDGE_FE_H: "fe_h lies on the edge of its range",
    Flag.EDGE_ABUNDANCE: "an abundance ratio lies on the edge of its range",
    Flag.EDGE_VMIC: "vmic lies on the edge of its range",
    Flag.EDGE_V_RAD: "v_rad, or the zero point of an arm, lies on the edge of its range",
    Flag.EDGE_BROADENING: "v_sini or v_mac lies on the upper edge of its range",
    Flag.BAD_CHI2: "chi^2 per degree of freedom is outside 0.5 .. 2: check errors and model",
    Flag.LOW_SNR: "the median signal-to-noise ratio a pixel is below 10",
    Flag.FEW_PIXELS: "fewer than 10 good pixels a free parameter",
    Flag.BAD_HESSIAN: "the curvature at the maximum gives no covariance: errors are not usable",
    Flag.SYSTEMATIC: "for some label emulator error and model mismatch exceed photon noise",
    Flag.MISMATCH: "the model misses the data by more than the errors; pixels were down-weighted",
    Flag.OUTSIDE: "pixels outside the emulator's wavelengths were left out",
    Flag.NO_ERROR_MODEL: "the emulator has no measured error: quoted errors hold photon noise only",
    Flag.DIVERGENCES: "the sampler diverged: the posterior is not fully explored",
    Flag.HIGH_R_HAT: "R-hat exceeds 1.01: the chains disagree; sample longer",
    Flag.LOW_ESS: "fewer than 100 effective draws a chain for some parameter; sample longer",
    Flag.LAW_MISMATCH: "the scaling law and held-out spectra disagree by more than a factor 2",
    Flag.SPIKES: "pixels far above the continuum were left out: cosmic rays, or emission",
    Flag.AIR_VACUUM: "v_rad is what a slow star has whose air and vacuum were mixed up: check it",
    Flag.ARM_UNUSED: "an arm has no pixel that can be fitted; the others were fitted without it",
    Flag.LOW_E_BFMI: "the energy fraction (E-BFMI) of a chain is below 0.3: a heavy tail",
    Flag.K_HAT: "Pareto k-hat exceeds 0.7: the surrogate misses the posterior; sample by NUTS",
    Flag.FAILED: "the star could not be read or fitted: the catalogue's column reason says why",
    Flag.POOR_DRAWS: "k_hat exceeds 0.7 and no chains with r_hat up to 1.05 help; sample by NUTS",
}

# A result with one of these should not enter a catalogue without a look.
BAD = (
    Flag.NOT_CONVERGED
    | Flag.EDGE_TEFF
    | Flag.EDGE_LOGG
    | Flag.EDGE_FE_H
    | Flag.EDGE_V_RAD
    | Flag.FEW_PIXELS
    | Flag.BAD_HESSIAN
    | Flag.DIVERGENCES
    | Flag.HIGH_R_HAT
    | Flag.K_HAT
    | Flag.FAILED
)
# These say nothing against the labels.
HARMLESS = Flag.OUTSIDE | Flag.AIR_VACUUM
WARN = ~BAD & ~HARMLESS & Flag((1 << len(Flag)) - 1)

_EDGES = {
    "teff": Flag.EDGE_TEFF,
    "logg": Flag.EDGE_LOGG,
    "fe_h": Flag.EDGE_FE_H,
    "vmic": Flag.EDGE_VMIC,
    "v_rad": Flag.EDGE_V_RAD,
    "v_sini": Flag.EDGE_BROADENING,
    "v_mac": Flag.EDGE_BROADENING,
}


def edge_flag(name: str) -> Flag:
    """The flag of a parameter that lies on the edge of its range."""
    if name.startswith(ZERO_POINT):
        return Flag.EDGE_V_RAD
    return _EDGES.get(name, Flag.EDGE_ABUNDANCE)


def describe(flags: int) -> list[str]:
    """One sentence for every bit that is set.

    >>> describe(Flag.LOW_SNR)
    ['the median signal-to-noise ratio a pixel is below 10']
    """
    return [sentence for flag, sentence in SENTENCES.items() if int(flags) & flag]


def names(flags: int) -> list[str]:
    """The lower-case name of every bit that is set.

    >>> names(Flag.LOW_SNR | Flag.BAD_CHI2)
    ['bad_chi2', 'low_snr']
    """
    return [str(flag.name).lower() for flag in SENTENCES if int(flags) & flag]


def explain(flags: int) -> list[dict[str, Any]]:
    """Every bit that is set, lowest first: its number, value, name, meaning and sentence.

    The meaning is "bad" (not to be used without a look), "warn", or "harmless" (says nothing
    against the labels).

    >>> [one["name"] for one in explain(Flag.LOW_SNR | Flag.NOT_CONVERGED)]
    ['not_converged', 'low_snr']
    """
    return [
        {
            "bit": int(flag).bit_length() - 1,
            "value": int(flag),
            "name": str(flag.name).lower(),
            "meaning": "bad" if flag & BAD else "harmless" if flag & HARMLESS else "warn",
            "sentence": SENTENCES[flag],
        }
        for flag in sorted(SENTENCES)
        if int(flags) & flag
    ]
