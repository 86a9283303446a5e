"""Spectra by formula: a problem small enough to check a training recipe on in a minute."""

import numpy as np

from emulators.labels import LabelSpace
from emulators.training_data import TrainingData

TOY_LABELS = LabelSpace(
    ("teff", "logg", "fe_h", "mg_fe"), (4000.0, 1.0, -2.5, -0.5), (7000.0, 5.0, 0.5, 0.5)
)
_STEP = 8e-5
_LINES = 12


def toy_spectra(num: int, *, pixels: int = 128, seed: int = 0) -> TrainingData:
    """Gaussian lines whose depths and widths follow the labels of `TOY_LABELS`.

    Parameters
    ----------
    num
        Stars.
    pixels
        From 5150 Angstrom on, 0.4 Angstrom each.
    seed
        Of the labels and of the sub-pixel dither; the lines are always the same.
    """
    wavelength = 5150.0 * np.exp(_STEP * np.arange(pixels))
    labels = TOY_LABELS.sobol(num, seed=seed)
    unit = np.asarray(TOY_LABELS.to_unit(labels))
    dither = np.random.default_rng(seed).uniform(-0.5, 0.5, num)
    lines = np.random.default_rng(0)
    centres = np.sort(lines.uniform(0, pixels, _LINES))
    # Every line answers to the labels in its own proportion, and widens with the gravity.
    strength = 0.1 + 0.7 * unit @ lines.dirichlet(np.ones(len(TOY_LABELS)), _LINES).T
    sigma = (1.0 + 2.0 * unit[:, 1:2]) * lines.uniform(0.7, 1.5, _LINES)
    place = np.arange(pixels) + dither[:, None]
    offset = (place[:, None, :] - centres[:, None]) / sigma[:, :, None]
    flux = np.prod(1.0 - strength[:, :, None] * np.exp(-0.5 * offset**2), axis=1)
    return TrainingData(labels, dither, flux.astype(np.float32), wavelength, _STEP)
