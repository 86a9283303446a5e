"""Reading observed spectra: FITS tables and images, ECSV, plain text and specutils objects."""

from .read import read_spectrum

__all__ = ["read_spectrum"]
