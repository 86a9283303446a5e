"""An observed spectrum: what was measured, which pixels count, and in which wavelengths."""

import copy
import enum
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float64, Int64

from emulators.errors import InputError

MEDIA = ("air", "vacuum")
# Wavelengths outside these [Angstrom] are almost surely in another unit.
_SHORTEST, _LONGEST = 900.0, 300_000.0
# Of a flux or inverse variance: no unit has such numbers, damaged files do, chi^2 would overflow.
_LARGEST = 1e100


class MaskBit(enum.IntFlag):
    """Why a pixel is not fitted. A pixel with no bit set is good."""

    USER = 1  # marked bad by the user or by the file
    BAD_FLUX = 2  # flux is NaN, infinite or beyond 1e100
    BAD_ERROR = 4  # inverse variance is zero, negative, NaN, infinite or beyond 1e100
    DUPLICATE = 8  # repeats the wavelength of its neighbour in the same order, or a pixel elsewhere
    OUTSIDE = 16  # outside the wavelengths that the emulator (or the user's window) covers
    MODEL = 32  # known, before the fit, to be badly modelled
    SPIKE = 64  # far above the continuum: a cosmic ray, or emission


@dataclass(frozen=True, init=False, eq=False, repr=False)
class Spectrum:
    """One observed spectrum, ascending in vacuum wavelength, with nothing thrown away.

    Pixels that cannot be used stay, with a bit of `MaskBit` that says why. Echelle orders may
    follow one another and overlap: the pixels of all orders are sorted together and all kept,
    each with the width that it has in its own order.

    Parameters
    ----------
    wavelength : [pixel], Angstrom, in `medium`
        Ascending, descending, or several orders one after another; may be a Quantity.
    flux : [pixel]
        In any unit, normalised or not.
    ivar : [pixel], optional
        Inverse variance of `flux`. Not given: `snr` must be.
    mask : [pixel], optional
        Nonzero (or True) marks a bad pixel.
    resolution : float or [pixel], optional
        Resolving power lambda / FWHM of the spectrograph.
    medium : {"vacuum", "air"}
        What `wavelength` is measured in. Air is converted to vacuum here.
    snr : float, optional
        Signal-to-noise ratio a pixel at the continuum, for spectra without errors: the error is the
        local continuum level (95th percentile of the flux within 2% of wavelength) over `snr`.
    name : str
        What to call the star.
    meta : mapping
        Anything worth keeping from the file's header.
    survey_mask : [pixel], integer, optional
        The bits that a survey's pipeline set, all of them. It is kept, and judges nothing: which of
        them mean a bad pixel is for `mask` to say.

    Attributes
    ----------
    wavelength : [pixel], float64
        Vacuum Angstrom, ascending.
    width : [pixel], float64
        Width of each pixel [Angstrom].
    mask : [pixel], int64
        Bits of `MaskBit`; nonzero = bad.
    medium : str
        Medium of the *input*; inside, wavelengths are always vacuum.

    Examples
    --------
    >>> import numpy as np
    >>> spectrum = Spectrum(np.linspace(5100, 5101, 5), [1, 1, np.nan, 1, 1], snr=100)
    >>> spectrum.mask.tolist()
    [0, 0, 2, 0, 0]
    """

    wavelength: Float64[np.ndarray, " pixel"]
    flux: Float64[np.ndarray, " pixel"]
    ivar: Float64[np.ndarray, " pixel"]
    mask: Int64[np.ndarray, " pixel"]
    width: Float64[np.ndarray, " pixel"]
    resolution: float | np.ndarray | None
    medium: str
    name: str
    meta: dict[str, Any]
    survey_mask: Int64[np.ndarray, " pixel"] | None

    def __init__(
        self,
        wavelength: Any,
        flux: Any,
        ivar: Any = None,
        *,
        mask: Any = None,
        resolution: Any = None,
        medium: str = "vacuum",
        snr: float | int | None = None,
        name: str = "",
        meta: Mapping[str, Any] | None = None,
        survey_mask: Any = None,
    ):
        wavelength, flux = _vector(wavelength, "wavelength", "Angstrom"), _vector(flux, "flux")
        num = len(wavelength)
        if num < 2:
            raise InputError(f"wavelength: {num} pixels; a spectrum needs at least two")
        _same_length(flux, num, "flux")
        _check_wavelength(wavelength)
        if medium not in MEDIA:
            raise InputError(f"medium: {medium!r} is not known; give 'air' or 'vacuum'")

        bits = np.zeros(num, np.int64)
        if mask is not None:
            # A masked or missing mask value is bad, and so is NaN: it is not zero.
            marked = np.ma.filled(np.ma.asarray(mask), 1)
            _same_length(marked, num, "mask")
            bits[np.asarray(marked) != 0] |= MaskBit.USER
        bits[~(np.abs(flux) < _LARGEST)] |= MaskBit.BAD_FLUX

        if ivar is not None and snr is not None:
            raise InputError(
                f"snr: {snr:g} was given but the spectrum has errors of its own; drop one of them"
            )
        if ivar is not None:
            ivar = _vector(ivar, "ivar")
            _same_length(ivar, num, "ivar")
            no_weight = ~((ivar > 0) & (ivar < _LARGEST))
            bits[no_weight] |= MaskBit.BAD_ERROR
            ivar = np.where(no_weight, 0.0, ivar)
        elif snr is None:
            raise InputError(
                "ivar: the spectrum has no errors; give ivar=, or snr= (--snr), one S/N a pixel"
            )

        if medium == "air":
            from emulators.wavelength import air_to_vacuum

            wavelength = np.asarray(air_to_vacuum(wavelength), np.float64)
        width, duplicate = _orders(wavelength)
        bits[duplicate | _repeated(wavelength, flux)] |= MaskBit.DUPLICATE
        if ivar is None:
            ivar = _ivar_from_snr(wavelength, flux, bits == 0, snr)
        order = np.argsort(wavelength, kind="stable")

        for key, value in {
            "wavelength": wavelength[order],
            "flux": flux[order],
            "ivar": ivar[order],
            "mask": bits[order],
            "width": width[order],
            "resolution": _resolution(resolution, order),
            "medium": medium,
            "name": name,
            "meta": dict(meta or {}),
            "survey_mask": _survey_mask(survey_mask, order),
        }.items():
            object.__setattr__(self, key, value)
        self.check_good()

    def __repr__(self) -> str:
        return (
            f"Spectrum({self.name or 'unnamed'}: {len(self)} pixels, {int(self.good.sum())} good, "
            f"{self._describe_range()} vacuum, S/N {self.snr:.0f})"
        )

    def __len__(self) -> int:
        return len(self.wavelength)

    @property
    def good(self) -> Bool[np.ndarray, " pixel"]:
        """Pixels that may be fitted: no mask bit set."""
        return self.mask == 0

    @property
    def snr(self) -> float:
        """Median signal-to-noise ratio of the good pixels."""
        good = self.good
        return float(np.median(self.flux[good] * np.sqrt(self.ivar[good])))

    def masked(self, where: Any, bit: MaskBit = MaskBit.USER) -> "Spectrum":
        """Return a copy with `bit` set on the pixels where `where` is true."""
        other = self.marked(where, bit)
        other.check_good()
        return other

    def marked(self, where: Any, bit: MaskBit = MaskBit.USER) -> "Spectrum":
        """As `masked`, though no good pixel may be left: for one arm of several."""
        where = np.asarray(where)
        _same_length(where, len(self), "mask")
        other = copy.copy(self)
        mask = self.mask.copy()
        mask[where != 0] |= int(bit)
        object.__setattr__(other, "mask", mask)
        return other

    def window(self, start: float | int, stop: float | int) -> "Spectrum":
        """Mask (not cut) the pixels outside ``start <= wavelength <= stop`` [vacuum Angstrom]."""
        inside = (self.wavelength >= start) & (self.wavelength <= stop)
        if not inside.any():
            raise InputError(
                f"wavelength: no pixel lies in {start:g} .. {stop:g} Angstrom (vacuum); "
                f"the spectrum covers {self._describe_range()}"
            )
        return self.masked(~inside, MaskBit.OUTSIDE)

    def cut(self, pixels: slice) -> "Spectrum":
        """Some pixels that follow one another, with nothing of the others, good or not."""
        other = copy.copy(self)
        for key in ("wavelength", "flux", "ivar", "mask", "width", "resolution", "survey_mask"):
            if isinstance(values := getattr(self, key), np.ndarray):
                object.__setattr__(other, key, values[pixels])
        return other

    def mask_counts(self) -> dict[str, int]:
        """How many pixels carry each mask bit, by lower-case name; unused bits are left out."""
        counts = {bit.name.lower(): int(np.sum(self.mask & bit > 0)) for bit in MaskBit if bit.name}
        return {name: count for name, count in counts.items() if count}

    def check_good(self) -> None:
        """Refuse a spectrum without a good pixel, and say why it has none."""
        if not self.good.any():
            reasons = ", ".join(f"{name} {count}" for name, count in self.mask_counts().items())
            raise InputError(f"mask: none of {len(self)} pixels is usable ({reasons})")

    def _describe_range(self) -> str:
        return f"{self.wavelength[0]:.1f} .. {self.wavelength[-1]:.1f} Angstrom"


