"""How wrong emulators are near one star, found without synthesis: by comparing their sizes.

An error model says what to expect of any star like this one; it is calibrated over the whole label
box, and too pessimistic where most abundances are solar. A better emulator of the same labels shows
more: where its own error is small beside that of a lesser one, their difference is the error of the
lesser.
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
# What the differences contribute to a covariance. The rest is the error model's, which knows
# directions that so few stars do not show.
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
        Their covariances at the star, by their error models.
    labels
        Of the star.
    pixels
        That see it.

    Returns
    -------
    list of Covariance
        Of every emulator but the last, half by its differences from the last and half by its
        error model. The last one takes after the next best, whose differences are scaled by the
        ratio of the two mean squared errors. A single emulator has its error model.
    """
    if len(emulators) == 1:
        return list(models)
    sample = _stars_near(emulators[-1], labels)
    first, last = np.log(pixels.fine[[0, -1]])
    native = np.exp(np.arange(first, last, emulators[-1].step))
    flux = [np.asarray(_fluxes(one, jnp.asarray(sample), jnp.asarray(native))) for one in emulators]
    found = []
    for mine in flux[:-1]:
        seen = pixels.observe(native, np.asarray(mine - flux[-1], np.float64))
        found.append(seen.T / np.sqrt(len(seen)))
    last_mse, next_mse = (float(error_model_of(one).mse) for one in emulators[:-3:-1])
    found.append(found[-1] * np.sqrt(last_mse / next_mse))
    return [
        Covariance(
            (1 - _SHARE) * model.variance,
            np.hstack([np.sqrt(1 - _SHARE) * model.modes, np.sqrt(_SHARE) * modes]),
        )
        for modes, model in zip(found, models, strict=True)
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
