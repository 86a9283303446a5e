"""Spectra that no one should trust: never a crash, a NaN, or a sure wrong answer without a flag.

Each is tried on a closed form, and (slow) on stars of the synthesiser before the shipped emulator.
"""

import jax.numpy as jnp
import numpy as np
import pytest
from fake_star import TRUTH, C, fake_star
from scipy.ndimage import gaussian_filter1d
from tiny import tiny_emulator

from emulators.emulator import load_emulator
from emulators.errors import InputError
from emulators.physics.synthesizer import LTESynthesizer
from emulators.wavelength import vacuum_to_air
from stellarfit.fitting import fit
from stellarfit.flags import BAD, WARN, Flag
from stellarfit.instrument import Instrument, Velocities
from stellarfit.spectrum import MaskBit, Spectrum

DWARF = {"teff": 5600.0, "logg": 4.2, "vmic": 1.1, "fe_h": -0.2, "v_rad": 12.0, "v_sini": 2.0}
FREE = ("teff", "logg", "vmic", "fe_h", "mg_fe", "ti_fe", "cr_fe")


class ClosedForm:
    """The star of `fake_star`, fitted by the closed form that it was made of."""

    truth = TRUTH
    beyond = (450.0,)  # km/s: further off the closed form has no wavelengths

    def __init__(self):
        self.emulator = tiny_emulator(analytic=True, pixels=400)
        self.options = {"continuum_degree": 2}
        self.clean = fake_star(noise_free=True)


class Synthesised:
    """A dwarf by the synthesiser, fitted by the shipped emulator."""

    truth = DWARF
    beyond = (-900.0, 900.0)

    def __init__(self):
        self.emulator = load_emulator("fgk-mgb-s")
        names = self.emulator.label_space.names
        self.options = {"fixed": {name: 0.0 for name in names if name not in FREE}}
        resolution = 20_000.0
        step = 1 / (3 * resolution)
        wavelength = np.exp(np.arange(np.log(5160.0), np.log(5200.0), step))
        instrument = Instrument.build(
            wavelength, wavelength * step, resolution, step=2e-6,
            velocities=Velocities(0.0, 0.0, 4.0, 0.0),
        )  # fmt: skip
        synth = LTESynthesizer.build(instrument.reached, self.emulator.label_space)
        labels = jnp.asarray([[DWARF.get(name, 0.0) for name in names]])
        depth = 1 - synth.batch(labels, jnp.zeros(1)).normalized[0]
        seen = instrument(jnp.asarray(depth, jnp.float64), jnp.asarray(2.0), jnp.zeros(()))
        moved = wavelength * (1 + DWARF["v_rad"] / C)
        ivar = np.ones_like(moved)
        self.clean = Spectrum(moved, 1 - np.asarray(seen), ivar, resolution=resolution)


@pytest.fixture(
    scope="module", params=[ClosedForm, pytest.param(Synthesised, marks=[pytest.mark.slow])]
)
def world(request):
    return request.param()


def observe(world, snr=100.0, flux=None, wavelength=None, medium="vacuum"):
    """The clean star, or something else in its pixels, with noise."""
    clean = world.clean
    level = np.percentile(clean.flux, 95)
    flux = clean.flux if flux is None else level * flux
    scatter = np.random.default_rng(0).normal(0, level / snr, len(flux))
    return Spectrum(
        clean.wavelength if wavelength is None else wavelength,
        flux + scatter,
        np.full(len(flux), (snr / level) ** 2),
        resolution=clean.resolution,
        medium=medium,
    )


def fit_one(world, spectrum, **options):
    """The fit, of which every number is one."""
    found = fit(spectrum, world.emulator, **world.options, **options)
    for array in (found.values, found.error, found.error_stat, found.covariance):
        assert np.isfinite(array).all()
    assert np.isfinite(found.chi2)
    return found


def pulls(world, found, names=("teff", "logg", "fe_h")):
    where = [found.names.index(name) for name in names]
    truth = np.array([world.truth[name] for name in names])
    return (found.values[where] - truth) / found.error[where]


def test_hardly_any_signal(world):
    found = fit_one(world, observe(world, snr=1.0))
    assert found.flags & Flag.LOW_SNR
    space = world.emulator.label_space
    # It is said that hardly anything is known.
    assert found.error[0] > 0.1 * (space.upper[0] - space.lower[0])


