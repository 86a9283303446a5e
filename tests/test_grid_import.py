"""Grids from other codes' files: the numbers that arrive, and what is refused."""

from typing import Any

import numpy as np
import pytest

from emulators.errors import InputError
from emulators.grid_import import import_grid

STARS = 5
LABELS = np.column_stack([np.linspace(4500, 6500, STARS), np.array([1.0, 4.0, 2.5, 4.5, 3.0])])
WAVELENGTH = 5100 * np.exp(1e-5 * np.arange(300))
FLUX = 1 - 0.3 * np.random.default_rng(1).random((STARS, 300))
CONTINUUM = np.linspace(1.0, 1.05, 300) * LABELS[:, :1] * 1e3


def write_npz(file, star, wavelength=WAVELENGTH, continuum=True):
    if continuum:
        flux = FLUX[star] * CONTINUUM[star]
        np.savez(file, wave=wavelength, flux=flux, continuum=CONTINUUM[star])
    else:
        np.savez(file, wave=wavelength, flux=FLUX[star])


def write_text(file, star):
    rows = "\n".join(f"{w:.9f} {f:.9f}" for w, f in zip(WAVELENGTH, FLUX[star], strict=True))
    file.write_text("# wavelength flux\n" + rows + "\n")


def write_fits(file, star):
    from astropy.table import Table

    Table({"WAVE": WAVELENGTH, "FLUX": FLUX[star]}).write(file)


def write_table(folder, suffix, separator=",", comment=""):
    header = separator.join(["teff", "logg", "vmic", "file"])
    rows = [
        separator.join([f"{t:g}", f"{g:g}", "1.0", f"star{star}.{suffix}"])
        for star, (t, g) in enumerate(LABELS)
    ]
    table = folder / "labels.txt"
    table.write_text(comment + "\n".join([header, *rows]) + "\n")
    return table


@pytest.mark.parametrize(
    ("suffix", "write"), [("npz", write_npz), ("dat", write_text), ("fits", write_fits)]
)
@pytest.mark.parametrize("separator", [",", "  "])
def test_what_was_written_arrives(tmp_path, suffix, write, separator):
    for star in range(STARS):
        write(tmp_path / f"star{star}.{suffix}", star)
    table = write_table(tmp_path, suffix, separator)
    grid = import_grid(
        table, tmp_path, tmp_path / "grid.h5", medium="vacuum", provenance={"code": "Korg"}
    )
    # vmic is 1 in every row: not a label
    assert grid.label_space.names == ("teff", "logg")
    np.testing.assert_array_equal(grid.labels, LABELS)
    np.testing.assert_allclose(grid.flux(), FLUX, atol=1e-7)
    np.testing.assert_allclose(grid.wavelength, WAVELENGTH, rtol=1e-12)
    assert grid.provenance["code"] == "Korg"
    assert not grid.dither.any()
    if suffix == "npz":
        np.testing.assert_allclose(grid.continuum(), CONTINUUM, rtol=1e-3)


def test_ecsv_header_is_skipped_and_air_is_converted(tmp_path):
    for star in range(STARS):
        write_npz(tmp_path / f"star{star}.npz", star)
    table = write_table(tmp_path, "npz", " ", "# %ECSV 1.0\n# ---\n# datatype: []\n")
    grid = import_grid(table, tmp_path, tmp_path / "grid.h5", medium="air")
    assert grid.wavelength[0] - WAVELENGTH[0] == pytest.approx(1.421, abs=0.001)


def test_any_increasing_grid_is_kept(tmp_path):
    uneven = np.sort(5100 + 5 * np.random.default_rng(2).random(300))
    for star in range(STARS):
        write_npz(tmp_path / f"star{star}.npz", star, uneven)
    table = write_table(tmp_path, "npz")
    grid = import_grid(table, tmp_path, tmp_path / "grid.h5", medium="vacuum")
    np.testing.assert_array_equal(grid.wavelength, uneven)
    assert grid.step is None


