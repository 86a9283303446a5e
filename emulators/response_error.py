"""How wrong an emulator's response to a label is, by spectra that differ in that label alone."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float64
from scipy.ndimage import gaussian_filter1d

from .errors import InputError
from .fit_coherent import LINE_SPREAD, beyond, nuisances

_STEP = 0.1  # of half a label's box, to either side


def measure_response(
    emulator: Any, synthesizer: Any, stars: int = 24, seed: int = 0
) -> Float64[np.ndarray, " label"]:
    """Measure `CoherentError.response`.

    Held-out spectra do not tell it: no two of them differ in one label alone. So the synthesiser
    and the emulator both say what a small step in each label does to stars drawn from the box.
    What the emulator says besides is its error; the part of it that continuum, velocities and the
    other labels could not do counts. Some stars have a hundred times as much as others, where CO
    binds all carbon, hence the median.

    Parameters
    ----------
    emulator : Emulator
        With an error model.
    synthesizer : Synthesizer
        Of the emulator's labels, at the wavelengths of its error model.
    stars, seed
        How many, and of the labels drawn. Each takes two spectra a label and one more.

    Returns
    -------
    [label]
        Energy of the error, for half the label's box, over that of the star's own error.

    Raises
    ------
    InputError
        An emulator without an error model; a synthesiser of other labels or wavelengths.
    """
    errors, space = emulator.error_model, emulator.label_space
    if errors is None:
        raise InputError(f"response: {emulator.name} has no error model; measure that first")
    if synthesizer.label_space != space:
        raise InputError(f"response: the synthesizer has other labels than {emulator.name}")
    wavelength = np.asarray(errors.wavelength)
    if not np.array_equal(np.asarray(synthesizer.wavelength), wavelength):
        raise InputError(
            f"response: the synthesizer has other wavelengths than the error model of "
            f"{emulator.name}, {wavelength[0]:.6g} to {wavelength[-1]:.6g} Angstrom"
        )
    if stars < 1:
        raise InputError(f"response: {stars} stars; give 1 or more")
    encoding = eqx.filter_jit(emulator.encode)(jnp.asarray(wavelength))

    @eqx.filter_jit
    def emulate(labels):
        still = jnp.zeros(())
        flux = jax.lax.map(lambda one: emulator.flux_at(one, encoding, still), labels)
        return flux.astype(jnp.float64)

    @eqx.filter_jit
    def synthesise(labels):
        still = jnp.zeros(())
        return jax.lax.map(lambda one: synthesizer(one, still).normalized, labels)

    weight = 1 / np.sqrt(np.asarray(errors.variance(jnp.asarray(_smooth(errors.patterns)))))
    drawn = np.random.default_rng(seed).uniform(size=(stars, len(space)))
    labels = np.asarray(space.from_unit(jnp.asarray(drawn)))
    found = []
    for star in labels:
        places = jnp.asarray(_steps(space, star))
        found.append(_of_star(np.asarray(emulate(places)), np.asarray(synthesise(places)), weight))
    return np.median(found, axis=0)


def _steps(space, star):
    """The star, and two places for each label, a step to either side as far inside as it takes."""
    lower, upper = np.asarray(space.lower), np.asarray(space.upper)
    step = _STEP * 0.5 * (upper - lower)
    middle = np.clip(star, lower + step, upper - step)
    moves = np.where(np.eye(len(star), dtype=bool), middle - star, 0.0)
    sides = [star + moves + sign * np.diag(step) for sign in (-1, 1)]
    return np.concatenate([star[None], *sides])


def _of_star(emulated, true, weight):
    """Energies for each label, over that of the star's error."""
    flux, number = emulated[0], len(emulated) // 2
    response, right = (
        (one[1 + number :] - one[1 : 1 + number]) / (2 * _STEP) for one in (emulated, true)
    )
    nuisance = np.column_stack(nuisances(flux, np.gradient(flux)))

    def seen(columns):
        return weight[:, None] * _smooth(columns.T).T

    nuisance, response = seen(nuisance), seen(response.T)
    wrong = response - seen(right.T)
    own = beyond(nuisance, seen((flux - true[0])[:, None]))
    energies = [
        np.sum(beyond(np.column_stack([nuisance, np.delete(response, k, 1)]), wrong[:, k]) ** 2)
        for k in range(number)
    ]
    return np.array(energies) / np.sum(own**2)


def _smooth(spectra):
    return gaussian_filter1d(np.asarray(spectra, np.float64), LINE_SPREAD, axis=-1, mode="nearest")
