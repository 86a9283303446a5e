"""Velocities, broadening, line spread and pixels against direct integration."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import erfc, j1

from emulators.errors import InputError
from emulators.fine_step import fine_step
from emulators.units import SPEED_OF_LIGHT
from stellarfit.instrument import (
    Instrument,
    Velocities,
    _bessel_ratio,
    inside,
    log_shift,
    macroturbulence_transfer,
    rotation_transfer,
    rounded_up,
)

STEP = 5e-6
ROOM = Velocities(0.0, 0.0, 60.0, 20.0)


def pixels(start=5150.0, stop=5160.0, width=0.04):
    wavelength = np.arange(start, stop, width)
    return wavelength, np.full_like(wavelength, width)


def gaussian_lines(log_wavelength, sigma=8e-6):
    """Depth of a few lines, a closed form in ln(wavelength)."""
    centers = np.log([5151.3, 5153.0, 5155.21, 5158.4])
    depth = np.array([0.3, 0.8, 0.5, 0.9])
    z = (np.asarray(log_wavelength)[..., None] - centers) / sigma
    return np.sum(depth * np.exp(-0.5 * z**2), axis=-1)


def disk_broadened(x, v_sini, limb):
    """Depth of a rotating disk at ln(wavelength) x, by summing over the visible surface."""
    num = 400
    mu_x = (np.arange(num) + 0.5) / num * 2 - 1
    gx, gy = np.meshgrid(mu_x, mu_x)
    radius2 = gx**2 + gy**2
    seen = radius2 < 1
    weight = np.where(seen, 1 - limb + limb * np.sqrt(np.where(seen, 1 - radius2, 0)), 0)
    column = weight.sum(axis=0)
    shift = mu_x * v_sini / SPEED_OF_LIGHT
    return np.sum(column * gaussian_lines(x[:, None] - shift), axis=1) / column.sum()


@pytest.mark.parametrize("v_sini", [2.0, 15.0, 50.0])
def test_rotation_equals_a_sum_over_the_stellar_disk(v_sini):
    instrument = Instrument.build(*pixels(), 47_000.0, step=STEP, velocities=ROOM)
    x = np.log(np.asarray(instrument.wavelength))
    found = instrument.broaden(
        jnp.asarray(gaussian_lines(x)), jnp.asarray(v_sini), jnp.asarray(0.0)
    )
    inner = slice(150, -150)
    truth = disk_broadened(x[inner], v_sini, 0.6)
    np.testing.assert_allclose(np.asarray(found)[inner], truth, atol=3e-4)


@pytest.mark.parametrize("v_mac", [3.0, 12.0])
def test_macroturbulence_equals_grays_kernel(v_mac):
    instrument = Instrument.build(*pixels(), 47_000.0, step=STEP, velocities=ROOM)
    x = np.log(np.asarray(instrument.wavelength))
    found = instrument.broaden(jnp.asarray(gaussian_lines(x)), jnp.asarray(0.0), jnp.asarray(v_mac))
    # Gray (2005): 2/(sqrt(pi) zeta) (exp(-u^2) - sqrt(pi) |u| erfc |u|)
    grid = np.linspace(-5, 5, 4001)
    kernel = np.exp(-(grid**2)) - np.sqrt(np.pi) * np.abs(grid) * erfc(np.abs(grid))
    assert np.trapezoid(2 / np.sqrt(np.pi) * kernel, grid) == pytest.approx(1, abs=1e-5)
    inner = slice(150, -150)
    shifted = gaussian_lines(x[inner, None] - grid * v_mac / SPEED_OF_LIGHT)
    truth = shifted @ kernel / kernel.sum()
    np.testing.assert_allclose(np.asarray(found)[inner], truth, atol=2e-4)


def test_bessel_function_against_scipy():
    q = np.concatenate([[0.0], np.geomspace(1e-6, 400, 4001), [8.0]])
    truth = 2 * j1(q) / np.where(q == 0, 1, q)
    truth[0] = 1.0
    np.testing.assert_allclose(np.asarray(_bessel_ratio(jnp.asarray(q))), truth, atol=3e-8)


def test_transfers_are_one_at_rest_and_smooth_there():
    frequency = jnp.linspace(0, 1e5, 50)
    for transfer in (rotation_transfer, macroturbulence_transfer):
        np.testing.assert_allclose(
            np.asarray(transfer(frequency, jnp.asarray(0.0))), 1.0, atol=1e-15
        )
        slope = jax.jit(jax.jacfwd(lambda v, transfer=transfer: transfer(frequency, v)))
        assert np.abs(slope(jnp.asarray(0.0))).max() == 0
        for v in (1e-3, 0.5, 7.0):
            ends = [transfer(frequency, jnp.asarray(v + dv)) for dv in (1e-4, -1e-4)]
            np.testing.assert_allclose(
                np.asarray(slope(jnp.asarray(v))), (ends[0] - ends[1]) / 2e-4, atol=2e-6
            )
        # Second derivative at rest is finite and negative: v = 0 is a maximum, not a kink.
        bend = jax.jit(jax.jacfwd(slope))(jnp.asarray(0.0))
        assert np.all(np.isfinite(bend)) and bend[-1] < 0


@pytest.mark.parametrize("resolution", [2_000.0, 20_000.0, 47_000.0, 110_000.0, 250_000.0])
def test_line_spread_and_pixel_against_closed_form(resolution):
    wavelength, width = pixels(width=5155 / resolution / 3)
    step = fine_step(1e-5, resolution)
    instrument = Instrument.build(wavelength, width, resolution, step=step, velocities=ROOM)
    x = np.log(np.asarray(instrument.wavelength))
    found = np.asarray(instrument.to_pixels(jnp.asarray(gaussian_lines(x))))
    # A Gaussian line seen through a Gaussian, averaged over the pixel by a fine sum.
    spread = 1 / (2.3548200450309493 * resolution)
    total = np.hypot(8e-6, spread)
    offsets = (np.arange(200) + 0.5) / 200 - 0.5
    samples = np.log(wavelength)[:, None] + offsets * (width / wavelength)[:, None]
    truth = (gaussian_lines(samples, total) * 8e-6 / total).mean(axis=1)
    np.testing.assert_allclose(found, truth, atol=2e-5)


@pytest.mark.parametrize("resolution", [11_500.0, 20_000.0, 47_000.0])
def test_the_narrowest_lines_are_sampled(resolution):
    """Iron at 4000 K and 0.5 km/s of microturbulence, saturated; wherever it falls on the grid."""
    wavelength, width = pixels(width=5155 / resolution / 3)
    centers = np.log(wavelength)[20:-20:7]

    def seen(step):
        instrument = Instrument.build(wavelength, width, resolution, step=step, velocities=ROOM)
        x = np.log(np.asarray(instrument.wavelength))[:, None] - centers
        depth = np.max(
            0.8 * -np.expm1(-3.0 * np.exp(-0.5 * (x / (0.85 / 299792.458)) ** 2)), axis=1
        )
        return np.asarray(instrument.to_pixels(jnp.asarray(depth)))

    step = fine_step(1e-5, resolution)
    off = seen(step) - seen(step / 8)
    assert np.sqrt(np.mean(off**2)) < 1e-4


def test_resolution_may_change_from_pixel_to_pixel():
    wavelength, width = pixels()
    resolution = np.linspace(20_000, 60_000, len(wavelength))
    mixed = Instrument.build(wavelength, width, resolution, step=STEP, velocities=ROOM)
    depth = gaussian_lines(np.log(np.asarray(mixed.wavelength)))
    found = np.asarray(mixed.to_pixels(jnp.asarray(depth)))
    for i in (30, 125, 220):
        one = Instrument.build(wavelength, width, resolution[i], step=STEP, velocities=ROOM)
        depth = gaussian_lines(np.log(np.asarray(one.wavelength)))
        assert found[i] == pytest.approx(float(one.to_pixels(jnp.asarray(depth))[i]), abs=1e-6)


def test_a_continuum_stays_one_and_a_plateau_stays_flat_to_the_last_pixel():
    instrument = Instrument.build(*pixels(), 30_000.0, step=STEP, velocities=ROOM)
    size = instrument.wavelength.shape[0]
    speeds = jnp.asarray(40.0), jnp.asarray(10.0)
    unit = 1 - np.asarray(instrument(jnp.zeros(size), *speeds))
    np.testing.assert_allclose(unit, 1.0, atol=1e-12, rtol=0)
    plateau = np.asarray(instrument(jnp.full(size, 0.4), *speeds))
    np.testing.assert_allclose(plateau, 0.4, atol=2e-5)
    np.testing.assert_allclose(plateau[[0, -1]], 0.4, atol=2e-5)


def test_copies_that_round_up_the_grid_count_for_nothing():
    instrument = Instrument.build(*pixels(), 30_000.0, step=STEP, velocities=ROOM)
    reached, whole = instrument.reached, np.asarray(instrument.wavelength)
    np.testing.assert_allclose(np.diff(np.log(reached)), STEP, rtol=1e-6)
    assert len(whole) == rounded_up(len(reached)) > len(reached)
    np.testing.assert_array_equal(whole[len(reached) :], reached[-1])
    speeds = jnp.asarray(20.0), jnp.asarray(5.0)
    depth = gaussian_lines(np.log(reached))
    wild = np.concatenate([depth, np.full(len(whole) - len(reached), 7.0)])
    seen, same = (np.asarray(instrument(jnp.asarray(one), *speeds)) for one in (depth, wild))
    np.testing.assert_allclose(seen, same, atol=1e-14)


def test_numbers_are_rounded_up_to_few():
    numbers = np.arange(1, 20_000)
    rounded = np.array([rounded_up(int(number)) for number in numbers])
    assert np.all(rounded >= numbers) and np.all(np.diff(rounded) >= 0)
    assert np.all(rounded - numbers < np.maximum(numbers / 16, 16))
    assert len(np.unique(rounded[numbers > 1000])) < 80


def test_flux_is_conserved_by_every_step():
    wavelength, width = pixels()
    instrument = Instrument.build(wavelength, width, 47_000.0, step=STEP, velocities=ROOM)
    x = np.log(np.asarray(instrument.wavelength))
    depth = np.exp(-0.5 * ((x - np.log(5155.0)) / 8e-6) ** 2)
    for v_sini, v_mac in ((0.0, 0.0), (30.0, 0.0), (0.0, 10.0)):
        broad = instrument.broaden(jnp.asarray(depth), jnp.asarray(v_sini), jnp.asarray(v_mac))
        assert float(broad.sum()) == pytest.approx(depth.sum(), rel=1e-6)
        seen = instrument.to_pixels(broad) * width / wavelength
        assert float(seen.sum()) == pytest.approx(depth.sum() * STEP, rel=2e-4)


def test_the_whole_instrument_is_differentiable_in_both_velocities():
    instrument = Instrument.build(*pixels(), 47_000.0, step=STEP, velocities=ROOM)
    depth = jnp.asarray(gaussian_lines(np.log(np.asarray(instrument.wavelength))))
    speeds = jnp.asarray([8.0, 3.0])

    def seen(speeds):
        return instrument(depth, speeds[0], speeds[1])

    found = np.asarray(jax.jit(jax.jacfwd(seen))(speeds))
    for i in range(2):
        shift = jnp.zeros(2).at[i].set(1e-3)
        truth = (seen(speeds + shift) - seen(speeds - shift)) / 2e-3
        np.testing.assert_allclose(found[:, i], np.asarray(truth), atol=1e-6)


def test_log_shift_is_the_classical_doppler_factor():
    for v_rad in (-300.0, 0.0, 57.3):
        assert float(jnp.exp(log_shift(v_rad))) == pytest.approx(1 / (1 + v_rad / SPEED_OF_LIGHT))


def test_pixels_that_need_wavelengths_beyond_the_emulator_are_found():
    wavelength, width = pixels()
    limits = (5148.0, 5157.0)
    usable = inside(
        wavelength, width, 47_000.0, step=STEP, velocities=Velocities(-50, 50, 60, 0), limits=limits
    )
    first, last = wavelength[usable][[0, -1]]
    # 50 + 60 km/s of 5150 Angstrom are 1.9 Angstrom; line spread and taper add less than one.
    assert 5149.9 <= first < 5150.9 and 5154.1 < last < 5155.1
    instrument = Instrument.build(
        wavelength[usable], width[usable], 47_000.0, step=STEP, velocities=Velocities(0, 0, 60, 0)
    )
    rest = np.asarray(instrument.wavelength)[[0, -1], None] / (1 + np.array([-50, 50]) / 299792.458)
    assert limits[0] <= rest.min() and rest.max() <= limits[1]
    with pytest.raises(InputError, match="the emulator can model"):
        inside(wavelength, width, 47_000.0, step=STEP, velocities=ROOM, limits=(6000.0, 6100.0))


def test_fine_step_follows_the_sharper_of_emulator_and_spectrograph():
    assert fine_step(1e-5, 1_000.0) == pytest.approx(1.2 * 2.8e-6, rel=1e-3)
    assert fine_step(1e-5, np.array([2e4, 2e5])) == fine_step(1e-5, 2e5) < fine_step(1e-5, 2e4)
    assert fine_step(1e-5, 1e7) == 1e-5 / 8
