"""What star and spectrograph do to a spectrum: rotation, macroturbulence, resolution, pixels.

A spectrum is handled as the depth below its continuum on a grid uniform in ln(wavelength), in the
observed frame, so a continuum without lines is the zero vector and passes through every step
unchanged. Three steps, all linear in the depth:

1. The radial velocity is no step at all: the emulator is evaluated at wavelength / (1 + v_rad/c).
2. Rotation and macroturbulence depend on free parameters. They multiply the Fourier transform of
   the depth by the *analytic* transforms of Gray's profiles, which are smooth functions of
   v_sini^2 and v_mac^2 down to zero; a kernel sampled on pixels would not be.
3. The line spread (Gaussian, any resolution per pixel) and the integration over each pixel are
   fixed: one sparse row of weights a pixel, made once.

The fine grid reaches beyond the pixels by the reach of all kernels plus a taper, so that nothing
is padded or wrapped into a pixel that is fitted.
"""

from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float64, Int
from scipy.fft import next_fast_len
from scipy.interpolate import CubicSpline
from scipy.special import ndtr

from emulators.errors import InputError
from emulators.units import FWHM, SPEED_OF_LIGHT

LIMB_DARKENING = 0.6  # linear coefficient, a usual value for cool stars in the optical

_SIGMAS = 5.0  # reach of the line spread; 6e-7 of it lies beyond
_MACRO_REACH = 3.5  # in units of v_mac; 1e-6 of the profile lies beyond
_TAPER = 16  # fine pixels over which the depth fades to zero at either end
# Fine pixels to either side that a cubic spline asks; the weight of the next is 2e-7.
SPLINE_REACH = 12


class Velocities(NamedTuple):
    """Largest values [km/s] that an instrument must leave room for."""

    v_rad_lower: float
    v_rad_upper: float
    v_sini: float
    v_mac: float


def log_shift(v_rad: Float[Array, ""] | float) -> Float[Array, ""]:
    """Shift in ln(wavelength) from the observed to the star's frame, -ln(1 + v_rad/c)."""
    return -jnp.log1p(jnp.asarray(v_rad, jnp.float64) / SPEED_OF_LIGHT)


def rotation_transfer(
    frequency: Float[Array, " frequency"],
    v_sini: Float[Array, ""],
    limb_darkening: float = LIMB_DARKENING,
) -> Float[Array, " frequency"]:
    """Fourier transform of Gray's rotation profile with linear limb darkening.

    Parameters
    ----------
    frequency
        In cycles per unit of ln(wavelength).
    v_sini
        Projected equatorial velocity [km/s].

    Notes
    -----
    The profile (Gray 2005, eq. 18.14) is a sum of a half ellipse and a parabola in x = dv/v_sini;
    with q = 2 pi frequency v_sini/c their transforms are 2 J1(q)/q and 3 (sin q - q cos q)/q^3.
    """
    q = 2 * jnp.pi * frequency * (v_sini / SPEED_OF_LIGHT)
    ellipse = (1 - limb_darkening) * _bessel_ratio(q)
    parabola = (2 * limb_darkening / 3) * _parabola_ratio(q)
    return (ellipse + parabola) / (1 - limb_darkening / 3)


def macroturbulence_transfer(
    frequency: Float[Array, " frequency"], v_mac: Float[Array, ""]
) -> Float[Array, " frequency"]:
    """Fourier transform of Gray's radial-tangential profile, equal areas and velocities.

    Averaging the Gaussian transforms exp(-a cos^2) and exp(-a sin^2), a = (pi f v_mac/c)^2, over
    the disk gives (1 - exp(-a))/a for both families (Gray 2005, ch. 17, without limb darkening).
    """
    a = (jnp.pi * frequency * v_mac / SPEED_OF_LIGHT) ** 2
    small = a < 1e-4
    safe = jnp.where(small, 1.0, a)
    return jnp.where(small, 1 - a / 2 + a**2 / 6, -jnp.expm1(-safe) / safe)


def _bessel_ratio(q):
    """2 J1(q)/q to 2e-8, by the rational approximations of Hart et al. (1968), q >= 0."""
    y = jnp.minimum(q, 8.0) ** 2
    top = jnp.polyval(
        jnp.array(
            [-30.16036606, 15704.48260, -2972611.439, 242396853.1, -7895059235.0, 72362614232.0]
        ),
        y,
    )
    bottom = jnp.polyval(
        jnp.array([1.0, 376.9991397, 99447.43394, 18583304.74, 2300535178.0, 144725228442.0]), y
    )
    far = jnp.maximum(q, 8.0)
    z = 8.0 / far
    amplitude = jnp.polyval(
        jnp.array([-0.240337019e-6, 0.2457520174e-5, -0.3516396496e-4, 0.183105e-2, 1.0]), z**2
    )
    phase = jnp.polyval(
        jnp.array(
            [0.105787412e-6, -0.88228987e-6, 0.8449199096e-5, -0.2002690873e-3, 0.04687499995]
        ),
        z**2,
    )
    angle = far - 0.75 * jnp.pi
    wave = jnp.sqrt(2 / (jnp.pi * far)) * (amplitude * jnp.cos(angle) - z * phase * jnp.sin(angle))
    return 2 * jnp.where(q < 8.0, top / bottom, wave / far)


