"""The shipped emulators, by name."""

from pathlib import Path

from ..errors import InputError

# 5100-5300 Angstrom, the green around the Mg b triplet.
DEFAULT = "green"

_FOLDER = Path(__file__).parent


def available() -> tuple[str, ...]:
    """Names of the shipped emulators."""
    return tuple(sorted(path.stem for path in _FOLDER.glob("*.h5")))


def find(name: str) -> Path:
    """Path of a shipped emulator; an unknown name is an error that lists what exists."""
    path = _FOLDER / f"{name}.h5"
    if name not in available():
        shipped = ", ".join(available()) or "none"
        raise InputError(
            f"emulator: no shipped emulator {name!r} (shipped: {shipped}); "
            "give one of these or the path of an .h5 file"
        )
    return path
