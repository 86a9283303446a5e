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
    """

    wavelength: np.ndarray
    flux: np.ndarray
    ivar: np.ndarray | None
    mask: np.ndarray | None
    header: dict[str, Any]
    name: str
