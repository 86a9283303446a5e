"""How a spectral grid lies on disk: shards, the final file, and what is refused."""

import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from emulators.errors import InputError
from emulators.labels import LabelSpace
from emulators.storage import array_hash, atomic_write

FORMAT = "stellarfit spectral grid 1"
CONTINUUM_STRIDE = 64
"""The continuum is smooth: its logarithm is kept at every 64th pixel, and at the last."""

_UNIFORM = 1e-6  # largest departure from ln-uniform spacing, in steps


def check_spectra(
    flux: np.ndarray,
    continuum: np.ndarray,
    labels: np.ndarray,
    label_space: LabelSpace,
    start: int,
) -> None:
    """Refuse spectra with NaN, infinities or a continuum that is not positive."""
    good = np.isfinite(flux).all(axis=1) & (np.isfinite(continuum) & (continuum > 0)).all(axis=1)
    if good.all():
        return
    star = int(np.argmin(good))
    where = ", ".join(f"{n} = {v:g}" for n, v in zip(label_space.names, labels[star], strict=True))
    raise InputError(
        f"grid: spectrum {start + star} has values that are not finite (or a continuum that is "
        f"not positive); its labels: {where}; narrow the label box or repair the spectrum"
    )


def continuum_nodes(num_pixels: int) -> np.ndarray:
    """The pixels at which the continuum is kept."""
    return np.unique(np.append(np.arange(0, num_pixels, CONTINUUM_STRIDE), num_pixels - 1))


def log_continuum_nodes(continuum: np.ndarray) -> np.ndarray:
    """log10 of a continuum [star, pixel] at the nodes, float32."""
    nodes = continuum_nodes(continuum.shape[1])
    return np.log10(np.asarray(continuum[:, nodes], float)).astype(np.float32)


def ln_step(wavelength: np.ndarray) -> float | None:
    """The spacing in ln wavelength, or None where it is not uniform."""
    ln = np.log(wavelength)
    step = (ln[-1] - ln[0]) / max(len(ln) - 1, 1)
    expected = ln[0] + step * np.arange(len(ln))
    uniform = len(ln) > 1 and np.max(np.abs(ln - expected)) <= _UNIFORM * step
    return float(step) if uniform else None


def write_shard(path: Path, contents: dict[str, np.ndarray]) -> None:
    """Write one batch, whole or not at all."""
    with h5py.File(path.name, "w", driver="core", backing_store=False) as file:
        for name, array in contents.items():
            file.create_dataset(name, data=array, track_times=False)
        file.flush()
        image = file.id.get_file_image()
    with _disk_errors(path), atomic_write(path) as temporary:
        temporary.write_bytes(image)


def _write_head(
    file: h5py.File,
    wavelength: np.ndarray,
    label_space: LabelSpace,
    step: float | None,
    provenance: dict[str, Any],
) -> None:
    file.create_dataset("wavelength", data=wavelength, track_times=False)
    file.attrs["format"] = FORMAT
    file.attrs["label_space"] = json.dumps(label_space.to_dict())
    file.attrs["provenance"] = json.dumps(provenance, sort_keys=True)
    file.attrs["step"] = step or 0.0
    file.attrs["medium"] = "vacuum"


def write_grid(
    path: Path,
    contents: dict[str, np.ndarray],
    label_space: LabelSpace,
    step: float | None,
    provenance: dict[str, Any],
) -> None:
    """Write a grid whose arrays are all in memory."""
    size = sum(array.nbytes for array in contents.values())
    with _disk_errors(path), _new_file(path, size) as file:
        _write_head(file, contents["wavelength"], label_space, step, provenance)
        for name in ("labels", "dither", "flux", "log_continuum"):
            file.create_dataset(name, data=contents[name], track_times=False)
        file.attrs["hash"] = array_hash(contents)


def merge_shards(
    path: Path,
    shards: Sequence[Path],
    wavelength: np.ndarray,
    label_space: LabelSpace,
    step: float,
    provenance: dict[str, Any],
    config: dict[str, Any],
) -> None:
    """Write the shards one after the other into the final file; memory holds one of them."""
    provenance = {**provenance, "config_hash": config_hash(config)}
    names = ("labels", "dither", "flux", "log_continuum")
    digests = []
    size = wavelength.nbytes + sum(shard.stat().st_size for shard in shards)
    with _disk_errors(path), _new_file(path, size) as file:
        _write_head(file, wavelength, label_space, step, provenance)
        start = 0
        for shard in shards:
            try:
                with h5py.File(shard, "r") as part:
                    arrays = {name: part[name][()] for name in names}
            except (OSError, KeyError) as error:
                raise InputError(
                    f"grid: shard {shard} is damaged ({error}): remove it and resume"
                ) from None
            stop = start + len(arrays["labels"])
            for name, array in arrays.items():
                if not start:
                    shape = (config["num"], *array.shape[1:])
                    file.create_dataset(name, shape, array.dtype, track_times=False)
                file[name][start:stop] = array
            digests.append(array_hash(arrays))
            start = stop
        head = {"wavelength": wavelength, "shards": np.array(digests, dtype="S64")}
        file.attrs["hash"] = array_hash(head)


@contextmanager
def _new_file(path: Path, size: int) -> Iterator[h5py.File]:
    """An HDF5 file that appears at `path` when it is whole.

    HDF5 does not survive a full disk in the middle of a write, so that about `size` bytes are
    first asked of the file system, where it has such a call.
    """
    with atomic_write(path) as temporary:
        if hasattr(os, "posix_fallocate"):
            with temporary.open("wb") as probe:
                os.posix_fallocate(probe.fileno(), 0, size)
        with h5py.File(temporary, "w") as file:
            yield file


@contextmanager
def _disk_errors(path: Path) -> Iterator[None]:
    """A full disk ends in one clear line; nothing half-written stays behind."""
    try:
        yield
    except (OSError, RuntimeError) as error:  # h5py raises the latter when it closes a file
        raise InputError(
            f"grid: cannot write {path} ({error}): free space there, then go on with resume=True"
        ) from error


def refuse_existing(path: Path) -> None:
    """Finished grids are never overwritten."""
    if path.exists():
        raise InputError(f"grid {path} exists already: give another name or remove it")


def config_hash(config: dict[str, Any]) -> str:
    """Hash of what a grid is made of: two runs may share shards only if theirs agree."""
    text = json.dumps(config, sort_keys=True)
    return array_hash({"config": np.frombuffer(text.encode(), np.uint8)})