def test_more_signal_than_the_emulator_is_worth(world):
    found = fit_one(world, observe(world, snr=1e5))
    assert found.flags & Flag.SYSTEMATIC
    assert np.all(np.abs(pulls(world, found)) < 4)
    better = fit_one(world, observe(world, snr=1e3))
    # Hundred times the signal: photons alone would leave a hundredth of the error.
    assert found.error[0] > 0.3 * better.error[0]


def test_one_pixel(world):
    mask = np.ones(len(world.clean))
    mask[len(mask) // 2] = 0
    found = fit_one(world, observe(world), mask=mask)
    assert found.flags & Flag.FEW_PIXELS & BAD


def test_five_pixels_in_a_hundred(world):
    mask = np.random.default_rng(1).uniform(size=len(world.clean)) < 0.95
    found = fit_one(world, observe(world), mask=mask)
    assert found.flags & Flag.FEW_PIXELS
    assert np.all(np.abs(pulls(world, found)) < 4)


def test_cosmic_rays(world):
    spectrum = observe(world)
    rng = np.random.default_rng(2)
    hit = rng.choice(len(spectrum), 12, replace=False)
    flux = spectrum.flux.copy()
    flux[hit] += rng.uniform(1, 20, 12) * np.percentile(flux, 95)
    hurt = Spectrum(spectrum.wavelength, flux, spectrum.ivar, resolution=spectrum.resolution)
    found = fit_one(world, hurt)
    assert found.flags & Flag.SPIKES & WARN
    assert set(hit) <= set(np.flatnonzero(found.spectrum.mask & MaskBit.SPIKE))
    assert np.all(np.abs(pulls(world, found)) < 4) and not found.flags & BAD
    # A clean star has none.
    assert not fit_one(world, spectrum).flags & (Flag.SPIKES | Flag.AIR_VACUUM)


def test_a_hot_star(world):
    """No lines but a broad one."""
    wavelength = world.clean.wavelength
    middle = wavelength.mean()
    broad = 1 - 0.1 * np.exp(-0.5 * ((wavelength - middle) / 8) ** 2)
    for flux in (np.ones_like(wavelength), broad):
        found = fit_one(world, observe(world, flux=flux))
        edges = Flag.EDGE_TEFF | Flag.EDGE_LOGG | Flag.EDGE_FE_H
        assert found.flags & edges & BAD


def test_a_galaxy(world):
    """Many stars with a scatter of 300 km/s, and a line in emission."""
    clean = world.clean
    pixel = np.median(np.diff(np.log(clean.wavelength))) * C
    blend = gaussian_filter1d(clean.flux, 300 / pixel) / np.percentile(clean.flux, 95)
    line = 0.8 * np.exp(-0.5 * ((clean.wavelength - clean.wavelength.mean()) / 2) ** 2)
    for flux in (blend, blend + line):
        assert fit_one(world, observe(world, flux=flux)).flags & BAD


def test_no_light_at_all(world):
    clean = world.clean
    dark = Spectrum(clean.wavelength, 0 * clean.flux, clean.ivar, resolution=clean.resolution)
    with pytest.raises(InputError, match="flux: the 90th percentile of the good pixels is 0"):
        fit_one(world, dark)


@pytest.mark.parametrize("mistake", ["air taken for vacuum", "vacuum taken for air"])
def test_the_wrong_medium(world, mistake):
    """Only the velocity is wrong, so nothing in the spectrum tells: it is said what to check."""
    true = world.clean.wavelength
    if mistake == "air taken for vacuum":
        spectrum = observe(world, wavelength=np.asarray(vacuum_to_air(true)))
    else:
        spectrum = observe(world, medium="air")
    found = fit_one(world, spectrum)
    assert np.all(np.abs(pulls(world, found)) < 4)
    assert found.flags & Flag.AIR_VACUUM and not found.flags & BAD


def test_a_velocity_beyond_the_prior(world):
    for v_rad in world.beyond:
        found = fit_one(world, observe(world, wavelength=world.clean.wavelength * (1 + v_rad / C)))
        assert found.flags & BAD and found.flags & Flag.BAD_CHI2
