"""Reading observed spectra: those of surveys, FITS tables and images, text, specutils objects."""

from .bulk import write_spectra
from .many import Spectra, read_spectra
from .read import read_spectrum

__all__ = ["Spectra", "read_spectra", "read_spectrum", "write_spectra"]
