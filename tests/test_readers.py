"""Readers against files that the test writes, and against the observed stars where they are."""

import gzip
import warnings
from typing import Any

import numpy as np
import pytest
from astropy import units
from astropy.io import fits
from astropy.table import Table

from emulators.errors import InputError
from emulators.wavelength import air_to_vacuum
from stellarfit.readers import read_spectrum
from stellarfit.spectrum import MaskBit

NUM = 500
WAVE = np.geomspace(5100.0, 5200.0, NUM)
FLUX = 1 + 0.1 * np.sin(WAVE)
SIGMA = np.full(NUM, 0.02)


def write_table(path, columns, **cards):
    unit = fits.BinTableHDU(Table(columns))
    unit.header.update(cards)
    fits.HDUList([fits.PrimaryHDU(), unit]).writeto(path)
    return path


def write_image(path, flux, *others, **cards):
    primary = fits.PrimaryHDU(flux)
    primary.header.update(cards)
    fits.HDUList([primary, *others]).writeto(path)
    return path


def check(spectrum: Any, wavelength: Any = WAVE, sigma: Any = SIGMA):
    np.testing.assert_allclose(spectrum.wavelength, wavelength, rtol=1e-9)
    np.testing.assert_allclose(spectrum.flux, FLUX, rtol=1e-6)
    if sigma is not None:
        np.testing.assert_allclose(spectrum.ivar, sigma**-2, rtol=1e-5)


@pytest.mark.parametrize(
    "columns",
    [
        {"wave": WAVE, "flux": FLUX, "ivar": SIGMA**-2},
        {"WAVELENGTH": WAVE, "Flux": FLUX, "ERR": SIGMA},
        {"lambda": WAVE, "flux": FLUX, "sigma": SIGMA},
        {"loglam": np.log10(WAVE), "flux": FLUX, "ivar": SIGMA**-2},
        {"wl": WAVE, "spec": FLUX, "variance": SIGMA**2},
    ],
)
def test_fits_table_by_its_usual_names(tmp_path, columns):
    check(read_spectrum(write_table(tmp_path / "a.fits", columns), medium="vacuum"))


@pytest.mark.parametrize("unit", ["nm", "um", "Angstrom", "m"])
def test_fits_table_unit_is_honoured(tmp_path, unit):
    scale = units.AA.to(unit)
    table = {"wave": WAVE * scale * units.Unit(unit), "flux": FLUX, "err": SIGMA}
    check(read_spectrum(write_table(tmp_path / "a.fits", table), medium="vacuum"))


def test_vectors_in_one_row(tmp_path):
    columns = {"WAVE": WAVE[None], "FLUX": FLUX[None], "ERR": SIGMA[None]}
    check(read_spectrum(write_table(tmp_path / "a.fits", columns), medium="vacuum"))


def test_mask_column_nonzero_is_bad(tmp_path):
    columns = {"wave": WAVE, "flux": FLUX, "ivar": SIGMA**-2, "mask": (np.arange(NUM) < 9) * 4}
    spectrum = read_spectrum(write_table(tmp_path / "a.fits", columns), medium="vacuum")
    assert (spectrum.mask[:9] == MaskBit.USER).all() and (spectrum.mask[9:] == 0).all()


def test_named_columns(tmp_path):
    columns = {"x": WAVE, "y": FLUX, "dy": SIGMA}
    path = write_table(tmp_path / "a.fits", columns)
    check(read_spectrum(path, medium="vacuum", wavelength="x", flux="y", error="dy"))


@pytest.mark.parametrize(
    ("cards", "wavelength"),
    [
        ({"CRVAL1": 5100.0, "CDELT1": 0.02}, 5100 + 0.02 * np.arange(NUM)),
        ({"CRVAL1": 5100.0, "CD1_1": 0.02, "CRPIX1": 11.0}, 5100 + 0.02 * (np.arange(NUM) - 10)),
        ({"CRVAL1": 510.0, "CDELT1": 0.002, "CUNIT1": "nm"}, 5100 + 0.02 * np.arange(NUM)),
        ({"CRVAL1": 0.51, "CDELT1": 2e-6, "CUNIT1": "um"}, 5100 + 0.02 * np.arange(NUM)),
        ({"CRVAL1": 3.7, "CDELT1": 1e-5}, 10 ** (3.7 + 1e-5 * np.arange(NUM))),
        ({"CRVAL1": 3.7, "CD1_1": 1e-5, "DC-FLAG": 1}, 10 ** (3.7 + 1e-5 * np.arange(NUM))),
        ({"COEFF0": 3.7, "COEFF1": 1e-5}, 10 ** (3.7 + 1e-5 * np.arange(NUM))),
        (
            {"CTYPE1": "AWAV-LOG", "CRVAL1": 5100.0, "CDELT1": 0.02},
            5100 * np.exp(np.arange(NUM) * 0.02 / 5100),
        ),
    ],
)
def test_image_axes(tmp_path, cards, wavelength):
    path = write_image(tmp_path / "a.fits", FLUX, **cards)
    air = str(cards.get("CTYPE1", "")).startswith("AWAV")
    spectrum = read_spectrum(path, medium=None if air else "vacuum", snr=50)
    check(spectrum, air_to_vacuum(wavelength) if air else wavelength, None)


