"""One star in a good file of each of ten kinds."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import h5py
import numpy as np
import pyarrow
import pyarrow.parquet
from astropy.io import fits
from astropy.table import Table
from survey_files import NUM, desi, fourmost, galah, image, lamost_mrs, primary, save, table

from emulators.wavelength import vacuum_to_air


class Star(NamedTuple):
    """One spectrum as a file has it: vectors [pixel], and the unit of its wavelengths."""

    wavelength: np.ndarray
    flux: np.ndarray
    ivar: np.ndarray
    unit: str | None = "Angstrom"

    def at(self, where: Any) -> "Star":
        """Some of its pixels, in some order."""
        return Star(self.wavelength[where], self.flux[where], self.ivar[where], self.unit)


def write_table(path: Path, star: Star) -> None:
    columns = [("wave", "D", star.wavelength, star.unit), ("flux", "D", star.flux)]
    save(path, primary(MEDIUM="vacuum"), table("SPECTRUM", *columns, ("ivar", "D", star.ivar)))


def write_image(path: Path, star: Star) -> None:
    head = primary(star.flux, MEDIUM="vacuum", **_axis(star, star.wavelength))
    save(path, head, image(star.ivar, "IVAR"))


def write_ecsv(path: Path, star: Star) -> None:
    columns: Any = Table({"wave": star.wavelength, "flux": star.flux, "ivar": star.ivar})
    columns["wave"].unit = star.unit
    columns.meta["medium"] = "vacuum"
    columns.write(path, format="ascii.ecsv")


def write_text(path: Path, star: Star) -> None:
    """With a line of names, which has no place for a unit."""
    if star.unit not in (None, "Angstrom"):
        raise Unfit
    with np.errstate(divide="ignore", invalid="ignore"):
        rows = np.transpose([star.wavelength, star.flux, star.ivar**-0.5])
    lines = (
        "# medium = vacuum",
        "wave flux error",
        *(" ".join(map(repr, r)) for r in rows.tolist()),
    )
    path.write_text("\n".join(lines) + "\n")


def write_galah(path: Path, star: Star) -> None:
    """In air, and with the relative error, of which zero and negative ones have no weight."""
    scale = 0.1 if star.unit == "nm" else 1.0
    wavelength = scale * np.asarray(vacuum_to_air(star.wavelength / scale))
    galah(path)
    with _open(path) as file, np.errstate(divide="ignore", invalid="ignore"):
        for unit in file:
            unit.header.update(_axis(star, wavelength))
            unit.data = star.flux
        file[1].data = np.sign(star.ivar) * np.abs(star.ivar) ** -0.5 / np.abs(star.flux)
        file.writeto(path, overwrite=True)


def write_lamost(path: Path, star: Star) -> None:
    if star.unit != "Angstrom" or not len(star.flux):
        raise Unfit
    lamost_mrs(path, arms=("blue",), vectors=True)
    with _open(path) as file:
        vectors = (star.flux, star.ivar, star.wavelength, np.zeros(len(star.flux), int))
        names, form = ("FLUX", "IVAR", "WAVELENGTH", "ANDMASK"), f"{len(star.flux)}D"
        file[1] = table(
            "COADD_B", *((n, form, v[None]) for n, v in zip(names, vectors, strict=True))
        )
        file.writeto(path, overwrite=True)


def write_fourmost(path: Path, star: Star) -> None:
    """The star in the green window."""
    if len(star.flux) != NUM:
        raise Unfit
    fourmost(path, meaning="em.wl")
    with _open(path) as file, np.errstate(divide="ignore", invalid="ignore"):
        old: Any = file[1]
        vectors = {
            name: np.array(old.data[name][0], np.float64) for name in ("WAVE", "FLUX", "ERR_FLUX")
        }
        green = slice(NUM, 2 * NUM)
        if star.unit == "nm":
            vectors["WAVE"] /= 10
        vectors["WAVE"][green] = star.wavelength
        vectors["FLUX"][green] = star.flux
        vectors["ERR_FLUX"][green] = np.sign(star.ivar) * np.abs(star.ivar) ** -0.5
        form = f"{3 * NUM}D"
        units = {"WAVE": star.unit}
        new = table("SPECTRUM", *((n, form, v[None], units.get(n)) for n, v in vectors.items()))
        new.header["TUCD1"] = "em.wl"
        file[1] = new
        file.writeto(path, overwrite=True)


def write_desi(path: Path, star: Star) -> None:
    """Two targets, both of them the star, and a sky fibre."""
    if star.unit != "Angstrom" or len(star.flux) != NUM:
        raise Unfit
    desi(path, arms="b")
    with _open(path) as file:
        file["B_WAVELENGTH"].data = star.wavelength
        for name, values in (("B_FLUX", star.flux), ("B_IVAR", star.ivar)):
            file[name].data = np.array([values] * 3)
        del file["B_RESOLUTION"]
        file.writeto(path, overwrite=True)


def write_hdf5(path: Path, star: Star) -> None:
    if star.unit != "Angstrom":
        raise Unfit
    text = {"format": "stellarfit spectra", "medium": "vacuum", "frame": "rest"}
    with h5py.File(path, "w") as file:
        # As `write_spectra` writes text: of any length, HDF5 would hang in a damaged file.
        file.attrs.update(version=1, **{name: np.bytes_(word) for name, word in text.items()})
        file["id"] = np.array([b"one"])
        file["wavelength"] = star.wavelength
        for name, values in (("flux", star.flux), ("ivar", star.ivar)):
            file[name] = values[None]


def write_parquet(path: Path, star: Star) -> None:
    if star.unit != "Angstrom":
        raise Unfit
    words = {"format": "stellarfit spectra", "version": "1", "medium": "vacuum", "frame": "rest"}
    found = pyarrow.table({"id": ["one"], **{n: [getattr(star, n)] for n in Star._fields[:3]}})
    pyarrow.parquet.write_table(found.replace_schema_metadata(words), path)


class Unfit(Exception):
    """This kind of file cannot hold such a star."""


def _open(path: Path) -> Any:
    return fits.open(path, memmap=False)


def _axis(star: Star, wavelength: np.ndarray) -> dict[str, Any]:
    """Cards of a linear axis."""
    if len(wavelength) < 2 or not np.allclose(np.diff(wavelength, 2), 0, atol=1e-6):
        raise Unfit
    step = (wavelength[-1] - wavelength[0]) / (len(wavelength) - 1)
    cards = {"CRVAL1": wavelength[0], "CDELT1": step, "CRPIX1": 1.0}
    return cards if star.unit is None else cards | {"CUNIT1": star.unit}


WRITERS: dict[str, Callable[[Path, Star], None]] = {
    "table": write_table,
    "image": write_image,
    "ecsv": write_ecsv,
    "text": write_text,
    "galah": write_galah,
    "lamost": write_lamost,
    "fourmost": write_fourmost,
    "desi": write_desi,
    "hdf5": write_hdf5,
    "parquet": write_parquet,
}
SUFFIXES = {kind: ".fits" for kind in WRITERS} | {
    "ecsv": ".ecsv", "text": ".txt", "hdf5": ".h5", "parquet": ".parquet",
}  # fmt: skip
# Whose wavelengths come from a file's own columns, in any order: echelle orders look like this.
PLAIN = ("table", "ecsv", "text")


def good_files(folder: Path, star: Star) -> dict[str, Path]:
    """A good file of each kind."""
    paths = {kind: folder / f"good-{kind}{SUFFIXES[kind]}" for kind in WRITERS}
    for kind, path in paths.items():
        WRITERS[kind](path, star)
    return paths
