"""Spectra that specutils holds or can read."""

import warnings
from typing import Any

import numpy as np

from emulators.errors import InputError, one_line

from .header import clean_header
from .raw import RawSpectrum


def load(source: Any, format: str, where: str, **options: Any) -> RawSpectrum:
    """Read a file with the named loader of specutils.

    Parameters
    ----------
    source
        Path, or an open FITS file.
    format
        Of the loader.
    where
        File to name in messages.
    **options
        Of the loader.
    """
    from specutils import Spectrum as SpecutilsSpectrum

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = SpecutilsSpectrum.read(source, format=format, **options)
    except Exception as error:  # noqa: BLE001 - loaders raise whatever their parsing meets
        raise InputError(
            f"{where}: specutils cannot read it as {format!r} ({one_line(error)[:200]})"
        ) from None
    return from_specutils(found)._replace(name=where)


def from_specutils(spectrum: Any) -> RawSpectrum:
    """Take over a ``specutils.Spectrum`` (or the older ``Spectrum1D``) of one star."""
    from astropy import units

    for needed in ("spectral_axis", "flux", "uncertainty", "mask", "meta"):
        if not hasattr(spectrum, needed):
            raise InputError(
                f"spectrum: a {type(spectrum).__name__} is neither a path nor a specutils Spectrum"
            )
    flux = np.squeeze(np.asarray(spectrum.flux.value, np.float64))
    if flux.ndim != 1:
        raise InputError(
            f"spectrum: holds {flux.shape} fluxes; pass one spectrum at a time, such as spectrum[0]"
        )
    ivar = None
    if spectrum.uncertainty is not None:
        from astropy.nddata import InverseVariance

        with np.errstate(divide="ignore"):
            converted = spectrum.uncertainty.represent_as(InverseVariance)
        ivar = np.squeeze(np.asarray(converted.array, np.float64))
    mask = None if spectrum.mask is None else np.squeeze(np.asarray(spectrum.mask))
    header = spectrum.meta.get("header", {})
    cards = [*(header.items() if hasattr(header, "items") else ()), *spectrum.meta.items()]
    wavelength = spectrum.spectral_axis.to_value(units.AA, equivalencies=units.spectral())
    return RawSpectrum(
        np.asarray(wavelength, np.float64), flux, ivar, mask, clean_header(cards), "spectrum"
    )