def _vector(values: Any, what: str, unit: str | None = None) -> np.ndarray:
    """One-dimensional float64 array; masked entries become NaN; a Quantity is converted."""
    if unit is not None and hasattr(values, "to_value"):
        values = values.to_value(unit)
    values = getattr(values, "value", values)
    try:
        array = np.ma.filled(np.ma.asarray(values).astype(np.float64), np.nan)
    except (TypeError, ValueError):
        raise InputError(f"{what}: not numbers") from None
    if array.ndim != 1:
        raise InputError(f"{what}: shape {array.shape}; give one dimension, one value a pixel")
    return array


def _same_length(array: np.ndarray, num: int, what: str) -> None:
    if array.shape != (num,):
        raise InputError(f"{what}: shape {array.shape} does not match {num} wavelengths")


def _check_wavelength(wavelength: np.ndarray) -> None:
    bad = int(np.sum(~np.isfinite(wavelength)))
    if bad:
        raise InputError(f"wavelength: {bad} of {len(wavelength)} values are not finite")
    low, high = wavelength.min(), wavelength.max()
    if low < _SHORTEST or high > _LONGEST:
        guess = "micron" if high < 50 else "nm" if low > _SHORTEST / 10 else "another unit"
        raise InputError(
            f"wavelength: runs {low:g} .. {high:g}, which is not Angstrom (is it {guess}?); "
            "state the unit in the file or as wavelength_unit= (--wavelength-unit)"
        )
    if low == high:
        raise InputError(f"wavelength: every pixel is at {low:g} Angstrom")


