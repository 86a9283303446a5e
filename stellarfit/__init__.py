"""From a star's spectrum to Teff, logg and abundances with honest errors.

>>> import stellarfit as sf
>>> spectrum = sf.read_spectrum("star.fits", medium="air", resolution=47_000)  # doctest: +SKIP
>>> fit = sf.fit(spectrum, fixed={"vmic": 1.0})  # doctest: +SKIP

Names are imported on first use, so that the command line answers at once.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from emulators.emulator import load_emulator
    from emulators.errors import InputError

    from .arms import Arms
    from .catalog import read_catalog, write_catalog
    from .fitting import Fit, fit
    from .model import stellar_model
    from .population import population_prior
    from .readers import Spectra, read_spectra, read_spectrum, write_spectra
    from .sampling import Posterior, sample
    from .spectrum import MaskBit, Spectrum

__version__ = "0.1.0"

_HOMES = {
    "Arms": "stellarfit.arms",
    "Fit": "stellarfit.fitting",
    "InputError": "emulators.errors",
    "MaskBit": "stellarfit.spectrum",
    "Posterior": "stellarfit.sampling",
    "Spectra": "stellarfit.readers",
    "Spectrum": "stellarfit.spectrum",
    "fit": "stellarfit.fitting",
    "load_emulator": "emulators.emulator",
    "population_prior": "stellarfit.population",
    "read_catalog": "stellarfit.catalog",
    "read_spectra": "stellarfit.readers",
    "read_spectrum": "stellarfit.readers",
    "sample": "stellarfit.sampling",
    "stellar_model": "stellarfit.model",
    "write_catalog": "stellarfit.catalog",
    "write_spectra": "stellarfit.readers",
}

__all__ = [
    "Arms",
    "Fit",
    "InputError",
    "MaskBit",
    "Posterior",
    "Spectra",
    "Spectrum",
    "fit",
    "load_emulator",
    "population_prior",
    "read_catalog",
    "read_spectra",
    "read_spectrum",
    "sample",
    "stellar_model",
    "write_catalog",
    "write_spectra",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'stellarfit' has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