def _parabola_ratio(q):
    """3 (sin q - q cos q)/q^3, by its series near zero."""
    small = q < 0.3
    y = q**2
    series = 1 - y / 10 * (1 - y / 28 * (1 - y / 54 * (1 - y / 88)))
    safe = jnp.where(small, 1.0, q)
    return jnp.where(small, series, 3 * (jnp.sin(safe) - safe * jnp.cos(safe)) / safe**3)


class Instrument(eqx.Module):
    """Maps a depth on a fine grid to the depth in each pixel, for given v_sini and v_mac.

    Made by `Instrument.build`; every array is fixed, so the instrument is linear in the depth and
    differentiable in the velocities.
    """

    wavelength: Float64[Array, " fine"]  # vacuum Angstrom, observed frame: `reached`, and copies
    frequency: Float64[Array, " frequency"]  # cycles per unit of ln(wavelength)
    taper: Float64[Array, " fine"]
    first: Int[Array, " pixel"]  # fine pixel of the first weight of each row
    weights: Float64[Array, "pixel tap"]
    fft_length: int = eqx.field(static=True)

    @classmethod
    def build(
        cls,
        wavelength: Float64[np.ndarray, " pixel"],
        width: Float64[np.ndarray, " pixel"],
        resolution: float | Float64[np.ndarray, " pixel"],
        *,
        step: float,
        velocities: Velocities,
    ) -> "Instrument":
        """Lay the fine grid around the pixels and compute their weights.

        Parameters
        ----------
        wavelength, width
            Centres and widths of the pixels [vacuum Angstrom], any order.
        resolution
            Resolving power lambda / FWHM, one number or one a pixel.
        step
            Of the fine grid in ln(wavelength).
        velocities
            The largest v_sini and v_mac; the grid leaves room for their kernels.
        """
        center = np.log(wavelength)
        half = 0.5 * width / wavelength
        sigma = np.broadcast_to(1 / (FWHM * np.asarray(resolution, np.float64)), center.shape)
        reach = half + _SIGMAS * sigma + 2 * step
        return cls._lay(
            center, reach, step, velocities, lambda center: _rows(center, half, sigma, step)
        )

    @classmethod
    def interpolating(
        cls, wavelength: Float64[np.ndarray, " pixel"], *, step: float, velocities: Velocities
    ) -> "Instrument":
        """Only broadens: for depths that are those of pixels already, at every wavelength.

        Parameters
        ----------
        wavelength, step, velocities
            As of `build`; between the fine pixels a cubic spline is taken.
        """
        center = np.log(wavelength)
        reach = np.full_like(center, SPLINE_REACH * step)
        return cls._lay(center, reach, step, velocities, lambda center: _spline_rows(center, step))

    @classmethod
    def _lay(cls, center, reach, step, velocities, rows):
        """The fine grid around pixels that reach so far, with the weights of `rows` on it.

        Its last wavelength is repeated until their number is round: a model is evaluated there, but
        the taper is 0.
        """
        edge = margin(step, velocities)
        start = np.min(center - reach) - edge
        count = int(np.ceil((np.max(center + reach) + edge - start) / step)) + 1
        first, weights = rows(center - start)
        ramp = np.clip((np.arange(count) + 1) / (_TAPER + 1), 0, 1)
        taper = np.sin(0.5 * np.pi * np.minimum(ramp, ramp[::-1])) ** 2
        whole = rounded_up(count)
        length: Any = next_fast_len(whole, real=True)
        places = np.minimum(np.arange(whole), count - 1)
        return cls(
            wavelength=jnp.asarray(np.exp(start + step * places)),
            frequency=jnp.asarray(np.fft.rfftfreq(length, step)),
            taper=jnp.asarray(np.pad(taper, (0, whole - count))),
            first=jnp.asarray(first),
            weights=jnp.asarray(weights),
            fft_length=int(length),
        )

    @property
    def reached(self) -> Float64[np.ndarray, " fine"]:
        """Wavelengths that pixels and broadening ask for: uniform in ln, none twice."""
        return np.asarray(self.wavelength)[np.asarray(self.taper) > 0]

    def broaden(
        self,
        depth: Float[Array, "*batch fine"],
        v_sini: Float[Array, ""],
        v_mac: Float[Array, ""],
    ) -> Float64[Array, "*batch fine"]:
        """Apply rotation and macroturbulence [km/s] to depths at `wavelength` or `reached`."""
        transfer = rotation_transfer(self.frequency, v_sini)
        transfer = transfer * macroturbulence_transfer(self.frequency, v_mac)
        depth = depth.astype(jnp.float64) * self.taper[: depth.shape[-1]]
        spectrum = jnp.fft.rfft(depth, self.fft_length)
        broad = jnp.fft.irfft(spectrum * transfer, self.fft_length)
        return broad[..., : depth.shape[-1]]

    def to_pixels(self, depth: Float[Array, "*batch fine"]) -> Float64[Array, "*batch pixel"]:
        """Apply the line spread and integrate over each pixel."""

        def add_tap(total, tap):
            offset, weight = tap
            return total + depth[..., self.first + offset] * weight, None

        # One tap after another keeps the memory of a batch at [batch, pixel].
        taps = (jnp.arange(self.weights.shape[1]), self.weights.T)
        zero = jnp.zeros((*depth.shape[:-1], self.first.shape[0]))
        return jax.lax.scan(add_tap, zero, taps)[0]

    def __call__(
        self,
        depth: Float[Array, "*batch fine"],
        v_sini: Float[Array, ""],
        v_mac: Float[Array, ""],
    ) -> Float64[Array, "*batch pixel"]:
        """Depth in each pixel from the depth on the fine grid."""
        return self.to_pixels(self.broaden(depth, v_sini, v_mac))