def _orders(wavelength: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Width of each pixel in its own order, and which pixels repeat their neighbour's wavelength.

    A new order starts where the wavelength steps against its usual direction. Where that happens
    at every few pixels the file is merely unsorted, and is taken as one order.
    """
    step = np.diff(wavelength)
    direction = np.sign(np.median(np.sign(step))) or 1.0
    breaks = np.flatnonzero(step * direction < 0) + 1
    if len(breaks) > len(wavelength) // 10:
        pieces = [np.argsort(wavelength, kind="stable")]
    else:
        pieces = np.split(np.arange(len(wavelength)), breaks)
    width = np.empty_like(wavelength)
    duplicate = np.zeros(len(wavelength), bool)
    for piece in pieces:
        first = np.concatenate([[True], np.diff(wavelength[piece]) != 0])
        duplicate[piece[~first]] = True
        distinct = wavelength[piece[first]]
        if len(distinct) == 1:
            spacing = np.full(1, np.median(np.abs(step[step != 0])))
        else:
            # The nearer neighbour sets the width, so that a pixel beside a gap is not a wide one.
            gap = np.abs(np.diff(distinct))
            spacing = np.minimum(np.append(gap[0], gap), np.append(gap, gap[-1]))
        width[piece] = spacing[np.cumsum(first) - 1]
    return width, duplicate


def _repeated(wavelength: np.ndarray, flux: np.ndarray) -> np.ndarray:
    """Pixels with the wavelength and flux of another: written twice, not measured twice."""
    order = np.lexsort((flux, wavelength))
    same = (np.diff(wavelength[order]) == 0) & (np.diff(flux[order]) == 0)
    repeated = np.zeros(len(wavelength), bool)
    repeated[order[1:][same]] = True
    return repeated


def _ivar_from_snr(wavelength, flux, good, snr) -> np.ndarray:
    """Inverse variance from one S/N a pixel at the local continuum level."""
    if not (np.isfinite(snr) and snr > 0):
        raise InputError(f"snr: {snr:g} is not a positive number")
    if not good.any():
        return np.ones_like(flux)  # the caller refuses the spectrum and says why
    log = np.log(wavelength)
    centers = np.arange(log.min(), log.max() + 0.01, 0.01)
    levels = np.full(len(centers), np.nan)
    for i, center in enumerate(centers):
        near = good & (np.abs(log - center) < 0.01)
        if near.any():
            levels[i] = np.percentile(flux[near], 95)
    known = np.isfinite(levels)
    level = np.interp(log, centers[known], levels[known])
    if not (level > 0).all():
        raise InputError(
            "snr: the flux has no positive continuum level to scale errors from; give ivar="
        )
    return (snr / level) ** 2


def _survey_mask(mask: Any, order: np.ndarray) -> np.ndarray | None:
    if mask is None:
        return None
    array = np.asarray(mask)
    if array.dtype.kind not in "iu":
        raise InputError(f"survey_mask: {array.dtype} values; give integers, one bit a reason")
    _same_length(array, len(order), "survey_mask")
    return array[order].astype(np.int64)


def _resolution(resolution: Any, order: np.ndarray) -> float | np.ndarray | None:
    if resolution is None:
        return None
    array = np.asarray(resolution, np.float64)
    if array.ndim:
        _same_length(array, len(order), "resolution")
        array = array[order]
    if not (np.isfinite(array).all() and (array > 0).all()):
        raise InputError("resolution: give a positive resolving power lambda / FWHM")
    return array if array.ndim else float(array)
