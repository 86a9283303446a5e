"""Damage that one kind of file alone can take: to extensions, cards, lines or data sets."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pyarrow
import pyarrow.parquet
from astropy.io import fits
from survey_files import NUM, image, table


def _card(data: bytes, key: str, value: str, which: int = -1) -> bytes:
    """FITS with another value in the cards of a key, of the first or the last extension with it."""
    places = [i for i in range(0, len(data), 80) if data[i : i + 9] == f"{key:8s}=".encode()]
    start = places[which]
    return data[:start] + f"{key:8s}= {value:>20s}".ljust(80).encode() + data[start + 80 :]


def _reverse(file: Any) -> Any:
    return fits.HDUList([fits.PrimaryHDU(header=file[0].header), *file[:0:-1]])


def _others_first(file: Any) -> Any:
    """Extensions of other things before the spectrum's."""
    other = table("OBSLOG", ("time", "D", np.arange(3.0)), ("seeing", "D", np.arange(3.0)))
    return fits.HDUList([file[0], other, image(np.zeros((3, 4)), "GUIDER"), *file[1:]])


def _cubes(file: Any) -> Any:
    for i, unit in enumerate(file):
        if i or unit.data is not None:
            new = image(np.ones((2, 3, 4)), unit.name) if i else fits.PrimaryHDU(np.ones((2, 3, 4)))
            new.header.extend(
                (c for c in unit.header.cards if c.keyword not in new.header), end=True
            )
            file[i] = new
    return file


def _transpose(file: Any) -> Any:
    """Images on their side; of tables, all of a column in one row."""
    for i, unit in enumerate(file):
        if unit.is_image and unit.data is not None:
            unit.data = unit.data[:, None] if unit.data.ndim == 1 else unit.data.T
        elif not unit.is_image and unit.header["NAXIS2"] == NUM:
            rows: Any = unit.data
            columns = [(c.name, f"{NUM}D", rows[c.name][None], c.unit) for c in unit.columns]
            file[i] = table(unit.name, *columns)
    return file


def _long_header(file: Any) -> Any:
    for i in range(1500):
        file[0].header[f"HIERARCH ESO DET CHIP{i} REMARK"] = "x" * 30
        file[0].header["HISTORY"] = "and again " * 6
    return file


def _odd_cards(file: Any) -> Any:
    file[0].header["RESOLUTN"], file[0].header["OBJECT"] = float("1e300"), "'" * 20
    file[0].header["R"], file[0].header["SPEC_RES"] = -5, True
    return file


FITS: dict[str, tuple[Callable[[Any], Any], str]] = {
    "others first": (_others_first, "open"),
    "extensions reversed": (_reverse, "open"),
    "primary alone": (lambda file: fits.HDUList([file[0]]), "refused"),
    "cubes": (_cubes, "refused"),
    "axes swapped": (_transpose, "open"),
    "a long header": (_long_header, "right"),
    "odd cards": (_odd_cards, "right"),
}
CARDS: dict[str, tuple[str, str, int]] = {
    "more rows than bytes": ("NAXIS2", "999999999", -1),
    "fewer than no rows": ("NAXIS2", "-7", -1),
    "no number of axes": ("NAXIS", "'two'", -1),
    "more axes": ("NAXIS", "999", -1),
    "bits of a pixel": ("BITPIX", "17", -1),
    "columns of no form": ("TFORM1", "'99999999999D'", -1),
    "a form unknown": ("TFORM2", "'Q?'", -1),
    "not simple": ("SIMPLE", "F", 0),
    "length of a row": ("NAXIS1", "13", -1),
    "scaled by NaN": ("TSCAL2", "NaN", -1),
}
LINES: dict[str, tuple[Callable[[list[str]], list[str]], str]] = {
    "ragged": (lambda rows: [*rows[:50], rows[50] + " 3.5", *rows[51:]], "refused"),
    "a row too short": (lambda rows: [*rows[:50], rows[50].split()[0], *rows[51:]], "refused"),
    "a word": (lambda rows: [*rows[:50], "end of order", *rows[51:]], "refused"),
    "decimal commas": (lambda rows: [row.replace(".", ",") for row in rows], "refused"),
    "semicolons": (lambda rows: [row.replace(" ", ";") for row in rows], "open"),
    "Windows": (lambda rows: [row + "\r" for row in rows], "right"),
    "no names": (lambda rows: [rows[0], *rows[2:]], "right"),
    "names alone": (lambda rows: rows[:2], "refused"),
    "byte order mark": (lambda rows: ["\ufeff" + rows[0], *rows[1:]], "open"),
    "NUL": (lambda rows: [*rows[:50], rows[50] + "\0", *rows[51:]], "open"),
    "a long comment": (lambda rows: ["# " + 70 * "-"] * 2000 + rows, "right"),
    "another column": (lambda rows: [row + " 7" for row in rows], "open"),
    "no medium": (lambda rows: rows[1:], "refused"),
    "two of a name": (lambda rows: [rows[0], "wave wave flux", *rows[2:]], "open"),
    "too large": (
        lambda rows: [*rows[:50], rows[50].split()[0] + " 1e999 4.0", *rows[51:]],
        "open",
    ),
}


def _set(name: str, make: Callable[[np.ndarray], Any]) -> Callable[[Any], None]:
    def change(file: Any) -> None:
        values = file[name][()]
        del file[name]
        file[name] = make(values)

    return change


def _link(file: Any) -> None:
    del file["flux"]
    file["flux"] = h5py.ExternalLink("nowhere.h5", "/flux")


