"""Grids of spectra that other codes wrote: a table of labels, and one spectrum file a row.

The table is CSV, ECSV or whitespace-separated text with a header line: label columns (teff, logg,
..., fe_h, mg_fe) and one column with the spectrum's file name. Spectra are NPZ, FITS or text with a
wavelength and a flux column. All must be on one wavelength grid, which is kept as it is: nothing
is resampled, since interpolated training spectra would teach the emulator the interpolation.
"""

import csv
import importlib
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from emulators.errors import InputError
from emulators.grid import SpectralGrid
from emulators.grid_files import refuse_existing
from emulators.storage import file_hash

_SAME_GRID = 1e-9  # largest relative difference between two files' wavelengths
_ARRAY_NAMES = {
    "wavelength": ("wavelength", "wave", "lambda", "wl", "wavelengths"),
    "flux": ("flux", "normalized_flux", "flux_norm", "intensity"),
    "continuum": ("continuum", "cont"),
}


def import_grid(
    table: str | os.PathLike[str],
    directory: str | os.PathLike[str],
    path: str | os.PathLike[str],
    *,
    medium: str,
    file_column: str = "file",
    label_columns: Sequence[str] | None = None,
    provenance: dict[str, Any] | None = None,
) -> SpectralGrid:
    """Make a grid file of spectra that another code wrote.

    Parameters
    ----------
    table
        Text table of labels and file names.
    directory
        Folder that the file names are relative to.
    path
        Grid to write; it must not exist.
    medium
        "vacuum" or "air": what the files' wavelengths are, which the files rarely say.
    file_column
        Column of the file names.
    label_columns
        Columns to use as labels, in order; by default all numeric columns that change.
    provenance
        Code, line list and whatever else made the spectra; kept in the grid.

    Returns
    -------
    The grid, opened. A spectrum file with a continuum (third column, or an array of that name)
    is divided by it; without one its flux must be normalised.
    """
    path, directory = Path(path), Path(directory)
    refuse_existing(path)
    if medium not in ("vacuum", "air"):
        raise InputError(f"medium is {medium!r}; state what the files hold: 'vacuum' or 'air'")
    columns = read_table(table)
    if file_column not in columns:
        raise InputError(
            f"{table}: no column {file_column!r} with the file names; columns: {', '.join(columns)}"
        )
    names = _label_columns(table, columns, file_column, label_columns)
    labels = np.array([_numbers(table, name, columns[name]) for name in names]).T
    files = [directory / name for name in columns[file_column]]
    _check_files(table, files, labels, names)
    wavelength, _, _ = read_spectrum(files[0])
    fluxes, continua = [], []
    for file in files:
        wave, flux, continuum = read_spectrum(file)
        if len(wave) != len(wavelength) or not np.allclose(
            wave, wavelength, rtol=_SAME_GRID, atol=0
        ):
            raise InputError(
                f"{file}: its wavelengths differ from those of {files[0]}; all spectra must be on "
                "one grid. Compute them on one: resampling would add interpolation errors"
            )
        fluxes.append(flux)
        continua.append(continuum)
    has_continuum = [continuum is not None for continuum in continua]
    if any(has_continuum) != all(has_continuum):
        bad = files[has_continuum.index(False)]
        raise InputError(f"{bad}: has no continuum, but others do: give all or none")
    record = {
        "source": "import",
        "table": Path(table).name,
        "sha256_table": file_hash(table),
        **(provenance or {}),
    }
    return SpectralGrid.from_arrays(
        wavelength,
        labels,
        np.array(fluxes),
        label_space=names,
        path=path,
        continuum=np.array(continua) if all(has_continuum) else None,
        medium=medium,
        provenance=record,
    )


def read_table(table: str | os.PathLike[str]) -> dict[str, list[str]]:
    """Columns of a CSV, ECSV or whitespace-separated table, as text."""
    try:
        text = Path(table).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"table {table}: cannot be read as text ({error})") from None
    # ECSV is CSV or whitespace with a header of comments; numbers keep their line for errors.
    rows = [
        (number, line)
        for number, line in enumerate(text.splitlines(), start=1)
        if line.strip() and not line.lstrip().startswith("#")
    ]
    if len(rows) < 2:
        raise InputError(f"table {table}: needs a header line and at least one row")
    comma = "," in rows[0][1]
    if comma:
        split = [(number, next(csv.reader([line], skipinitialspace=True))) for number, line in rows]
    else:
        split = [
            (number, [a or b for a, b in re.findall(r'"([^"]*)"|(\S+)', line)])
            for number, line in rows
        ]
    header = [word.strip() for word in split[0][1]]
    if len(set(header)) != len(header):
        raise InputError(f"{table}, line {split[0][0]}: a column name occurs twice: {header}")
    for number, words in split[1:]:
        if len(words) != len(header):
            raise InputError(
                f"{table}, line {number}: {len(words)} values for {len(header)} columns"
            )
    return {
        name: [words[place].strip() for _, words in split[1:]] for place, name in enumerate(header)
    }


def _is_numeric(values: list[str]) -> bool:
    try:
        [float(value) for value in values]
    except ValueError:
        return False
    return True


def _label_columns(
    table: str | os.PathLike[str],
    columns: dict[str, list[str]],
    file_column: str,
    wanted: Sequence[str] | None,
) -> tuple[str, ...]:
    if wanted is not None:
        for name in wanted:
            if name not in columns:
                raise InputError(f"{table}: no column {name!r}; columns: {', '.join(columns)}")
        return tuple(wanted)
    numeric = [n for n, v in columns.items() if n != file_column and _is_numeric(v)]
    changing = tuple(n for n in numeric if len({float(v) for v in columns[n]}) > 1)
    if not changing:
        raise InputError(f"{table}: no numeric column with more than one value to use as a label")
    return changing


