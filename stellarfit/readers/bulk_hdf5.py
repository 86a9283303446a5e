"""Many spectra in one HDF5 file; the layout is described in `bulk`."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from emulators.errors import InputError, one_line

from .bulk import FORMAT, VERSION, Row, check_words, to_raw
from .raw import RawSpectrum
from .survey import Survey

_ID_LENGTH = 32  # bytes; more where an id is longer
_VECTORS = {"flux": np.nan, "ivar": 0.0, "mask": 1, "resolution": np.nan}


@contextmanager
def open_bulk(path: Path) -> Iterator[Any]:
    """Open the file for reading; whatever is wrong with it is one `InputError`."""
    import h5py

    try:
        with h5py.File(path, "r") as file:
            yield file
    except InputError:
        raise
    except Exception as error:  # noqa: BLE001 - h5py raises whatever its parsing meets
        raise InputError(
            f"{path}: cannot be read as HDF5 spectra, it is damaged or cut short "
            f"({one_line(error)[:200]})"
        ) from None


def _list_stars(file: Any, where: str) -> dict[int, str]:
    _words(file, where)
    for name in ("id", "wavelength", "flux", "ivar"):
        if name not in file:
            raise InputError(f"{where}: no data set {name}; it has {', '.join(file)}")
    num, shape = len(file["id"]), file["flux"].shape
    if len(shape) != 2 or shape[0] != num:
        raise InputError(f"{where}: flux has shape {shape}; [star, pixel] of {num} stars is needed")
    return dict(enumerate(file["id"].asstr()[:].tolist()))


def _words(file: Any, where: str) -> tuple[str, str]:
    words = {key: word.decode() if isinstance(word, bytes) else word
             for key, word in file.attrs.items()}  # fmt: skip
    return check_words(words, where)


def _read(file: Any, where: str, row: int) -> list[RawSpectrum]:
    medium, frame = _words(file, where)
    num = file["flux"].shape[1]

    def get(name: str, default: Any) -> np.ndarray:
        if name not in file:
            return np.full(num, default)
        values = _select(file[name], row, len(file["id"]), num, f"{where}: {name}")
        if values.dtype.kind not in "biuf":
            raise InputError(f"{where}: {name} holds {values.dtype}, not numbers")
        return np.broadcast_to(values, (num,))

    found = Row(
        file["id"].asstr()[row],
        get("wavelength", np.nan),
        get("flux", np.nan).astype(np.float64),
        get("ivar", 0.0).astype(np.float64),
        get("mask", 0),
        get("resolution", np.nan),
    )
    return [to_raw(found, medium, frame, where)]


def _select(data: Any, row: int, stars: int, pixels: int, what: str) -> Any:
    """Of a star: its row, what all stars share, its number, or the one number of all."""
    shape, shared = data.shape, what.endswith("wavelength")
    if shape == (stars, pixels):
        return data[row]
    if shape == (pixels,) and (shared or (what.endswith("resolution") and stars != pixels)):
        return data[:]
    if what.endswith("resolution") and shape in ((), (stars,)) and shape != (pixels,):
        return data[row] if shape else data[()]
    raise InputError(f"{what} has shape {shape}; give [star, pixel], here {(stars, pixels)}")


def write(path: Path, rows: Any) -> None:
    """Write rows as they come; wavelengths are shared until a star has others."""
    import h5py

    with h5py.File(path, "w") as file:
        for num, row in enumerate(rows):
            if not num:
                _create(file, row)
            _append(file, num, row)
        words = {"format": FORMAT, "medium": "vacuum", "frame": rows.frame}
        for name, word in words.items():
            file.attrs.create(name, word, dtype=_text(len(word)))
        file.attrs["version"] = VERSION


def _create(file: Any, row: Row) -> None:
    num = len(row.flux)
    file["wavelength"] = row.wavelength
    file.create_dataset("id", (0,), maxshape=(None,), dtype=_text(_ID_LENGTH))
    for name, fill in _VECTORS.items():
        file.create_dataset(
            name,
            (0, num),
            maxshape=(None, None),
            chunks=(1, num),
            dtype=getattr(row, name).dtype,
            fillvalue=fill,
            compression="gzip",
            shuffle=True,
        )


def _append(file: Any, num: int, row: Row) -> None:
    length = max(len(row.flux), file["flux"].shape[1])
    for name in _VECTORS:
        file[name].resize((num + 1, length))
        file[name][num, : len(row.flux)] = getattr(row, name)
    _append_id(file, num, row.id.encode())
    held = file["wavelength"]
    if held.ndim == 1:
        if np.array_equal(held[:], row.wavelength):
            return
        shared = held[:]
        del file["wavelength"]
        held = file.create_dataset(
            "wavelength",
            (num, length),
            maxshape=(None, None),
            chunks=(1, len(shared)),
            fillvalue=np.nan,
            dtype=np.float64,
            compression="gzip",
            shuffle=True,
        )
        for i in range(num):
            held[i, : len(shared)] = shared
    held.resize((num + 1, length))
    held[num, : len(row.flux)] = row.wavelength


def _append_id(file: Any, num: int, name: bytes) -> None:
    if len(name) > file["id"].dtype.itemsize:
        before = file["id"][:]
        del file["id"]
        longer = _text(2 * len(name))
        file.create_dataset("id", data=before.astype(longer), maxshape=(None,), chunks=True)
    file["id"].resize((num + 1,))
    file["id"][num] = name


def _text(length: int) -> Any:
    """Text of at most so many bytes.

    Of any length it would lie in a heap beside the data, in which HDF5 runs round for ever where
    the file is damaged.
    """
    import h5py

    return h5py.string_dtype(length=length)


HDF5 = Survey("stellarfit HDF5", lambda file: True, _list_stars, _read)