def _endless(file: Any) -> None:
    """Few bytes on the disk, and more pixels than any memory holds."""
    del file["flux"]
    file.create_dataset("flux", (1, 10**12), chunks=(1, 1000), dtype=float, fillvalue=1.0)


def _group(file: Any) -> None:
    del file["wavelength"]
    file.create_group("wavelength")


def _add(name: str, values: np.ndarray) -> Callable[[Any], None]:
    def change(file: Any) -> None:
        file[name] = values

    return change


def _no(name: str) -> Callable[[Any], None]:
    def change(file: Any) -> None:
        del file[name]

    return change


def _word(name: str, value: Any) -> Callable[[Any], None]:
    def change(file: Any) -> None:
        file.attrs[name] = value

    return change


HDF5: dict[str, tuple[Callable[[Any], None], str]] = {
    **{f"no {name}": (_no(name), "refused") for name in ("id", "wavelength", "flux", "ivar")},
    "flux on its side": (_set("flux", np.transpose), "refused"),
    "flux of three axes": (_set("flux", lambda a: a[None]), "refused"),
    "flux in text": (_set("flux", lambda a: a.astype("S20")), "refused"),
    "flux complex": (_set("flux", lambda a: a * 1j), "refused"),
    "flux of more pixels": (_set("flux", lambda a: np.hstack([a, a])), "refused"),
    "ivar of one number": (_set("ivar", lambda a: 1.0), "refused"),
    "ids of numbers": (_set("id", lambda a: [7]), "refused"),
    "wavelengths of a star more": (_set("wavelength", lambda a: np.array([a, a])), "refused"),
    "wavelengths a group": (_group, "refused"),
    "a link to nowhere": (_link, "refused"),
    "an endless spectrum": (_endless, "refused"),
    "version 2": (_word("version", 2), "refused"),
    "a version of words": (_word("version", "one"), "refused"),
    "medium water": (_word("medium", "water"), "refused"),
    "frame of lists": (_word("frame", [1, 2]), "refused"),
    "resolution below 0": (_add("resolution", np.array([-5.0])), "open"),
    "a mask of words": (_add("mask", np.array([["bad"] * NUM], "S3")), "refused"),
    "a mask of NaN": (_add("mask", np.full((1, NUM), np.nan)), "refused"),
}  # fmt: skip


def _column(name: str, value: Any, type_: Any = None) -> Callable[[Any], Any]:
    def change(found: Any) -> Any:
        place = found.column_names.index(name)
        return found.set_column(place, name, pyarrow.array([value], type_))

    return change


PARQUET: dict[str, tuple[Callable[[Any], Any], str]] = {
    **{
        f"no {name}": (lambda t, name=name: t.drop_columns([name]), "refused")
        for name in ("id", "wavelength", "flux", "ivar")
    },
    "flux of words": (_column("flux", ["1", "2"]), "refused"),
    "flux of lists": (_column("flux", [[1.0], [2.0]]), "refused"),
    "flux a number": (_column("flux", 3.0), "refused"),
    "flux a word": (_column("flux", "high"), "refused"),
    "flux null": (_column("flux", None, pyarrow.list_(pyarrow.float64())), "refused"),
    "flux with nulls": (_column("flux", [None] * NUM, pyarrow.list_(pyarrow.float64())), "refused"),
    "flux shorter": (_column("flux", [1.0, 2.0]), "refused"),
    "wavelength null": (_column("wavelength", None, pyarrow.list_(pyarrow.float64())), "refused"),
    "ivar of dates": (_column("ivar", [0], pyarrow.list_(pyarrow.timestamp("s"))), "refused"),
    "ivar a structure": (_column("ivar", {"a": 1.0}), "refused"),
    "id null": (_column("id", None, pyarrow.string()), "right"),
    "no rows": (lambda t: t.slice(0, 0), "refused"),
    "no words": (lambda t: t.replace_schema_metadata(None), "refused"),
    "bytes for words": (lambda t: t.replace_schema_metadata({b"format": b"\xff\xfe"}), "refused"),
}


def layout_damages(kind: str) -> dict[str, tuple[Callable[[Path], None], str]]:
    """Damage that only this kind of file can take: what it does to a good one, and its fate."""

    def of_fits(change):
        def apply(path):
            with fits.open(path, memmap=False) as file:
                changed = change(file)
                changed.writeto(path, overwrite=True, output_verify="ignore")

        return apply

    def of_card(key, value, which):
        return lambda path: path.write_bytes(_card(path.read_bytes(), key, value, which))

    def of_lines(change):
        def apply(path):
            rows = path.read_text().splitlines()
            path.write_bytes(("\n".join(change(rows)) + "\n").encode())

        return apply

    def of_hdf5(change):
        def apply(path):
            with h5py.File(path, "r+") as file:
                change(file)

        return apply

    def of_parquet(change):
        def apply(path):
            pyarrow.parquet.write_table(change(pyarrow.parquet.read_table(path)), path)

        return apply

    if kind in ("hdf5", "parquet", "text"):
        known, wrap = {
            "hdf5": (HDF5, of_hdf5), "parquet": (PARQUET, of_parquet), "text": (LINES, of_lines),
        }[kind]  # fmt: skip
        return {name: (wrap(change), fate) for name, (change, fate) in known.items()}
    if kind == "ecsv":
        return {}
    found = {name: (of_fits(change), fate) for name, (change, fate) in FITS.items()}
    return found | {name: (of_card(*card), "open") for name, card in CARDS.items()}
