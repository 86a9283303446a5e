"""The container: order, units, masks, errors; nothing lost and nothing silent."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from emulators.errors import InputError
from emulators.wavelength import air_to_vacuum, vacuum_to_air
from stellarfit.spectrum import MaskBit, Spectrum

WAVE = np.linspace(5100.0, 5110.0, 101)


def make(**changes):
    arguments = {"wavelength": WAVE, "flux": np.ones(101), "ivar": np.full(101, 1e4)} | changes
    return Spectrum(arguments.pop("wavelength"), arguments.pop("flux"), **arguments)


def test_bad_pixels_stay_with_a_bit_that_says_why():
    flux, ivar, mask = np.ones(101), np.full(101, 1e4), np.zeros(101, int)
    flux[[3, 4]] = np.nan, np.inf
    ivar[[4, 5, 6, 7]] = 0, -1, np.nan, np.inf
    mask[8] = 64
    spectrum = make(flux=flux, ivar=ivar, mask=mask)
    assert len(spectrum) == 101
    expected = {3: MaskBit.BAD_FLUX, 4: MaskBit.BAD_FLUX | MaskBit.BAD_ERROR, 8: MaskBit.USER}
    expected |= dict.fromkeys((5, 6, 7), MaskBit.BAD_ERROR)
    for pixel in range(101):
        assert spectrum.mask[pixel] == expected.get(pixel, 0)
    assert spectrum.good.sum() == 101 - 6
    assert np.isfinite(spectrum.ivar).all() and (spectrum.ivar >= 0).all()
    assert spectrum.mask_counts() == {"user": 1, "bad_flux": 2, "bad_error": 4}


def test_nonzero_mask_is_bad_and_so_is_true():
    assert make(mask=np.arange(101) == 5).good.sum() == 100
    assert make(mask=(np.arange(101) == 5).astype(int) * 7).good.sum() == 100


def test_descending_wavelengths_are_turned_round():
    flux = np.arange(101.0)
    spectrum = make(wavelength=WAVE[::-1], flux=flux)
    np.testing.assert_array_equal(spectrum.wavelength, WAVE)
    np.testing.assert_array_equal(spectrum.flux, flux[::-1])
    np.testing.assert_allclose(spectrum.width, 0.1)


def test_overlapping_orders_keep_every_pixel_and_its_width():
    first, second = np.arange(5100.0, 5110.0, 0.02), np.arange(5108.0, 5120.0, 0.03)
    wavelength = np.concatenate([second, first])
    label = np.concatenate([np.full(len(second), 2.0), np.full(len(first), 1.0)])
    spectrum = Spectrum(wavelength, label, np.ones(len(label)))
    assert len(spectrum) == len(wavelength) and spectrum.good.all()
    assert (np.diff(spectrum.wavelength) >= 0).all()
    np.testing.assert_allclose(spectrum.width[spectrum.flux == 1], 0.02, rtol=1e-6)
    np.testing.assert_allclose(spectrum.width[spectrum.flux == 2], 0.03, rtol=1e-6)


def test_a_repeated_wavelength_counts_once():
    wavelength = np.insert(WAVE, 50, WAVE[50])
    spectrum = make(wavelength=wavelength, flux=np.ones(102), ivar=np.ones(102))
    assert spectrum.mask_counts() == {"duplicate": 1} and spectrum.mask[51] == MaskBit.DUPLICATE
    assert (spectrum.width > 0).all()


def test_a_spectrum_written_twice_counts_once():
    flux = np.random.default_rng(0).normal(size=101)
    twice = make(wavelength=np.tile(WAVE, 2), flux=np.tile(flux, 2), ivar=np.ones(202))
    assert twice.mask_counts() == {"duplicate": 101}
    np.testing.assert_array_equal(twice.flux[twice.good], flux)
    # Two orders that saw the same wavelengths measured other fluxes.
    orders = make(wavelength=np.tile(WAVE, 2), flux=np.append(flux, flux + 1), ivar=np.ones(202))
    assert orders.good.all()


def test_numbers_that_no_unit_has_are_bad():
    flux, ivar = np.ones(101), np.ones(101)
    flux[3], flux[4], ivar[5] = 1e200, -1e101, 1e120
    assert make(flux=flux, ivar=ivar).mask_counts() == {"bad_flux": 2, "bad_error": 1}


def test_shuffled_pixels_are_sorted():
    order = np.random.default_rng(0).permutation(101)
    spectrum = make(wavelength=WAVE[order], flux=np.arange(101.0)[order])
    np.testing.assert_array_equal(spectrum.flux, np.arange(101.0))
    np.testing.assert_allclose(spectrum.width, 0.1)


def test_resolution_is_sorted_with_its_pixels():
    spectrum = make(wavelength=WAVE[::-1], resolution=np.linspace(4e4, 5e4, 101))
    np.testing.assert_array_equal(spectrum.resolution, np.linspace(5e4, 4e4, 101))


def test_air_is_converted_at_the_door():
    spectrum = make(medium="air")
    assert spectrum.medium == "air"
    # 5100 A: n - 1 = 2.79e-4.
    np.testing.assert_allclose(spectrum.wavelength[0], 5101.4215, atol=1e-3)


@given(st.floats(2000.0, 30_000.0))
def test_air_and_vacuum_are_inverse(wavelength):
    assert abs(vacuum_to_air(air_to_vacuum(wavelength)) / wavelength - 1) < 1e-12
    assert air_to_vacuum(wavelength) > wavelength


def test_snr_sets_the_error_from_the_local_continuum():
    wavelength = np.geomspace(5000, 6000, 4000)
    level = np.where(wavelength < 5500, 200.0, 400.0)
    flux = level.copy()
    flux[::7] *= 0.3  # lines have the error of the continuum beside them
    spectrum = Spectrum(wavelength, flux, snr=50)
    sigma = 1 / np.sqrt(spectrum.ivar)
    for where, expected in ((wavelength < 5400, 4.0), (wavelength > 5600, 8.0)):
        np.testing.assert_allclose(sigma[where], expected, rtol=1e-9)
    assert spectrum.snr == pytest.approx(50)


def test_window_masks_and_says_so():
    spectrum = make().window(5102.0, 5104.0)
    assert len(spectrum) == 101 and spectrum.good.sum() == 21
    assert spectrum.mask_counts() == {"outside": 80}
    assert make().good.all()  # the original is as it was


def test_quantities_are_converted():
    from astropy import units

    spectrum = make(wavelength=(WAVE / 10) * units.nm)
    np.testing.assert_allclose(spectrum.wavelength, WAVE)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"flux": np.full(101, np.nan)}, "none of 101 pixels is usable"),
        ({"mask": np.ones(101)}, "none of 101 pixels is usable (user 101)"),
        ({"ivar": np.zeros(101)}, "bad_error 101"),
        ({"ivar": np.ones(100)}, "ivar: shape (100,) does not match 101 wavelengths"),
        ({"flux": np.ones(100)}, "flux: shape (100,)"),
        ({"mask": np.ones(7)}, "mask: shape (7,)"),
        ({"resolution": np.ones(7)}, "resolution: shape (7,)"),
        ({"resolution": -3.0}, "resolution: give a positive"),
        ({"medium": "water"}, "medium: 'water'"),
        ({"ivar": None}, "no errors"),
        ({"snr": 10.0}, "errors of its own"),
        ({"ivar": None, "snr": -1.0}, "snr: -1"),
        ({"wavelength": WAVE / 10}, "is it nm?"),
        ({"wavelength": WAVE / 1e4}, "is it micron?"),
        ({"wavelength": np.where(WAVE > 5109, np.nan, WAVE)}, "not finite"),
        ({"wavelength": np.full(101, 5100.0)}, "every pixel is at"),
        ({"flux": np.ones((101, 2))}, "give one dimension"),
        ({"flux": np.array(["a"] * 101)}, "not numbers"),
    ],
)
def test_bad_input_is_one_clear_line(changes, message):
    with pytest.raises(InputError) as caught:
        make(**changes)
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_masking_everything_is_refused_later_too():
    with pytest.raises(InputError, match="none of 101 pixels"):
        make().masked(np.ones(101, bool))
    with pytest.raises(InputError, match=r"no pixel lies in 6000 \.\. 6100"):
        make().window(6000, 6100)
