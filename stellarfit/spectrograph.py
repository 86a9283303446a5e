"""A spectrograph: pixel width and line spread at every wavelength."""

from typing import Any

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float64

from emulators.errors import InputError
from emulators.fine_step import fine_step

from .instrument import Instrument, Velocities

# One that differs by more is another one.
_RESOLUTION_AGREES, _WIDTH_AGREES = 0.005, 0.02
STILL = Velocities(0.0, 0.0, 0.0, 0.0)


class Spectrograph(eqx.Module):
    """How a spectrograph sees each wavelength: what is folded into a compiled emulator.

    Attributes
    ----------
    wavelength
        Ascending [vacuum Angstrom].
    width, resolution
        Of a pixel there [Angstrom], and lambda / FWHM of the line spread.
    """

    wavelength: Float64[Array, " place"]
    width: Float64[Array, " place"]
    resolution: Float64[Array, " place"]

    def at(self, wavelength: Float64[np.ndarray, " other"]) -> "Spectrograph":
        """The same at other wavelengths; beyond the ends as at them."""
        log, places = np.log(wavelength), np.log(np.asarray(self.wavelength))
        return Spectrograph(
            jnp.asarray(wavelength),
            jnp.asarray(np.interp(log, places, np.asarray(self.width))),
            jnp.asarray(np.interp(log, places, np.asarray(self.resolution))),
        )

    def check(
        self,
        wavelength: Float64[np.ndarray, " pixel"],
        width: Float64[np.ndarray, " pixel"],
        resolution: float | Float64[np.ndarray, " pixel"],
    ) -> None:
        """Refuse pixels of another spectrograph.

        Raises
        ------
        InputError
            A resolving power that differs by more than 0.5%, a width that does by more than 2%.
        """
        mine = self.at(wavelength)
        for key, found, own, tolerance in (
            ("resolution", resolution, mine.resolution, _RESOLUTION_AGREES),
            ("width of a pixel", width, mine.width, _WIDTH_AGREES),
        ):
            found = np.broadcast_to(np.asarray(found, np.float64), wavelength.shape)
            off = np.abs(found / np.asarray(own) - 1)
            if (off > tolerance).any():
                i = int(np.argmax(off))
                raise InputError(
                    f"{key}: {found[i]:.6g} at {wavelength[i]:.2f} Angstrom, but the emulator was "
                    f"compiled for {float(own[i]):.6g}; compile one for this spectrograph, or give "
                    "the emulator that it was made from"
                )


def line_spread(parent: Any, seen: Spectrograph) -> Instrument:
    """From the parent's flux to pixels of the spectrograph."""
    return Instrument.build(
        np.asarray(seen.wavelength),
        np.asarray(seen.width),
        np.asarray(seen.resolution),
        step=fine_step(parent.step, np.asarray(seen.resolution)),
        velocities=STILL,
    )