def prepare(tmp_path):
    for star in range(STARS):
        write_npz(tmp_path / f"star{star}.npz", star)
    return write_table(tmp_path, "npz")


def fails(tmp_path, table, message, **options):
    given: dict[str, Any] = {"medium": "vacuum"} | options
    with pytest.raises(InputError, match=message):
        import_grid(table, tmp_path, tmp_path / "grid.h5", **given)
    assert not (tmp_path / "grid.h5").exists()


def test_another_wavelength_grid_is_refused_not_resampled(tmp_path):
    table = prepare(tmp_path)
    write_npz(tmp_path / "star3.npz", 3, WAVELENGTH * (1 + 1e-6))
    fails(tmp_path, table, r"star3.npz: its wavelengths differ .*resampling")


def test_missing_and_repeated_files_are_named(tmp_path):
    table = prepare(tmp_path)
    (tmp_path / "star2.npz").unlink()
    fails(tmp_path, table, r"not found: .*star2.npz")
    write_npz(tmp_path / "star2.npz", 2)
    table.write_text(table.read_text().replace("star4", "star1"))
    fails(tmp_path, table, r"star1.npz is named twice, in rows 2 and 5")


def test_repeated_labels_are_named(tmp_path):
    table = prepare(tmp_path)
    table.write_text(table.read_text().replace("6500,3", "4500,1"))
    fails(tmp_path, table, r"rows 1 and 5 have the same labels, teff = 4500")


def test_medium_must_be_stated(tmp_path):
    fails(tmp_path, prepare(tmp_path), "'vacuum' or 'air'", medium="")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("file", "name", "no column 'file'"),
        ("5000,4,1.0,", "5000,4,", r"line 3: 3 values for 4 columns"),
        ("logg", "teff", "occurs twice"),
    ],
)
def test_broken_tables_name_the_line_or_column(tmp_path, old, new, message):
    table = prepare(tmp_path)
    table.write_text(table.read_text().replace(old, new))
    fails(tmp_path, table, message)


def test_labels_that_are_not_numbers_and_unknown_columns(tmp_path):
    table = prepare(tmp_path)
    fails(tmp_path, table, "no column 'fe_h'", label_columns=("teff", "fe_h"))
    table.write_text(table.read_text().replace("5000,", "cool,"))
    fails(tmp_path, table, r"teff of row 2 is 'cool'", label_columns=("teff", "logg"))


def test_broken_spectra_name_the_file(tmp_path):
    table = prepare(tmp_path)
    (tmp_path / "star1.npz").write_bytes(b"not a zip file")
    fails(tmp_path, table, "star1.npz: not a readable NPZ")
    np.savez(tmp_path / "star1.npz", x=WAVELENGTH, flux=FLUX[1])
    fails(tmp_path, table, "star1.npz: no wavelength among x, flux")
    np.savez(tmp_path / "star1.npz", wave=WAVELENGTH, flux=FLUX[1])
    fails(tmp_path, table, "star1.npz: has no continuum, but others do")
    np.savez(tmp_path / "star1.npz", wave=WAVELENGTH, flux=np.full(300, np.nan))
    fails(tmp_path, table, "star1.npz: flux has values that are not finite")
    (tmp_path / "star1.npz").rename(tmp_path / "star1.dat")
    (tmp_path / "star1.dat").write_text("5000 1\n5001 x\n")
    table.write_text(table.read_text().replace("star1.npz", "star1.dat"))
    fails(tmp_path, table, "star1.dat, line 2: not numbers")


def test_finished_grid_is_not_overwritten(tmp_path):
    table = prepare(tmp_path)
    import_grid(table, tmp_path, tmp_path / "grid.h5", medium="vacuum")
    with pytest.raises(InputError, match="exists already"):
        import_grid(table, tmp_path, tmp_path / "grid.h5", medium="vacuum")
