"""What an emulator or a grid holds, and what is installed."""

from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from emulators.errors import InputError

from . import __version__
from .report import describe_grid

_LIBRARIES = ("jax", "equinox", "optax", "numpyro", "blackjax", "astropy", "specutils")


def describe(source: str | None) -> dict[str, Any]:
    """Describe an emulator (name or path), a grid file, or, without a source, the installation."""
    if source is None:
        return _installation()
    if Path(source).is_file() and _is_grid(Path(source)):
        from emulators.grid import SpectralGrid

        return describe_grid(SpectralGrid.open(source))
    from emulators.emulator import load_emulator

    return _emulator(load_emulator(source))


def _is_grid(path: Path) -> bool:
    import h5py

    if not h5py.is_hdf5(path):
        raise InputError(f"{path}: not an HDF5 file, or damaged; give an emulator or a grid")
    try:
        with h5py.File(path) as file:
            return "label_space" in file.attrs and "flux" in file
    except OSError:
        raise InputError(f"{path}: damaged or cut short") from None


def _emulator(emulator: Any) -> dict[str, Any]:
    space, errors = emulator.label_space, emulator.error_model
    low, high = emulator.wavelength_range
    measured = None
    if errors is not None:
        variance = float(errors.mse) * np.asarray(errors.variance(errors.patterns))
        measured = {
            "rms": float(np.sqrt(np.mean(variance))),
            "rms_median_pixel": float(np.sqrt(np.median(variance))),
            "rms_worst_pixel": float(np.sqrt(np.max(variance))),
            "scatter": float(errors.amplitude.scatter),
            "coherent_share": float(errors.coherent.share.sum()),
            "patterns": len(errors.patterns),
        }
    record = emulator.record
    return {
        "emulator": emulator.name,
        "fingerprint": emulator.fingerprint,
        "labels": {
            name: {"lower": lower, "upper": upper, "unit": unit}
            for name, lower, upper, unit in zip(
                space.names, space.lower, space.upper, space.units, strict=True
            )
        },
        "solar_scale": space.solar_scale,
        "wavelength": {"first": low, "last": high, "ln_step": emulator.step, "medium": "vacuum"},
        "error": measured,
        # Absent from files made before it was recorded.
        "parametrization": record.pop("parametrization", None),
        "record": record,
    }


def _installation() -> dict[str, Any]:
    import h5py

    import emulators
    from emulators import pretrained

    data = Path(emulators.__file__).parent / "physics" / "data"
    tables = {}
    for path in sorted(data.glob("*.h5")):
        with h5py.File(path) as file:
            citation = str(file.attrs.get("citation", ""))
        tables[path.name] = {"kilobytes": round(path.stat().st_size / 1024), "citation": citation}
    return {
        "stellarfit": __version__,
        "emulators": list(pretrained.available()),
        "default_emulator": pretrained.DEFAULT,
        "tables": tables,
        "libraries": {name: metadata.version(name) for name in _LIBRARIES},
    }
