"""How wrong emulators are near one star, found without synthesis: by comparing their sizes.

An error model is a mean over the whole label box, and most stars are better than the mean: near
the Sun the first shipped family had 0.3 to 0.45 of its mean squared error. A better emulator of
the same labels shows how much: where its own error is small beside that of a lesser one, their
difference is the error of the lesser.
"""

from collections.abc import Sequence

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float64

from emulators.emulator import Emulator
from scaling.label_bias import Covariance, Pixels, error_model_of

# Stars like the one asked for: within a tenth of the width of the box, in every label.
_STARS, _REACH, _SEED = 64, 0.1, 0
# What the differences contribute to a covariance. The rest has the shape of the error model, which
# knows directions that so few stars do not show. With half of each, the label errors that came out
# within a factor of two were 95% or more for the two smaller sizes of the first family, and 84 to
# 89% for the largest; by differences alone 79 to 89%, by the error model with the amplitude of the
# differences 63 to 100% and 68 to 95% (128 spectra around the Sun and a giant, S/N 30 to 300).
_SHARE = 0.5


def errors_near(
    emulators: Sequence[Emulator],
    models: Sequence[Covariance],
    labels: Float64[np.ndarray, " label"],
    pixels: Pixels,
) -> list[Covariance]:
    """Covariance of each emulator's errors in the pixels for stars like the one given.

    Parameters
    ----------
    emulators
        Of one label space, the best one last.
    models
        Their error models in these pixels, of the whole label box.
    labels
        Of the star.

    Returns
    -------
    list of Covariance
        Of every emulator but the last by its differences from the last. The last one takes after
        the next best: its differences scaled by the ratio of the two mean squared errors, and as
        much better than its own error model. A single emulator has its error model.
    """
    if len(emulators) == 1:
        return list(models)
    sample = _stars_near(emulators[-1], labels)
    first, last = np.log(pixels.fine[[0, -1]])
    native = np.exp(np.arange(first, last, emulators[-1].step))
    flux = [np.asarray(_fluxes(one, jnp.asarray(sample), jnp.asarray(native))) for one in emulators]
    found = []
    for emulator, mine in zip(emulators[:-1], flux[:-1], strict=True):
        difference = np.asarray(mine - flux[-1], np.float64)
        amplitude = float(np.mean(difference**2)) / error_model_of(emulator).mse
        seen = pixels.observe(native, difference)
        found.append((amplitude, seen.T / np.sqrt(len(seen))))
    amplitude, modes = found[-1]
    better = error_model_of(emulators[-1]).mse / error_model_of(emulators[-2]).mse
    found.append((amplitude, modes * np.sqrt(better)))
    return [
        Covariance(
            (1 - _SHARE) * amplitude * model.variance,
            np.hstack(
                [np.sqrt((1 - _SHARE) * amplitude) * model.modes, np.sqrt(_SHARE) * modes],
            ),
        )
        for (amplitude, modes), model in zip(found, models, strict=True)
    ]


def _stars_near(emulator, labels):
    """Stars that fill a small box about one, cut off at the edge of the label space."""
    space = emulator.label_space
    lower, upper = np.asarray(space.lower), np.asarray(space.upper)
    unit = (space.sobol(_STARS, seed=_SEED) - lower) / (upper - lower)
    return np.clip(labels + _REACH * (2 * unit - 1) * (upper - lower), lower, upper)


@eqx.filter_jit
def _fluxes(emulator, labels, wavelength):
    """Spectra one after another: a processor's cache holds one."""
    encoding = emulator.encode(wavelength)
    return jax.lax.map(lambda star: emulator.flux_at(star, encoding), labels)
