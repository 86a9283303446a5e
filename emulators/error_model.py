"""How wrong an emulator is at some labels: a covariance over wavelength, by held-out spectra.

The error of an emulator is a smooth function of the labels, and so are the derivatives of its flux
by them: a part of it looks like a change of the labels, and no fit can tell the two apart. In the
pixels of the spectrograph, the errors of a star have the covariance

    C = m(labels) [ diag(d) + coherent part ]

- m, the mean squared error, is a polynomial of the labels (`emulators.error_amplitude`): a
  tenth of a dex of scatter is left of more than two dex of range;
- d, mean 1 before the spectrograph, is what held-out stars show in each pixel;
- the coherent part is what the labels of the star itself may be off by, some twenty axes in the
  space of labels (`emulators.coherent_error`; `stellarfit.emulator_error` makes columns of them).
  It also knows how much more than white noise the error has along what the labels can do beyond
  that: a change of the labels sees diag(d) by that factor, residuals do not.

A covariance that is the same for all stars, however many modes it has, is too sure of the labels:
half to a third of their real errors at high S/N (docs/emulator.md shows the comparison).
"""

from typing import TYPE_CHECKING, Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float

from .coherent_error import CoherentError
from .error_amplitude import ErrorAmplitude, fit_error_amplitude
from .errors import InputError
from .fit_coherent import fit_coherent_error
from .labels import LabelSpace

if TYPE_CHECKING:
    from .training_data import TrainingData

_STARS = 1000  # whose derivatives are taken


class ErrorModel(eqx.Module):
    """Second moments of an emulator's residuals at given labels.

    Residuals are emulator minus truth in normalised flux. The moments are taken about zero, so a
    mean error counts as error.

    Parameters
    ----------
    wavelength
        Nominal grid of the training spectra, vacuum Angstrom.
    patterns
        Residuals of some held-out stars over their expected rms, scaled so that the mean square
        of each pixel is that of all. What a spectrograph makes of them tells what it makes of d.
    mse
        Mean squared residual of the held-out stars.
    amplitude
        Expected mean squared residual of a star.
    coherent
        The part that looks like a change of the labels.
    """

    wavelength: Float[Array, " pixel"]
    patterns: Float[Array, "pattern pixel"]
    mse: Float[Array, ""]
    amplitude: ErrorAmplitude
    coherent: CoherentError

    def variance(self, seen: Float[Array, "pattern seen"]) -> Float[Array, " seen"]:
        """d: the mean square of the patterns as a spectrograph sees them."""
        return jnp.mean(seen**2, axis=0)

    @classmethod
    def from_arrays(cls, arrays: dict[str, np.ndarray]) -> "ErrorModel":
        """From its leaves by their path, such as ``.coherent.amplitude.lower``."""
        nested: dict[str, Any] = {}
        for path, array in arrays.items():
            *parents, name = path.lstrip(".").split(".")
            place = nested
            for parent in parents:
                place = place.setdefault(parent, {})
            place[name] = jnp.asarray(array, jnp.float64)
        coherent = nested.pop("coherent")
        coherent["amplitude"] = ErrorAmplitude(**coherent["amplitude"])
        nested["amplitude"] = ErrorAmplitude(**nested["amplitude"])
        return cls(**nested, coherent=CoherentError(**coherent))

    def rounded(self) -> "ErrorModel":
        """The same with patterns that float16 holds, so that its file is small."""
        patterns = self.patterns.astype(jnp.float16).astype(self.patterns.dtype)
        return eqx.tree_at(lambda model: model.patterns, self, patterns)


def fit_error_model(model: Any, held_out: "TrainingData", num_patterns: int = 160) -> ErrorModel:
    """Measure an error model on spectra that the training did not see.

    Parameters
    ----------
    model : SpectralModel
    held_out
        Spectra with their labels. Fewer than 50 tell nothing of a dependence on the labels: the
        amplitude is then the same for all.
    num_patterns
        Residuals to keep.

    Raises
    ------
    InputError
        No spectra, or residuals that are NaN or all zero.
    """
    from .training_data import evaluate

    residuals = np.asarray(evaluate(model, held_out, residuals=True), np.float64)
    labels = np.asarray(held_out.labels, np.float64)
    amplitude = _amplitude(residuals, labels, model.label_space)
    expected = np.asarray(jax.vmap(amplitude)(jnp.asarray(labels)))
    scaled = residuals / np.sqrt(expected)[:, None]
    patterns = scaled[: min(num_patterns, len(scaled))]
    # Few stars tell the mean square of a pixel badly; all of them do better.
    found = np.mean(patterns**2, axis=0)
    patterns = patterns * np.sqrt(np.mean(scaled**2, axis=0) / np.where(found > 0, found, 1.0))
    return ErrorModel(
        wavelength=jnp.asarray(held_out.wavelength, jnp.float64),
        patterns=jnp.asarray(patterns),
        mse=jnp.asarray(np.mean(residuals**2)),
        amplitude=amplitude,
        coherent=fit_coherent_error(model, held_out, scaled[-_STARS:]),
    )


def _amplitude(
    residuals: Float[ArrayLike, "star pixel"],
    labels: Float[ArrayLike, "star label"],
    space: LabelSpace,
) -> ErrorAmplitude:
    residuals = np.asarray(residuals)
    if residuals.ndim != 2 or residuals.shape[0] == 0:
        raise InputError(
            f"error_model: residuals have shape {residuals.shape}, expected [star, pixel]"
        )
    if not np.isfinite(residuals).all():
        raise InputError("error_model: residuals hold NaN or infinity; drop those spectra")
    return fit_error_amplitude(np.mean(residuals**2, axis=1), labels, space)
