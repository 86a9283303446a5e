"""What a header says about a spectrum: medium, resolving power, the star's name."""

from collections.abc import Iterable, Mapping
from typing import Any

_MEDIUM_WORDS = {
    "air": "air",
    "vac": "vacuum",
    "vacuum": "vacuum",
}
_MEDIUM_KEYS = ("medium", "airorvac", "wavemed", "wave_medium", "wavelength_medium")
_RESOLUTION_KEYS = ("resolution", "resolvpower", "spec_res", "spec_rp", "specrp", "r")
_NAME_KEYS = ("object", "name", "star", "target", "objname", "obj_name")


def clean_header(cards: Iterable[tuple[Any, Any]]) -> dict[str, Any]:
    """Header cards as a plain dictionary with keys in lower case and simple values only."""
    kept = {}
    for key, value in cards:
        key = str(key).strip().lower()
        if (
            key
            and key not in ("comment", "history")
            and isinstance(value, str | bool | int | float)
        ):
            kept[key] = value.strip() if isinstance(value, str) else value
    return kept


def find_medium(header: Mapping[str, Any]) -> tuple[str | None, str]:
    """Medium of the wavelengths and the card that says so; (None, "") where none does.

    ESO's products say it by the meaning of their first column, ``TUCD1``: ``em.wl;obs.atmos`` is
    air, ``em.wl`` vacuum. A bare ``CTYPE1 = 'WAVE'`` is not taken as vacuum, although the FITS
    standard says so: too many files in air carry it. ``AWAV`` is always air.
    """
    for key in _MEDIUM_KEYS:
        word = str(header.get(key, "")).lower()
        if word in _MEDIUM_WORDS:
            return _MEDIUM_WORDS[word], f"{key.upper()} = {header[key]!r}"
    if isinstance(header.get("vacuum"), bool | int):
        return ("vacuum" if header["vacuum"] else "air"), f"VACUUM = {header['vacuum']}"
    meaning = str(header.get("tucd1", "")).lower()
    if meaning in ("em.wl", "em.wl;obs.atmos"):
        return ("air" if "atmos" in meaning else "vacuum"), f"TUCD1 = {header['tucd1']!r}"
    if str(header.get("ctype1", "")).upper().startswith("AWAV"):
        return "air", f"CTYPE1 = {header['ctype1']!r}"
    return None, ""


def find_resolution(header: Mapping[str, Any]) -> float | None:
    """Resolving power lambda / FWHM, where the header has a plausible one."""
    for key in _RESOLUTION_KEYS:
        value = header.get(key)
        if isinstance(value, int | float) and not isinstance(value, bool) and 100 < value < 1e6:
            return float(value)
    return None


def find_name(header: Mapping[str, Any]) -> str:
    """The star's name, or an empty string."""
    for key in _NAME_KEYS:
        if isinstance(header.get(key), str) and header[key]:
            return header[key]
    return ""
