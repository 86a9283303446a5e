"""How wrong emulators are near one star: against spectra synthesised there, or by their sizes.

An error model says what to expect of any star like this one; it is calibrated over the whole label
box, and too pessimistic where most abundances are solar. A few dozen spectra of the synthesiser
show the errors themselves. Where there is no synthesiser, a better emulator of the same labels
shows something of them: where its own error is small beside that of a lesser one, their difference
is the error of the lesser.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float64

from emulators.emulator import Emulator
from emulators.errors import InputError
from emulators.labels import LabelSpace
from emulators.physics.synthesizer import Synthesizer
from scaling.label_bias import Covariance, Design, Pixels, error_model_of

# Stars like the one asked for: within a tenth of the width of the box, in every label.
_STARS, _REACH, _SEED = 32, 0.1, 0
_AT_ONCE = 8  # that are synthesised: what a processor's memory and a GPU both bear
# What the differences contribute to a covariance. The rest is the error model's, which knows
# directions that two emulators do not show, being wrong in the same way.
_SHARE = 0.5


class Fitted(NamedTuple):
    """A star that is fitted, and the errors of the emulator there.

    Attributes
    ----------
    design
        Derivatives of the star's pixels.
    errors
        Covariance of the errors in them.
    """

    design: Design
    errors: Covariance


def by_synthesis(
    emulator: Emulator,
    labels: Float64[np.ndarray, "star label"],
    truth: Float64[np.ndarray, "star fine"],
    pixels: Pixels,
    design: Callable[[Float64[np.ndarray, " label"]], Design],
) -> list[Fitted]:
    """Synthesised stars as an emulator would fit them.

    Parameters
    ----------
    labels, truth
        From `stars_near` and `synthesize_stars`.
    pixels
        That see them.
    design
        Derivatives by this emulator of a star of some labels.
    """
    flux = np.asarray(_fluxes(emulator, jnp.asarray(labels), jnp.asarray(pixels.fine)), np.float64)
    nothing = np.zeros(len(pixels.wavelength))
    return [
        Fitted(design(star), Covariance(nothing, (pixels.spread @ off)[:, None]))
        for star, off in zip(labels, flux - truth, strict=True)
    ]


def synthesize_stars(
    synthesizer: Synthesizer, labels: Float64[np.ndarray, "star label"]
) -> Float64[np.ndarray, "star fine"]:
    """Spectra of stars.

    Raises
    ------
    InputError
        If one has no number somewhere.
    """
    still, parts = jnp.zeros(_AT_ONCE), []
    for first in range(0, len(labels), _AT_ONCE):
        # The last ones again fill up the last batch.
        part = np.resize(labels[first : first + _AT_ONCE], (_AT_ONCE, labels.shape[1]))
        spectra = synthesizer.batch(jnp.asarray(part), still).normalized
        parts.append(np.asarray(spectra, np.float64)[: len(labels) - first])
    truth = np.concatenate(parts)
    if not np.isfinite(truth).all():
        wrong = labels[~np.isfinite(truth).all(axis=1)][0]
        names = synthesizer.label_space.names
        star = ", ".join(f"{name}={value:g}" for name, value in zip(names, wrong, strict=True))
        raise InputError(
            f"choose: there is no spectrum of {star}, which is near the star; give one further "
            "inside the label box, or synthesize=False"
        )
    return truth


def stars_near(
    space: LabelSpace, labels: Float64[np.ndarray, " label"]
) -> Float64[np.ndarray, "star label"]:
    """Stars that fill a small box about one, cut off at the edge of the label space."""
    lower, upper = np.asarray(space.lower), np.asarray(space.upper)
    unit = (space.sobol(_STARS, seed=_SEED) - lower) / (upper - lower)
    return np.clip(labels + _REACH * (2 * unit - 1) * (upper - lower), lower, upper)


def by_comparison(
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
    sample = stars_near(emulators[-1].label_space, labels)
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


@eqx.filter_jit
def _fluxes(emulator, labels, wavelength):
    """Spectra one after another: a processor's cache holds one."""
    encoding = emulator.encode(wavelength)
    return jax.lax.map(lambda star: emulator.flux_at(star, encoding), labels)
