"""Vacuum and air wavelengths.

The refractive index of standard air (15 C, 101325 Pa, 0.03% CO2) is the dispersion formula of
Ciddor (1996, Applied Optics 35, 1566) as Morton (2000, ApJS 130, 403, equation 8) prints it, in
terms of the vacuum wavenumber sigma [1/micron]:

    n - 1 = 8.34254e-5 + 2.406147e-2 / (130 - sigma^2) + 1.5998e-4 / (38.9 - sigma^2)

Both directions work on numpy arrays, jax arrays and floats. They are meant for wavelengths above
2000 A; below that spectra are given in vacuum and the functions leave the value as it is.
"""

from typing import Any

import jax.numpy as jnp
import numpy as np

_VACUUM_ONLY = 2000.0  # Angstrom: shorter wavelengths are quoted in vacuum by convention


def _index_minus_one(vacuum: Any) -> Any:
    sigma2 = (1e4 / vacuum) ** 2
    return 8.34254e-5 + 2.406147e-2 / (130.0 - sigma2) + 1.5998e-4 / (38.9 - sigma2)


def _module(wavelength: Any) -> Any:
    is_host = isinstance(wavelength, np.ndarray | np.generic | float | int)
    return np if is_host else jnp


def vacuum_to_air(wavelength: Any) -> Any:
    """Air wavelength [Angstrom] of a vacuum wavelength [Angstrom]; any shape."""
    xp = _module(wavelength)
    safe = xp.maximum(wavelength, _VACUUM_ONLY)
    return xp.where(
        wavelength < _VACUUM_ONLY, wavelength, wavelength / (1 + _index_minus_one(safe))
    )


def air_to_vacuum(wavelength: Any) -> Any:
    """Vacuum wavelength [Angstrom] of an air wavelength [Angstrom]; any shape.

    The inverse of `vacuum_to_air` by fixed-point iteration: n changes by 1e-9 over the 1-2 A
    between the two scales, so three rounds reach float64 precision.
    """
    xp = _module(wavelength)
    safe = xp.maximum(wavelength, _VACUUM_ONLY)
    vacuum = safe
    for _ in range(4):
        vacuum = safe * (1 + _index_minus_one(vacuum))
    return xp.where(wavelength < _VACUUM_ONLY, wavelength, vacuum)