def _numbers(table: str | os.PathLike[str], name: str, values: list[str]) -> np.ndarray:
    for row, value in enumerate(values, start=1):
        if not _is_numeric([value]) or not np.isfinite(float(value)):
            raise InputError(f"{table}: {name} of row {row} is {value!r}, not a finite number")
    return np.array(values, float)


def _check_files(
    table: str | os.PathLike[str], files: list[Path], labels: np.ndarray, names: tuple[str, ...]
) -> None:
    """Every file there, none twice, and no two stars with the same labels."""
    missing = [str(file) for file in files if not file.is_file()]
    if missing:
        more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
        raise InputError(f"{table}: spectra not found: {', '.join(missing[:3])}{more}")
    seen: dict[Path, int] = {}
    for row, file in enumerate(files, start=1):
        if file in seen:
            raise InputError(f"{table}: {file} is named twice, in rows {seen[file]} and {row}")
        seen[file] = row
    stars: dict[tuple[float, ...], int] = {}
    for row, star in enumerate(map(tuple, labels.tolist()), start=1):
        if star in stars:
            where = ", ".join(f"{n} = {v:g}" for n, v in zip(names, star, strict=True))
            raise InputError(f"{table}: rows {stars[star]} and {row} have the same labels, {where}")
        stars[star] = row


def read_spectrum(file: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """Wavelength [pixel], flux and continuum (or None) of an NPZ, FITS or text file."""
    suffix = file.suffix.lower()
    if suffix == ".npz":
        arrays = _read_npz(file)
    elif suffix in (".fits", ".fit", ".fts") or file.name.lower().endswith(".fits.gz"):
        arrays = _read_fits(file)
    else:
        arrays = _read_text(file)
    wavelength, flux = arrays["wavelength"], arrays["flux"]
    continuum = arrays.get("continuum")
    for name, array in arrays.items():
        if array.ndim != 1 or array.shape != wavelength.shape:
            raise InputError(
                f"{file}: {name} has shape {array.shape}, wavelength {wavelength.shape}"
            )
        if not np.isfinite(array).all():
            raise InputError(f"{file}: {name} has values that are not finite")
    return wavelength, flux, continuum


def _pick(file: Path, columns: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The columns wavelength, flux and continuum under the names that codes give them."""
    lower = {name.lower(): name for name in columns}
    found = {}
    for role, names in _ARRAY_NAMES.items():
        hit = next((lower[name] for name in names if name in lower), None)
        if hit is not None:
            found[role] = np.asarray(columns[hit], float)
        elif role != "continuum":
            raise InputError(
                f"{file}: no {role} among {', '.join(columns)}; it may be called {', '.join(names)}"
            )
    return found


def _read_npz(file: Path) -> dict[str, np.ndarray]:
    try:
        with np.load(file, allow_pickle=False) as data:
            columns = {name: data[name] for name in data.files}
    except (OSError, ValueError) as error:
        raise InputError(f"{file}: not a readable NPZ file ({error})") from None
    return _pick(file, columns)


def _read_text(file: Path) -> dict[str, np.ndarray]:
    rows = []
    try:
        lines = file.read_text(encoding="ascii", errors="replace").splitlines()
    except OSError as error:
        raise InputError(f"{file}: cannot be read ({error})") from None
    for number, line in enumerate(lines, start=1):
        words = line.replace(",", " ").split()
        if not words or words[0].startswith("#"):
            continue
        if not _is_numeric(words):
            if not rows:
                continue  # a header
            raise InputError(f"{file}, line {number}: not numbers")
        if len(words) < 2 or (rows and len(words) != len(rows[0])):
            raise InputError(f"{file}, line {number}: {len(words)} columns")
        rows.append([float(word) for word in words])
    if not rows:
        raise InputError(f"{file}: no rows of numbers")
    columns = np.array(rows).T
    return dict(zip(("wavelength", "flux", "continuum"), columns[:3], strict=False))


def _read_fits(file: Path) -> dict[str, np.ndarray]:
    """A table with named columns, or an image with a linear wavelength axis in its header."""
    try:
        # Looked up by name: the package itself must not depend on astropy.
        fits = importlib.import_module("astropy.io.fits")
    except ImportError:
        raise InputError(
            f"{file}: reading FITS needs astropy: pip install astropy, or give NPZ or text"
        ) from None
    try:
        with fits.open(file) as hdus:
            for hdu in hdus:
                if isinstance(hdu, fits.BinTableHDU | fits.TableHDU):
                    names = hdu.columns.names
                    return _pick(file, {n: np.ravel(hdu.data[n]) for n in names})
            header, data = hdus[0].header, hdus[0].data
            if data is None or data.ndim != 1 or "CRVAL1" not in header:
                raise InputError(f"{file}: neither a table nor a 1D image with CRVAL1")
            step = header.get("CDELT1", header.get("CD1_1"))
            if step is None:
                raise InputError(f"{file}: no CDELT1 or CD1_1 in the header")
            pixels = np.arange(len(data)) + 1 - header.get("CRPIX1", 1)
            wavelength = header["CRVAL1"] + step * pixels
            if header.get("DC-FLAG", 0) == 1:  # IRAF: the axis is log10 of the wavelength
                wavelength = 10.0**wavelength
            return {"wavelength": wavelength, "flux": np.asarray(data, float)}
    except (OSError, ValueError, KeyError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{file}: not a readable FITS file ({error})") from None