def test_image_with_errors_and_mask_beside_it(tmp_path):
    others = (fits.ImageHDU(SIGMA, name="ERR"), fits.ImageHDU((FLUX > 1.09) * 1, name="MASK"))
    path = write_image(tmp_path / "a.fits", FLUX, *others, CRVAL1=5100.0, CDELT1=0.02)
    spectrum = read_spectrum(path, medium="vacuum")
    check(spectrum, 5100 + 0.02 * np.arange(NUM))
    assert spectrum.mask_counts() == {"user": int((FLUX > 1.09).sum())}


def test_ecsv_carries_medium_resolution_and_name(tmp_path):
    meta = {"medium": "air", "resolution": 28_000, "object": "HD 1"}
    table = Table({"wavelength": WAVE * units.AA, "flux": FLUX, "error": SIGMA}, meta=meta)
    table.write(tmp_path / "a.ecsv")
    spectrum: Any = read_spectrum(tmp_path / "a.ecsv")
    check(spectrum, air_to_vacuum(WAVE))
    assert (spectrum.medium, spectrum.resolution, spectrum.name) == ("air", 28_000, "HD 1")


@pytest.mark.parametrize("header", ["", "# medium: vacuum\n", "# medium = vacuum\nwave flux err\n"])
def test_text_with_and_without_names(tmp_path, header):
    rows = "\n".join(f"{w:.10f} {f:.8f} {s:.3f}" for w, f, s in zip(WAVE, FLUX, SIGMA, strict=True))
    (tmp_path / "a.txt").write_text(header + rows)
    check(read_spectrum(tmp_path / "a.txt", medium=None if header else "vacuum"))


def test_comma_separated(tmp_path):
    Table({"wave": WAVE, "flux": FLUX, "ivar": SIGMA**-2}).write(tmp_path / "a.csv")
    check(read_spectrum(tmp_path / "a.csv", medium="vacuum"))


def test_specutils_object_and_round_trip(tmp_path):
    from astropy.nddata import StdDevUncertainty
    from specutils import Spectrum as SpecutilsSpectrum

    mask = np.arange(NUM) == 3
    held = SpecutilsSpectrum(
        flux=FLUX * units.Jy,
        spectral_axis=(WAVE / 10) * units.nm,
        uncertainty=StdDevUncertainty(SIGMA),
        mask=mask,
    )
    spectrum = read_spectrum(held, medium="vacuum")
    check(spectrum)
    assert spectrum.mask_counts() == {"user": 1}
    path = tmp_path / "specutils.fits"
    held.write(path, format="tabular-fits")
    check(read_spectrum(path, medium="vacuum"))
    check(read_spectrum(path, medium="vacuum", format="tabular-fits"))


def test_gzip(tmp_path):
    write_table(tmp_path / "a.fits", {"wave": WAVE, "flux": FLUX, "err": SIGMA})
    packed = gzip.compress((tmp_path / "a.fits").read_bytes())
    (tmp_path / "b.fits.gz").write_bytes(packed)
    check(read_spectrum(tmp_path / "b.fits.gz", medium="vacuum"))


@pytest.mark.parametrize(
    ("cards", "medium"),
    [
        ({"MEDIUM": "air"}, "air"),
        ({"AIRORVAC": "vac"}, "vacuum"),
        ({"VACUUM": True}, "vacuum"),
        ({"VACUUM": 0}, "air"),
        ({"TUCD1": "em.wl;obs.atmos"}, "air"),
        ({"TUCD1": "em.wl"}, "vacuum"),
    ],
)
def test_medium_from_the_header(tmp_path, cards, medium):
    columns = {"wave": WAVE, "flux": FLUX, "err": SIGMA}
    path = write_table(tmp_path / "a.fits", columns, **cards)
    assert read_spectrum(path).medium == medium
    other = {"air": "vacuum", "vacuum": "air"}[medium]
    with pytest.raises(InputError, match="the header says"):
        read_spectrum(path, medium=other)


