"""One HDF5 file of named arrays and a JSON record, sealed by a hash. Nothing is pickled."""

import json
import os
from pathlib import Path
from typing import Any

import h5py
import jax
import numpy as np

from .errors import InputError
from .storage import array_hash, atomic_write

_RECORD = "record"


def write_bundle(
    path: str | os.PathLike[str], kind: str, arrays: dict[str, np.ndarray], record: dict[str, Any]
) -> None:
    """Write arrays and a record; the file appears whole or not at all.

    Parameters
    ----------
    path
        Of the file to write or replace.
    kind
        What the file is, such as ``emulator``; `read_bundle` refuses another kind.
    arrays
        By name; a name may hold any character but ``/``.
    record
        Anything that JSON can hold.
    """
    text = np.frombuffer(json.dumps(record, sort_keys=True).encode(), dtype=np.uint8)
    contents = {**arrays, _RECORD: text}
    with atomic_write(path) as temporary, h5py.File(temporary, "w") as file:
        file.attrs["kind"] = kind
        file.attrs["sha256"] = array_hash(contents)
        for name, array in contents.items():
            file.create_dataset(name, data=array)


def read_bundle(
    path: str | os.PathLike[str], kind: str
) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Read what `write_bundle` wrote, and refuse a file that is not whole and untouched."""
    if not Path(path).is_file():
        raise InputError(f"{kind}: no file {path}")
    try:
        with h5py.File(path, "r") as file:
            found, seal = file.attrs.get("kind"), file.attrs.get("sha256")
            # Every dataset is an array, if only of no dimension.
            contents = {str(name): np.asarray(file[name]) for name in file}
    except (OSError, KeyError, RuntimeError, ValueError) as error:
        raise InputError(f"{kind}: {path} is truncated or not HDF5; copy it again") from error
    if found != kind:
        raise InputError(f"{kind}: {path} is of kind {found!r}, expected {kind!r}")
    if array_hash(contents) != seal:
        raise InputError(f"{kind}: {path} does not match its sha256; it was changed or damaged")
    record = json.loads(contents.pop(_RECORD).tobytes())
    return contents, record


def kind_of_bundle(path: str | os.PathLike[str]) -> str | None:
    """What a file says that it is; None where it is no bundle."""
    try:
        with h5py.File(path, "r") as file:
            return file.attrs.get("kind")
    except OSError:
        return None


def tree_to_arrays(tree: Any) -> dict[str, np.ndarray]:
    """The leaves of a pytree on the host, by their path."""
    return {
        jax.tree_util.keystr(path): np.asarray(leaf)
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }


def arrays_to_tree(template: Any, arrays: dict[str, np.ndarray]) -> Any:
    """Replace the leaves of `template` by the arrays of the same path, shape and dtype."""

    def replace(path, leaf):
        name = jax.tree_util.keystr(path)
        if name not in arrays:
            raise InputError(f"bundle: array {name!r} is missing")
        array = arrays[name]
        if array.shape != leaf.shape or array.dtype != leaf.dtype:
            raise InputError(
                f"bundle: array {name!r} is {array.dtype}{array.shape}, "
                f"expected {leaf.dtype}{leaf.shape}"
            )
        return jax.numpy.asarray(array)

    return jax.tree_util.tree_map_with_path(replace, template)
