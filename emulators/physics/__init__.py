"""One-dimensional LTE spectral synthesis: labels in, flux and continuum out."""

from importlib import resources
from pathlib import Path


def data_path(name: str) -> Path:
    """Path of one of the tables that are shipped with the package."""
    return Path(str(resources.files("emulators.physics") / "data" / name))
