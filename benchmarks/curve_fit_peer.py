"""The peer of `survey_speed.py`: a Payne-style network and ``scipy.optimize.curve_fit``.

As its users write it: two hidden layers of 300 neurons give the flux in the pixels at rest, in
numpy; the spectrum is shifted by linear interpolation, multiplied by a polynomial, and fitted with
the derivatives that curve_fit takes by differences, one star after another. It is spared the
search of the velocity: it starts from the true one, rounded to 5 km/s, and from the middle of the
box in the labels.
"""

import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from numpy.polynomial.chebyshev import chebvander
from scipy.optimize import curve_fit

from emulators.compiled_spectra import evaluate_spline
from emulators.units import SPEED_OF_LIGHT

HIDDEN, SPECTRA, STEPS, BATCH = 300, 16_384, 10_000, 256
MARGIN = 60  # pixels beyond those of the stars, for the shifts


class Network:
    """Labels in -1/2 .. 1/2 to flux on a grid that reaches beyond the stars' pixels."""

    def __init__(self, compiled: Any, names: tuple[str, ...], wavelength: np.ndarray, seed: int):
        space = compiled.label_space
        self.where = [space.index(name) for name in names]
        self.lower = np.array(space.lower)[self.where]
        self.upper = np.array(space.upper)[self.where]
        step = wavelength[1] - wavelength[0]
        reach = MARGIN * step
        low, high = compiled.wavelength_range
        grid = np.arange(wavelength[0] - reach, wavelength[-1] + reach, step)
        self.wavelength = grid[(grid > low) & (grid < high)]
        labels = compiled.network.label_space.sobol(SPECTRA, seed=seed)
        for name, value in compiled.held:
            labels[:, space.index(name)] = value
        places = compiled.encode(jnp.asarray(self.wavelength))
        spectra = jax.jit(
            lambda labels: jax.lax.map(
                lambda one: 1 - evaluate_spline(compiled.network.coefficients(one), places),
                labels,
                batch_size=64,
            )
        )(jnp.asarray(labels))
        self.weights = self._train(self.scaled(labels[:, self.where]), spectra, seed)

    def scaled(self, labels: np.ndarray) -> np.ndarray:
        return (labels - self.lower) / (self.upper - self.lower) - 0.5

    def _train(self, labels: np.ndarray, spectra: Any, seed: int) -> list[np.ndarray]:
        rng = np.random.default_rng(seed)
        sizes = [labels.shape[1], HIDDEN, HIDDEN, spectra.shape[1]]
        weights = []
        for fan_in, fan_out in zip(sizes[:-1], sizes[1:], strict=True):
            weights.append(rng.normal(0, fan_in**-0.5, (fan_in, fan_out)).astype(np.float32))
            weights.append(np.zeros(fan_out, np.float32))
        weights = list(map(jnp.asarray, weights))
        optimizer = optax.adam(optax.cosine_decay_schedule(1e-3, STEPS))
        known, seen = jnp.asarray(labels, jnp.float32), jnp.asarray(spectra, jnp.float32)

        @jax.jit
        def advance(weights, state, key):
            def loss(weights, batch):
                return jnp.mean((forward(weights, known[batch], jnp) - seen[batch]) ** 2)

            def one(carry, key):
                weights, state = carry
                batch = jax.random.randint(key, (BATCH,), 0, len(known))
                value, gradient = jax.value_and_grad(loss)(weights, batch)
                updates, state = optimizer.update(gradient, state)
                return (optax.apply_updates(weights, updates), state), value

            return jax.lax.scan(one, (weights, state), jax.random.split(key, 500))

        state = optimizer.init(weights)
        for i in range(STEPS // 500):
            (weights, state), _ = advance(weights, state, jax.random.key(i))
        return [np.asarray(one, np.float64) for one in weights]

    def __call__(self, labels: np.ndarray) -> np.ndarray:
        return forward(self.weights, labels, np)


def forward(weights: Any, labels: Any, xp: Any) -> Any:
    """Two hidden layers with leaky rectifiers, as The Payne has them."""
    first, first_bias, second, second_bias, last, last_bias = weights
    hidden = labels @ first + first_bias
    hidden = xp.where(hidden > 0, hidden, 0.01 * hidden) @ second + second_bias
    return xp.where(hidden > 0, hidden, 0.01 * hidden) @ last + last_bias


def fit_stars(network: Network, wavelength: np.ndarray, stars: dict, num: int) -> dict[str, Any]:
    """Fit the first stars, one after another: seconds, labels, velocities, failures."""
    x = np.linspace(-1, 1, len(wavelength))
    basis = chebvander(x, 3)
    count = len(network.lower)
    found = np.full((num, count + 1), np.nan)
    began = time.perf_counter()
    for i in range(num):
        flux, ivar = stars["flux"][i].astype(float), stars["ivar"][i].astype(float)
        good = ivar > 0
        sigma = np.where(good, 1 / np.sqrt(np.where(good, ivar, 1.0)), 1e6)

        def model(_, *parameters):
            labels, velocity = np.array(parameters[:count]), parameters[count]
            shifted = network.wavelength * (1 + velocity / SPEED_OF_LIGHT)
            at_rest = network(labels)
            return np.interp(wavelength, shifted, at_rest) * (basis @ parameters[count + 1 :])

        velocity = 5 * np.round(stars["velocity"][i] / 5)
        level = max(float(np.percentile(flux, 90)), 1e-3)
        start = [*np.zeros(count), velocity, level, 0.0, 0.0, 0.0]
        lower = [*np.full(count, -0.5), velocity - 30, *np.full(4, -np.inf)]
        upper = [*np.full(count, 0.5), velocity + 30, *np.full(4, np.inf)]
        try:
            best, _ = curve_fit(
                model, wavelength, flux, p0=start, sigma=sigma, bounds=(lower, upper),
                absolute_sigma=True, ftol=5e-4, xtol=5e-4,
            )  # fmt: skip
        except RuntimeError:  # too many evaluations: its users go on to the next star
            continue
        best = np.asarray(best)
        found[i, :count] = network.lower + (best[:count] + 0.5) * (network.upper - network.lower)
        found[i, count] = best[count]
    return {"seconds": time.perf_counter() - began, "values": found}
