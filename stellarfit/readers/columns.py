"""Which column of a table is what."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from emulators.errors import InputError

_WAVELENGTH = (
    "wavelength", "wave", "lambda", "lam", "wl", "wavel", "wavelengths", "waveobs", "wave_air",
    "wave_vac", "ww", "angstrom",
)  # fmt: skip
_LOG_WAVELENGTH = ("loglam", "loglambda", "log_lambda", "log_wave", "logwave", "log10lam")
_FLUX = (
    "flux", "flx", "spec", "spectrum", "flux_norm", "norm_flux", "normalized_flux", "nflux",
    "flux_normalized", "intensity", "counts", "fluxes", "f",
)  # fmt: skip
_IVAR = ("ivar", "inv_var", "invvar", "flux_ivar", "inverse_variance", "ivars")
_ERROR = (
    "err", "error", "sigma", "e_flux", "flux_err", "flux_error", "fluxerr", "flux_sigma", "eflux",
    "uncertainty", "unc", "flux_unc", "std", "stdev", "noise", "errors", "err_flux",
)  # fmt: skip
_VARIANCE = ("variance", "var", "flux_var")
_MASK = ("mask", "bad", "badpix", "bad_pixel", "dq", "quality", "flag", "flags")


class Columns(NamedTuple):
    """Column names that the user gave; None where the usual names are to be tried."""

    wavelength: str | None = None
    flux: str | None = None
    ivar: str | None = None
    error: str | None = None
    mask: str | None = None


class Found(NamedTuple):
    """Wavelength [Angstrom], flux, inverse variance or None, mask or None, each [pixel]."""

    wavelength: np.ndarray
    flux: np.ndarray
    ivar: np.ndarray | None
    mask: np.ndarray | None


def holds_spectrum(names: Sequence[str], columns: Columns) -> bool:
    """Whether a table with these columns looks like a spectrum."""
    wavelength = columns.wavelength or _pick(names, _WAVELENGTH + _LOG_WAVELENGTH)
    return bool(wavelength and (columns.flux or _pick(names, _FLUX)))


def find_columns(
    names: Sequence[str],
    get: Callable[[str], Any],
    unit: Callable[[str], str | None],
    columns: Columns,
    wavelength_unit: str | None,
    where: str,
) -> Found:
    """Pick a spectrum out of a table.

    Parameters
    ----------
    names
        The table's columns.
    get, unit
        Give a column's values and its unit (or None).
    columns, wavelength_unit
        What the user stated.
    where
        File (and extension) to name in messages.
    """
    for role, given in columns._asdict().items():
        if given is not None and given not in names:
            raise InputError(f"{where}: no column {given!r} for {role}; it has {', '.join(names)}")
    wavelength_name = columns.wavelength or _pick(names, _WAVELENGTH)
    log_name = None if wavelength_name else _pick(names, _LOG_WAVELENGTH)
    flux_name = columns.flux or _pick(names, _FLUX)
    for role, name in (("wavelength", wavelength_name or log_name), ("flux", flux_name)):
        if name is None:
            raise InputError(
                f"{where}: no {role} column among {', '.join(names)}; name it with {role}= "
                f"(--{role})"
            )
    name = wavelength_name or log_name
    assert name is not None and flux_name is not None  # for the type checker
    values = column(get(name), name, where)
    if name.lower() in _LOG_WAVELENGTH:
        values, stated = 10.0**values, wavelength_unit
    else:
        stated = wavelength_unit or unit(name)
    return Found(
        to_angstrom(values, stated, where),
        column(get(flux_name), flux_name, where),
        _find_ivar(names, get, columns, where),
        _find_mask(names, get, columns),
    )


def column(values: Any, name: str, where: str) -> np.ndarray:
    """One column as float64; vectors of one row are unpacked, masked entries become NaN."""
    try:
        array = np.ma.asarray(values)
        if array.dtype.kind == "c":
            raise TypeError("complex")
        array = np.ma.filled(array.astype(np.float64), np.nan)
    except (TypeError, ValueError):
        raise InputError(f"{where}: column {name!r} does not hold numbers") from None
    return array.ravel() if array.ndim == 2 and 1 in array.shape else array


def to_angstrom(values: np.ndarray, unit: str | None, where: str) -> np.ndarray:
    """Convert wavelengths to Angstrom; without a unit they are Angstrom already."""
    if unit is None or not str(unit).strip():
        return values
    from astropy import units

    # Spellings that real files use and astropy does not know.
    text = {"angstroms": "Angstrom", "ang": "Angstrom", "a": "Angstrom", "microns": "micron"}.get(
        str(unit).strip().lower(), str(unit).strip()
    )
    try:
        return values * units.Unit(text).to(units.AA)
    except (ValueError, TypeError, units.UnitConversionError):
        raise InputError(
            f"{where}: wavelength unit {str(unit)!r} is not a length; give wavelength_unit= "
            "(--wavelength-unit), for example 'Angstrom' or 'nm'"
        ) from None


def ivar_from_error(error: np.ndarray) -> np.ndarray:
    """Inverse variance from 1-sigma errors; zero, negative or NaN errors give no weight."""
    usable = np.isfinite(error) & (error > 0)
    return np.divide(1.0, error**2, out=np.zeros_like(error), where=usable)


def _find_ivar(names, get, columns, where) -> np.ndarray | None:
    if columns.ivar is not None and columns.error is not None:
        raise InputError(f"{where}: both ivar= and error= were given; give one")
    if columns.error is None and (name := columns.ivar or _pick(names, _IVAR)):
        return column(get(name), name, where)
    if name := columns.error or _pick(names, _ERROR):
        return ivar_from_error(column(get(name), name, where))
    if name := _pick(names, _VARIANCE):
        variance = column(get(name), name, where)
        usable = np.isfinite(variance) & (variance > 0)
        return np.divide(1.0, variance, out=np.zeros_like(variance), where=usable)
    return None


def _find_mask(names, get, columns) -> np.ndarray | None:
    name = columns.mask or _pick(names, _MASK)
    if name is None:
        return None
    values = np.ma.filled(np.ma.asarray(get(name)), 1)
    if values.dtype.kind not in "biuf":
        raise InputError(f"mask: column {name!r} does not hold numbers; nonzero means bad")
    return values.ravel() if values.ndim == 2 and 1 in values.shape else values


def _pick(names: Sequence[str], known: Sequence[str]) -> str | None:
    """The column whose name is the earliest of the known ones, in any case."""
    lower = {name.lower(): name for name in reversed(names)}
    return next((lower[name] for name in known if name in lower), None)
