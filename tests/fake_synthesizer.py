"""A synthesiser without physics: one Gaussian line whose place and height follow the labels."""

from typing import Any, NamedTuple

import numpy as np

from emulators.labels import LabelSpace

SPACE = LabelSpace(("teff", "logg"), (4000.0, 1.0), (7000.0, 5.0))


class FakeSynthesis(NamedTuple):
    flux: np.ndarray
    continuum: np.ndarray

    @property
    def normalized(self) -> np.ndarray:
        return self.flux / self.continuum


class FakeSynthesizer:
    """Follows the interface of `Synthesizer`; `hole` makes the spectra of hot stars NaN."""

    def __init__(self, pixels: int = 200, hole: float = np.inf, seconds: float = 0.0):
        self.label_space = SPACE
        self.wavelength = 5000.0 * np.exp(1e-5 * np.arange(pixels))
        self.hole, self.seconds = hole, seconds
        self.calls = 0

    def batch(self, labels, shift):
        if self.seconds:
            import time

            time.sleep(self.seconds)
        self.calls += 1
        labels, shift = np.asarray(labels), np.asarray(shift)
        wavelength = self.wavelength * np.exp(shift[:, None])
        centre = 5002.0 + labels[:, 1:] / 2
        line = 0.5 * np.exp(-(((wavelength - centre) / 0.2) ** 2))
        continuum = labels[:, :1] ** 4 * (5000 / wavelength) ** 3
        flux = continuum * (1 - line)
        flux[labels[:, 0] > self.hole] = np.nan
        return FakeSynthesis(flux, continuum)

    def provenance(self) -> dict[str, Any]:
        return {"synthesizer": "fake", "pixels": len(self.wavelength)}
