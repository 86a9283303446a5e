"""A star whose spectrum is not made by the code that fits it, and an emulator for such stars."""

import numpy as np
from tiny import LABELS, analytic_depth, tiny_emulator

from stellarfit.arms import Arms
from stellarfit.compile import Recipe, compile_emulator
from stellarfit.compiled import CompiledEmulator
from stellarfit.spectrum import Spectrum

TRUTH = {"teff": 5200.0, "logg": 3.0, "fe_h": -1.0, "mg_fe": 0.1, "v_rad": 23.4, "v_sini": 12.0}
C = 299_792.458


def fake_star(
    truth: dict | None = None,
    *,
    snr: float = 200.0,
    seed: int = 1,
    resolution: float = 47_000.0,
    start: float = 5151.8,
    stop: float = 5162.0,
    width: float = 0.03,
    level: float = 800.0,
    noise_free: bool = False,
) -> Spectrum:
    """Observe the closed form of `tiny` by brute force: sums over disk, line spread and pixel."""
    truth = TRUTH | (truth or {})
    fine = np.exp(np.arange(np.log(start - 4), np.log(stop + 4), 2.5e-6))
    unit = np.asarray(LABELS.to_unit(np.array([truth[name] for name in LABELS.names])))
    depth = np.asarray(analytic_depth(unit, fine / (1 + truth["v_rad"] / C)))
    # Rotation: strips of the stellar disk, limb darkening 0.6.
    x = np.linspace(-1, 1, 201)
    strips = 0.4 * np.sqrt(1 - x**2) * 2 + 0.6 * np.pi / 2 * (1 - x**2)
    grid = np.log(fine)
    shifted = [np.interp(grid - u * truth["v_sini"] / C, grid, depth) for u in x]
    depth = np.tensordot(strips / strips.sum(), np.array(shifted), 1)
    reach = np.arange(-40, 41) * 2.5e-6
    spread = np.exp(-0.5 * (reach * 2.3548 * resolution) ** 2)
    depth = np.convolve(depth, spread / spread.sum(), mode="same")
    wavelength = np.arange(start, stop, width)
    parts = wavelength[:, None] + width * (np.arange(10) - 4.5) / 10
    seen = np.interp(parts, fine, depth).mean(axis=1)
    middle = (wavelength - start) / (stop - start) * 2 - 1
    continuum = level * (1 + 0.08 * middle - 0.03 * middle**2)
    sigma = level / snr
    scatter = np.random.default_rng(seed).normal(0, sigma, len(wavelength))
    flux = continuum * (1 - seen) + (0 if noise_free else scatter)
    ivar = np.full(len(wavelength), sigma**-2)
    return Spectrum(wavelength, flux, ivar, resolution=resolution, name="fake")


def compile_tiny() -> CompiledEmulator:
    """The closed form of `tiny` with the spectrograph of `fake_star` in it."""
    recipe = Recipe((48, 48), 24, 768, 256, 128, 1500, 0.01, 32)
    parent = tiny_emulator(analytic=True)
    return compile_emulator(fake_star(), parent, recipe=recipe, cache=None, progress=False)


def two_arms() -> Arms:
    """The star by two arms that overlap, of which the red one is coarser and in another unit."""
    red = fake_star(start=5156.0, width=0.05, resolution=28_000.0, level=3e-3, seed=2)
    return Arms.gather({"blue": fake_star(stop=5157.0), "red": red})