def refused(path, message, **arguments: Any):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(InputError) as caught:
            read_spectrum(path, **{"medium": "vacuum", **arguments})
    assert message in str(caught.value) and str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_refusals(tmp_path):
    columns = {"wave": WAVE, "flux": FLUX, "err": SIGMA}
    path = write_table(tmp_path / "a.fits", columns)
    refused(path, "air or medium='vacuum'".replace("air", "medium='air'"), medium=None)
    refused(path, "no column 'nope' for flux; it has wave, flux, err", flux="nope")
    refused(path, "no extension 7", hdu=7)
    refused(path, "errors of its own", snr=100.0)
    refused(path, "is not a length", wavelength_unit="kg")
    refused(path, "specutils cannot read it", format="no such loader")
    refused(tmp_path / "none.fits", "no such file")
    refused(tmp_path, "not a file")
    bare = write_table(tmp_path / "b.fits", {"wave": WAVE, "flux": FLUX})
    refused(bare, "no errors")
    odd = write_table(tmp_path / "c.fits", {"wave": WAVE, "height": FLUX})
    refused(odd, "no flux column among wave, height")
    text = write_table(tmp_path / "d.fits", {"wave": WAVE, "flux": ["a"] * NUM, "err": SIGMA})
    refused(text, "'flux' does not hold numbers")
    cube = write_image(tmp_path / "e.fits", np.ones((3, 40)), CRVAL1=5000.0, CDELT1=1.0)
    refused(cube, "no extension holds one spectrum")
    axis = write_image(tmp_path / "f.fits", FLUX)
    refused(axis, "no wavelength axis", snr=10.0)
    (tmp_path / "empty.fits").touch()
    refused(tmp_path / "empty.fits", "empty")
    (tmp_path / "g.txt").write_text("once upon a time\nthere was\n")
    refused(tmp_path / "g.txt", "")
    (tmp_path / "h.dat").write_bytes(bytes(range(256)) * 20)
    refused(tmp_path / "h.dat", "neither FITS nor text")


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_a_truncated_fits_file_is_refused(tmp_path, share):
    path = write_table(tmp_path / "a.fits", {"wave": WAVE, "flux": FLUX, "err": SIGMA})
    whole = path.read_bytes()
    path.write_bytes(whole[: int(share * len(whole))])
    refused(path, "")


def test_the_sun(shared):
    path = shared / "observed" / "sun_uves.fits"
    spectrum = read_spectrum(path, snr=100)
    assert (spectrum.medium, spectrum.name, len(spectrum)) == ("air", "Sun", 181_266)
    assert spectrum.mask_counts() == {"duplicate": 47}
    # The core of the Mg b2 line, 5172.684 A in air.
    near = np.abs(spectrum.wavelength - air_to_vacuum(5172.684)) < 0.3
    core = spectrum.wavelength[near][np.argmin(spectrum.flux[near])]
    assert abs(core - air_to_vacuum(5172.684)) < 0.03


def test_overlapping_echelle_orders(shared):
    path = shared / "observed" / "hd22072_hires.fits"
    with pytest.raises(InputError, match="medium"):
        read_spectrum(path)
    spectrum = read_spectrum(path, medium="air", resolution=60_000)
    assert len(spectrum) == 64_336 and spectrum.good.all()
    assert (np.diff(spectrum.wavelength) >= 0).all()
    stored: Any = fits.getdata(path, 1)
    np.testing.assert_array_equal(np.sort(stored["flux"]), np.sort(spectrum.flux))
    assert spectrum.width.min() > 0.02 and spectrum.width.max() < 0.03


def test_a_remark_of_as_many_words_as_columns_names_none(tmp_path):
    path = tmp_path / "star.txt"
    rows = "\n".join(f"{wave} {flux} 0.01" for wave, flux in zip(WAVE, FLUX, strict=True))
    path.write_text(f"# medium = vacuum\n{rows}\n")
    spectrum = read_spectrum(path)
    np.testing.assert_allclose(spectrum.flux, FLUX)
    assert spectrum.medium == "vacuum" and spectrum.ivar[0] == pytest.approx(1e4)


def test_complex_numbers_are_no_flux(tmp_path):
    path = tmp_path / "star.fits"
    Table({"wave": WAVE, "flux": FLUX * (1 + 1j), "ivar": FLUX}).write(path)
    with pytest.raises(InputError, match="'flux' does not hold numbers"):
        read_spectrum(path, medium="vacuum")