class Pixels(eqx.Module):
    """Of stars that are not broadened, with depths that are those of pixels already: nothing."""

    wavelength: Float64[Array, " pixel"]

    def __call__(
        self,
        depth: Float[Array, "*batch pixel"],
        v_sini: Float[Array, ""],
        v_mac: Float[Array, ""],
    ) -> Float64[Array, "*batch pixel"]:
        """The depth, as it is."""
        del v_sini, v_mac
        return depth.astype(jnp.float64)


def rounded_up(number: int) -> int:
    """A number of pixels, or the next of few: 16 apart, or up to a sixteenth.

    What is compiled for so many then serves most spectra with a few more or less. Compiling takes
    as long as several fits on a processor, and as a hundred on a GPU.
    """
    step = max(1 << max(number.bit_length() - 5, 0), 16)
    return -(-number // step) * step


def margin(step: float, velocities: Velocities) -> float:
    """Length in ln(wavelength) that broadening and taper spoil at either end of a fine grid."""
    broad = velocities.v_sini + _MACRO_REACH * velocities.v_mac
    return broad / SPEED_OF_LIGHT + (_TAPER + 1) * step


def inside(
    wavelength: Float64[np.ndarray, " pixel"],
    width: Float64[np.ndarray, " pixel"],
    resolution: float | Float64[np.ndarray, " pixel"],
    *,
    step: float,
    velocities: Velocities,
    limits: tuple[float, float],
) -> np.ndarray:
    """Which pixels can be modelled from wavelengths within `limits`, for every allowed velocity.

    Raises
    ------
    InputError
        If there is no such pixel.
    """
    sigma = 1 / (FWHM * np.asarray(resolution, np.float64))
    reach = 0.5 * width / wavelength + _SIGMAS * sigma + 3 * step
    reach = reach + margin(step, velocities)
    log = np.log(wavelength)
    lower = np.log(limits[0]) + np.log1p(velocities.v_rad_upper / SPEED_OF_LIGHT)
    upper = np.log(limits[1]) + np.log1p(velocities.v_rad_lower / SPEED_OF_LIGHT)
    usable = (log - reach >= lower) & (log + reach <= upper)
    if not usable.any():
        raise InputError(
            f"wavelength: the spectrum covers {wavelength.min():.1f} .. {wavelength.max():.1f} "
            f"Angstrom (vacuum), but the emulator can model {np.exp(lower + reach.min()):.1f} .. "
            f"{np.exp(upper - reach.min()):.1f} at this velocity and resolution; choose another "
            "emulator or check the wavelength unit"
        )
    return usable


def _rows(center, half, sigma, step):
    """Weights of fine pixels in each pixel: the line spread averaged over the pixel.

    Its closed form is sampled on the fine pixels. For smooth functions such a sum converges
    exponentially: see `emulators.fine_step`.
    """
    reach = half + _SIGMAS * sigma
    first = np.floor((center - reach) / step).astype(np.int64)
    taps = np.arange(int(np.ceil(2 * np.max(reach) / step)) + 2)
    offset = (first[:, None] + taps) * step - center[:, None]
    weights = ndtr((offset + half[:, None]) / sigma[:, None])
    weights -= ndtr((offset - half[:, None]) / sigma[:, None])
    weights[np.abs(offset) > reach[:, None]] = 0.0
    return first, weights / weights.sum(axis=1, keepdims=True)


def _spline_rows(center, step):
    """Weights of the cubic spline through the fine pixels, the nearest of them."""
    first = np.floor(center / step).astype(np.int64) - SPLINE_REACH + 1
    taps = np.arange(2 * SPLINE_REACH)
    # The spline through one sample of 1 among zeros, wherever that is.
    single = CubicSpline(np.arange(-2 * SPLINE_REACH, 2 * SPLINE_REACH + 1), _impulse())
    weights = single(center[:, None] / step - (first[:, None] + taps))
    return first, weights / weights.sum(axis=1, keepdims=True)


def _impulse():
    samples = np.zeros(4 * SPLINE_REACH + 1)
    samples[2 * SPLINE_REACH] = 1.0
    return samples
