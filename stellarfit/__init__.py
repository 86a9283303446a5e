"""From a star's spectrum to Teff, logg and abundances with honest errors.

>>> import stellarfit as sf
>>> spectrum = sf.read_spectrum("star.fits", medium="air", resolution=47_000)  # doctest: +SKIP
>>> fit = sf.fit(spectrum, fixed={"vmic": 1.0})  # doctest: +SKIP

Names are imported on first use, so that the command line answers at once.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from emulators.errors import InputError

    from .arms import Arms
    from .catalog import read_catalog, write_catalog
    from .catalog_names import rename_columns
    from .compile import compile_emulator
    from .compiled import load_emulator
    from .fitting import Fit, fit
    from .merge import merge_survey
    from .model import stellar_model
    from .population import population_prior
    from .quality import write_quality_page
    from .readers import Spectra, read_spectra, read_spectrum, write_spectra
    from .sampling import Posterior, sample
    from .spectrum import MaskBit, Spectrum
    from .survey import fit_survey

__version__ = "0.1.0"

_HOMES = {
    "Arms": "stellarfit.arms",
    "Fit": "stellarfit.fitting",
    "InputError": "emulators.errors",
    "MaskBit": "stellarfit.spectrum",
    "Posterior": "stellarfit.sampling",
    "Spectra": "stellarfit.readers",
    "Spectrum": "stellarfit.spectrum",
    "compile_emulator": "stellarfit.compile",
    "fit": "stellarfit.fitting",
    "fit_survey": "stellarfit.survey",
    "load_emulator": "stellarfit.compiled",
    "merge_survey": "stellarfit.merge",
    "population_prior": "stellarfit.population",
    "read_catalog": "stellarfit.catalog",
    "read_spectra": "stellarfit.readers",
    "read_spectrum": "stellarfit.readers",
    "rename_columns": "stellarfit.catalog_names",
    "sample": "stellarfit.sampling",
    "stellar_model": "stellarfit.model",
    "write_catalog": "stellarfit.catalog",
    "write_quality_page": "stellarfit.quality",
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
    "compile_emulator",
    "fit",
    "fit_survey",
    "load_emulator",
    "merge_survey",
    "population_prior",
    "read_catalog",
    "read_spectra",
    "read_spectrum",
    "rename_columns",
    "sample",
    "stellar_model",
    "write_catalog",
    "write_quality_page",
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
