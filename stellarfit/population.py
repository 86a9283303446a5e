"""A weak prior of the abundances of stars of the Milky Way, without isochrones.

One joint Gaussian of [Fe/H] and every [X/Fe]: each [X/Fe] scatters about a straight line of
[Fe/H], so that a metal-poor star may be rich in alpha elements at no cost, and a solar one not.
Teff, log g, microturbulence and velocities stay flat.

Where the numbers come from
---------------------------
Lines read off published trends and rounded to 0.05 dex; widths of 0.2 to 0.3 dex, at least twice
the scatter of these samples about their trend, since abundances differ between line lists and with
departures from LTE by as much:

[Fe/H]
    Casagrande et al. 2011, A&A 530, A138 (a disk about -0.1); made wide enough for the halo.
O, Na, Mg, Al, Si, Ca, Ti, Cr, Ni, Zn, Y, Ba
    Bensby, Feltzing & Oey 2014, A&A 562, A71; below [Fe/H] = -2 Cayrel et al. 2004, A&A 416, 1117.
C
    Nissen et al. 2014, A&A 568, A25. Giants mix: hence the width.
Sc, V, Mn, Co
    Battistini & Bensby 2015, A&A 577, A9.
Cu
    Reddy, Lambert & Allende Prieto 2006, MNRAS 367, 1329.
Nd and others by neutron capture
    Battistini & Bensby 2016, A&A 586, A49.

It is no default: narrower priors on [X/Fe] biased metal-poor stars in trials with wrong line data
(`stellarfit.priors`), and a star that is like no other is what one may be looking for.
"""

from typing import Any

import numpy as np
import numpyro.distributions as dist

from emulators.labels import LabelSpace

from .abundances import IRON

_IRON_MEAN, _IRON_SIGMA = -0.3, 0.7
# [X/Fe] at solar [Fe/H], its change with [Fe/H], and its scatter [dex].
_ALPHA, _PEAK, _CAPTURE = (0.05, -0.15, 0.2), (0.0, 0.0, 0.2), (0.0, 0.0, 0.3)
_TRENDS: dict[str, tuple[float, float, float]] = {
    **dict.fromkeys(("mg", "si", "ca", "ti"), _ALPHA),
    **dict.fromkeys(("v", "cr", "co", "ni", "zn"), _PEAK),
    "c": (0.0, 0.0, 0.3),
    "o": (0.05, -0.25, 0.25),
    "na": (0.0, 0.0, 0.25),
    "al": (0.05, -0.1, 0.25),
    "sc": (0.0, -0.05, 0.2),
    "mn": (0.0, 0.15, 0.25),
    "cu": (0.0, 0.2, 0.3),
    "eu": (0.05, -0.2, 0.3),
}


def population_prior(label_space: LabelSpace) -> dict[Any, Any]:
    """The prior of the abundances among some labels, to be given as ``priors=``.

    Parameters
    ----------
    label_space
        Of the emulator. Labels may be [X/Fe] or [X/H].

    Returns
    -------
    dict
        One joint distribution by the tuple of its labels, so that others can join it; nothing
        where no label is an abundance. An abundance that is held fixed must not have a prior:
        leave it out of the label space.

    Examples
    --------
    >>> space = LabelSpace(("teff", "fe_h", "mg_fe"), (4e3, -2.5, -0.5), (7e3, 0.5, 0.8))
    >>> [(names, prior)] = population_prior(space).items()
    >>> names
    ('fe_h', 'mg_fe')
    """
    names = tuple(name for name in label_space.names if name.endswith(("_fe", "_h")))
    if not names:
        return {}
    # Every label is level + slope ([Fe/H] - mean) + scatter of its own.
    level, slope, scatter = np.array([_line(name) for name in names]).T
    covariance = np.outer(slope, slope) * _IRON_SIGMA**2 + np.diag(scatter**2)
    return {names: dist.MultivariateNormal(level, covariance)}


def _line(name: str) -> tuple[float, float, float]:
    """Of one label: its value at the mean [Fe/H], its slope and its scatter."""
    if name == IRON:
        return _IRON_MEAN, 1.0, 0.0
    element, _, under = name.partition("_")
    solar, slope, scatter = _TRENDS.get(element, _CAPTURE)
    level = solar + slope * _IRON_MEAN
    # [X/H] = [X/Fe] + [Fe/H]
    return (level, slope, scatter) if under == "fe" else (level + _IRON_MEAN, slope + 1, scatter)
