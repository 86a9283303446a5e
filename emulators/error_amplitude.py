"""How an emulator's mean squared error depends on the labels of the star."""

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float
from scipy.optimize import minimize

from .errors import InputError
from .labels import LabelSpace

# Strengths of the penalty on every coefficient but the constant; the one is taken that does best
# on fifths of the stars that were left out.
_PENALTIES = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)
_FOLDS = 5
_FEWEST = 50  # stars from which a dependence on the labels can be told
_UNKNOWN = 1.0  # scatter where it cannot: that of the shipped emulators is 1.3 without it


class ErrorAmplitude(eqx.Module):
    """Expected mean squared error of a star, by the exponential of a polynomial of its labels.

    Parameters
    ----------
    lower, upper
        The label box, which the polynomial sees as -1 .. 1.
    coefficients
        Of 1, the labels, their squares and products: ln of the mean squared error.
    scatter
        Standard deviation of ln(mean squared error) of a star about that, found on stars that
        the polynomial was not fitted to.
    """

    lower: Float[Array, " label"]
    upper: Float[Array, " label"]
    coefficients: Float[Array, " term"]
    scatter: Float[Array, ""]

    def __call__(self, labels: Float[Array, " label"]) -> Float[Array, ""]:
        """The mean over stars like this one; labels beyond the box count as on its edge."""
        unit = 2 * (labels - self.lower) / (self.upper - self.lower) - 1
        return jnp.exp(_terms(jnp.clip(unit, -1.0, 1.0), jnp) @ self.coefficients)


def fit_error_amplitude(
    mse: Float[ArrayLike, " star"], labels: Float[ArrayLike, "star label"], space: LabelSpace
) -> ErrorAmplitude:
    """Fit the dependence to the mean squared errors of stars that the training did not see.

    The likelihood is that of a Gamma distribution with a logarithmic link, whose maximum makes
    the ratio of found to expected one on average, and so an honest mean, not a typical value.

    Fewer than 50 stars give the same for all labels, with a scatter of one in ln at least.

    Raises
    ------
    InputError
        No stars, shapes that do not agree, an error that is not above 0.
    """
    mse, labels = np.asarray(mse, np.float64), np.asarray(labels, np.float64)
    if mse.ndim != 1 or labels.shape != (len(mse), len(space)) or not len(mse):
        raise InputError(
            f"error_amplitude: {mse.shape} errors and {labels.shape} labels; give one star or "
            f"more, with {len(space)} labels each"
        )
    if not (np.isfinite(mse).all() and (mse > 0).all()):
        raise InputError("error_amplitude: mean squared errors must be finite and above 0")
    lower, upper = np.asarray(space.lower), np.asarray(space.upper)
    terms = _terms(2 * (labels - lower) / (upper - lower) - 1, np)
    if len(mse) < _FEWEST:
        coefficients = np.zeros(terms.shape[1])
        coefficients[0] = np.log(mse.mean())
        scatter = max(np.std(np.log(mse)), _UNKNOWN)
    else:
        coefficients, left = _best(terms, mse)
        scatter = np.std(left)
    return ErrorAmplitude(
        lower=jnp.asarray(lower),
        upper=jnp.asarray(upper),
        coefficients=jnp.asarray(coefficients),
        scatter=jnp.asarray(scatter),
    )


def _best(terms, mse):
    """Coefficients under the best penalty, and what is left of each star by those of others."""
    fold = np.random.default_rng(0).permutation(len(mse)) % _FOLDS
    found = {penalty: _left_out(terms, mse, fold, penalty) for penalty in _PENALTIES}
    penalty = min(found, key=lambda one: _deviance(found[one], mse))
    return _maximum(terms, mse, penalty), np.log(mse) - found[penalty]


def _terms(unit, library):
    """1, the labels, and their squares and products."""
    first, second = np.triu_indices(unit.shape[-1])
    one = library.ones_like(unit[..., :1])
    return library.concatenate([one, unit, unit[..., first] * unit[..., second]], axis=-1)


def _deviance(log_mean, mse):
    return np.mean(log_mean + mse * np.exp(-log_mean))


def _maximum(terms, mse, penalty):
    """Coefficients of the penalised maximum likelihood; the problem is convex."""
    weight = penalty * np.r_[0.0, np.ones(terms.shape[1] - 1)]
    scale = mse.mean()

    def cost(beta):
        log_mean = terms @ beta
        ratio = (mse / scale) * np.exp(-log_mean)
        value = np.mean(log_mean + ratio) + 0.5 * weight @ beta**2
        return value, terms.T @ (1 - ratio) / len(mse) + weight * beta

    beta = minimize(cost, np.zeros(terms.shape[1]), jac=True, method="L-BFGS-B").x
    beta[0] += np.log(scale)
    return beta


def _left_out(terms, mse, fold, penalty):
    """ln of the expected error of every star, by the other four fifths of them."""
    log_mean = np.empty(len(mse))
    for one in range(_FOLDS):
        out = fold == one
        log_mean[out] = terms[out] @ _maximum(terms[~out], mse[~out], penalty)
    return log_mean
