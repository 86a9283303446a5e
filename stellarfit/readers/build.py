"""From what a reader hands over to a spectrum: medium, grid, missing arms."""

from typing import Any, NamedTuple

import numpy as np

from emulators.errors import InputError

from ..arms import Arms
from ..spectrum import MEDIA, Spectrum
from .header import find_medium, find_name, find_resolution
from .raw import RawSpectrum
from .survey import Survey


class Stated(NamedTuple):
    """What the user says of a spectrum, in place of its file; None where the file is to say it."""

    medium: str | None = None
    resolution: float | int | None = None
    snr: float | int | None = None


def check_medium(medium: str | None) -> None:
    """Refuse a medium that is neither air nor vacuum."""
    if medium is not None and medium not in MEDIA:
        raise InputError(f"medium: {medium!r} is not known; give 'air' or 'vacuum'")


def build(raws: list[RawSpectrum], stated: Stated, survey: Survey | None = None) -> Spectrum | Arms:
    """The spectrum, or the arms, of one star.

    An arm without a usable pixel, or that the file lacks, is missing; no arm at all is an error.
    """
    if len(raws) == 1 and not raws[0].arm:
        return _build_one(raws[0], stated, survey)
    spectra, missing = {}, {}
    for raw in raws:
        try:
            spectra[raw.arm] = _build_one(raw, stated, survey)
        except NothingUsable as problem:
            missing[raw.arm] = str(problem)
    if not spectra:
        raise InputError("; ".join(f"arm {arm}: {problem}" for arm, problem in missing.items()))
    expected = survey.arms if survey is not None else ()
    missing = {arm: missing.get(arm, "not in the file") for arm in (*expected, *missing)
               if arm not in spectra}  # fmt: skip
    return Arms(spectra, missing)


class NothingUsable(InputError):
    """A spectrum of which every pixel is masked."""


def _build_one(raw: RawSpectrum, stated: Stated, survey: Survey | None) -> Spectrum:
    medium = _agree_on_medium(stated.medium, raw)
    meta: dict[str, Any] = dict(raw.header)
    if survey is not None:
        _check_grid(raw)
        meta["survey"] = survey.name
        meta["frame"] = raw.frame or "unknown"
        meta.setdefault("velocity_correction", 0.0)
    resolution = stated.resolution if stated.resolution is not None else raw.resolution
    try:
        return Spectrum(
            raw.wavelength,
            raw.flux,
            raw.ivar,
            mask=raw.mask,
            resolution=resolution if resolution is not None else find_resolution(raw.header),
            medium=medium,
            snr=stated.snr,
            name=raw.star or find_name(raw.header) or raw.name,
            meta=meta,
            survey_mask=raw.bits,
        )
    except InputError as problem:
        kind = InputError if _has_weight(raw) else NothingUsable
        raise kind(f"{raw.name}: {problem}") from None


def _has_weight(raw: RawSpectrum) -> bool:
    """Whether any pixel can be used."""
    usable = np.isfinite(raw.flux)
    if raw.ivar is not None:
        usable &= np.isfinite(raw.ivar) & (raw.ivar > 0)
    return bool(np.any(usable if raw.mask is None else usable & (raw.mask == 0)))


def _check_grid(raw: RawSpectrum) -> None:
    """Refuse a survey's wavelengths where they turn round or repeat: no data model has that."""
    shapes = {len(one) for one in (raw.wavelength, raw.flux) if one.ndim == 1}
    if len(shapes) != 1 or raw.flux.ndim != 1:
        raise InputError(
            f"{raw.name}: wavelengths of shape {raw.wavelength.shape} and fluxes of shape "
            f"{raw.flux.shape}; are the axes swapped?"
        )
    step = np.diff(raw.wavelength)
    if not ((step > 0).all() or (step < 0).all()):
        first = int(np.argmax(step * np.sign(np.median(step)) <= 0))
        raise InputError(
            f"{raw.name}: wavelengths {raw.wavelength[first]:.4f} and "
            f"{raw.wavelength[first + 1]:.4f} Angstrom follow one another in pixels {first} and "
            f"{first + 1}; they must rise, or fall, throughout: the file is damaged"
        )


def _agree_on_medium(medium: str | None, raw: RawSpectrum) -> str:
    """The stated medium, else the file's; a contradiction or silence is an error."""
    known, where = _find_medium(raw)
    if medium is None and known is None:
        raise InputError(
            f"{raw.name}: neither the file nor you say whether its wavelengths are in air or in "
            "vacuum; give medium='air' or medium='vacuum' (--medium)"
        )
    if medium is not None and known is not None and medium != known:
        raise InputError(
            f"{raw.name}: medium={medium!r} was given but {where}; leave it out, or correct the "
            "header"
        )
    return medium or known  # type: ignore[return-value]


def _find_medium(raw: RawSpectrum) -> tuple[str | None, str]:
    if raw.medium is not None:
        return raw.medium, f"the survey's spectra are in {raw.medium}"
    known, card = find_medium(raw.header)
    return known, f"the header says {card}"
