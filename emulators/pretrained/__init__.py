"""The shipped emulators, by name.

``fgk-mgb-s``, ``-m`` and ``-l`` are one family: 5100-5300 Angstrom around the Mg b triplet, FGK
stars, one label space, three sizes (0.27, 1.07 and 4.26 million weights). How they were made is in
`scaling.experiments.family`.
"""

from pathlib import Path

from ..errors import InputError

# A laptop fits a star with it in a minute; the large one is four times as slow.
DEFAULT = "fgk-mgb-m"

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
