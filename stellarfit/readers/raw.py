"""What a reader hands over, before anything is judged."""

from typing import Any, NamedTuple

import numpy as np


class RawSpectrum(NamedTuple):
    """Arrays as the file has them.

    Attributes
    ----------
    wavelength, flux : [pixel]
        Wavelength in Angstrom, in the file's medium and order.
    ivar, mask : [pixel] or None
        Where the file has them. Nonzero mask is bad.
    header : dict
        Header cards or table metadata, keys in lower case.
    name : str
        What to call the source in messages.
    arm : str
        Of the spectrograph; empty where it has one.
    bits : [pixel] or None
        A survey's integer mask, all of it; `mask` is what of it means a bad pixel.
    resolution : float, [pixel] or None
        Resolving power by the survey's data model.
    medium : str or None
        By the survey's data model; None where the header is to say it.
    frame : str or None
        One of `frame.FRAMES`, for a survey.
    star : str
        The survey's name of the star, which `stars.Stars` fills in.
    """

    wavelength: np.ndarray
    flux: np.ndarray
    ivar: np.ndarray | None
    mask: np.ndarray | None
    header: dict[str, Any]
    name: str
    arm: str = ""
    bits: np.ndarray | None = None
    resolution: float | np.ndarray | None = None
    medium: str | None = None
    frame: str | None = None
    star: str = ""
