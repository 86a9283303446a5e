"""Several spectra of one star, by the arms of a spectrograph or by several spectrographs.

Every arm has its own pixels, unit of flux, resolving power and continuum, and may have a velocity
zero point of its own. Arms may overlap in wavelength. `Arms` puts their pixels one after another,
so that all that reads the pixels of a `Spectrum` reads those of several arms as well.
"""

import contextlib
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float64, Int64, Shaped

from emulators.errors import InputError

from .spectrum import MaskBit, Spectrum

ZERO_POINT = "zero_point_"
"""A parameter of this name and an arm's: its velocities minus those of the first arm [km/s]."""


@dataclass(frozen=True, eq=False, repr=False)
class Arms:
    """Spectra of one star by several arms; its pixels are those of all, arm after arm.

    Parameters
    ----------
    spectra : dict
        `Spectrum` by the arm's name. ``v_rad`` is the velocity that the first arm measures.
    missing : dict
        Arms of the spectrograph without a usable spectrum of this star, and why: by the reader.
    """

    spectra: dict[str, Spectrum]
    missing: dict[str, str] = field(default_factory=dict)

    @classmethod
    def gather(cls, spectra: Any) -> "Arms":
        """Arms from a mapping by name, or from a sequence, where they are called 1, 2, ...

        Raises
        ------
        InputError
            No arm, a name of other characters than letters, digits and underscores, something
            that is no `Spectrum`.
        """
        if isinstance(spectra, Arms):
            return spectra
        if not isinstance(spectra, Mapping | Sequence) or isinstance(spectra, str):
            raise InputError(
                f"spectrum: a {type(spectra).__name__}; give a Spectrum, or several of one star "
                "as a mapping by arm or as a list"
            )
        if not isinstance(spectra, Mapping):
            spectra = {str(i): spectrum for i, spectrum in enumerate(spectra, 1)}
        if not spectra:
            raise InputError("spectrum: no arm was given; give at least one Spectrum")
        for name, spectrum in spectra.items():
            if not re.fullmatch(r"\w+", str(name), re.ASCII):
                raise InputError(f"spectrum: arm {name!r}; use letters, digits and underscores")
            if not isinstance(spectrum, Spectrum):
                raise InputError(
                    f"spectrum: arm {name} is a {type(spectrum).__name__}; give a Spectrum"
                )
        return cls({str(name): spectrum for name, spectrum in spectra.items()})

    def __repr__(self) -> str:
        parts = [f"{name}: {one!r}" for name, one in self.spectra.items()]
        return f"Arms({', '.join([*parts, *(f'{name}: missing' for name in self.missing)])})"

    def __len__(self) -> int:
        return sum(map(len, self.spectra.values()))

    @property
    def name(self) -> str:
        """Of the star, by the first arm that has one."""
        return next((one.name for one in self.spectra.values() if one.name), "")

    @property
    def medium(self) -> str:
        """Of the wavelengths as they were given: air, vacuum, or both."""
        return " and ".join(sorted({one.medium for one in self.spectra.values()}))

    @property
    def wavelength(self) -> Float64[np.ndarray, " pixel"]:
        """Vacuum Angstrom, ascending within each arm."""
        return self._join("wavelength")

    @property
    def flux(self) -> Float64[np.ndarray, " pixel"]:
        """In the unit of each arm."""
        return self._join("flux")

    @property
    def ivar(self) -> Float64[np.ndarray, " pixel"]:
        """Inverse variance of the flux."""
        return self._join("ivar")

    @property
    def mask(self) -> Int64[np.ndarray, " pixel"]:
        """Bits of `MaskBit`; nonzero = bad."""
        return self._join("mask")

    @property
    def width(self) -> Float64[np.ndarray, " pixel"]:
        """Of each pixel [Angstrom]."""
        return self._join("width")

    @property
    def good(self) -> Bool[np.ndarray, " pixel"]:
        """Pixels that may be fitted: no mask bit set."""
        return self.mask == 0

    @property
    def snr(self) -> float:
        """Median signal-to-noise ratio of the good pixels of all arms."""
        good = self.good
        return float(np.median(self.flux[good] * np.sqrt(self.ivar[good])))

    @property
    def unused(self) -> tuple[str, ...]:
        """Arms without a good pixel, and those that are missing."""
        dark = [name for name, one in self.spectra.items() if not one.good.any()]
        return (*dark, *self.missing)

    @property
    def zero_points(self) -> tuple[str, ...]:
        """The parameters: one for each arm but the first."""
        return tuple(ZERO_POINT + name for name in self.spectra)[1:]

    def split(self, values: Shaped[np.ndarray, "*draw pixel"]) -> dict[str, np.ndarray]:
        """Values on all pixels, their last axis, as those of each arm: of `Fit.model_flux`, say."""
        ends = np.cumsum([len(one) for one in self.spectra.values()])
        return dict(zip(self.spectra, np.split(values, ends[:-1], axis=-1), strict=True))

    def masked(self, where: Any, bit: MaskBit = MaskBit.USER) -> "Arms":
        """Return a copy with `bit` set where the arrays of `where`, by arm, are true.

        An arm may lose all its pixels, though not every arm.
        """
        if not isinstance(where, Mapping):
            raise InputError("mask: there are several arms; give a mapping from arms to arrays")
        where, spectra = self.choose("mask", where), dict(self.spectra)
        for name, one in self.spectra.items():
            if where[name] is not None:
                with of_arm(name):
                    spectra[name] = one.marked(where[name], bit)
        arms = Arms(spectra, self.missing)
        if not arms.good.any():
            raise InputError(f"mask: no arm of {', '.join(self.spectra)} has a usable pixel")
        return arms

    def window(self, start: float | int, stop: float | int) -> "Arms":
        """Mask the pixels outside ``start <= wavelength <= stop`` [vacuum Angstrom]."""
        outside = {
            name: (one.wavelength < start) | (one.wavelength > stop)
            for name, one in self.spectra.items()
        }
        if all(where.all() for where in outside.values()):
            raise InputError(f"wavelength: no pixel of any arm lies in {start:g} .. {stop:g}")
        return self.masked(outside, MaskBit.OUTSIDE)

    def mask_counts(self) -> dict[str, int]:
        """How many pixels carry each mask bit, by lower-case name; unused bits are left out."""
        counts: dict[str, int] = {}
        for one in self.spectra.values():
            for name, count in one.mask_counts().items():
                counts[name] = counts.get(name, 0) + count
        return counts

    def choose(self, key: str, given: Any) -> dict[str, Any]:
        """An option of each arm: from a mapping by arm, None where it has none; or one for all."""
        if not isinstance(given, Mapping):
            return dict.fromkeys(self.spectra, given)
        for name in given:
            if name not in self.spectra:
                raise InputError(f"{key}: no arm {name!r}; arms: {', '.join(self.spectra)}")
        return {name: given.get(name) for name in self.spectra}

    def _join(self, what: str) -> np.ndarray:
        return np.concatenate([getattr(one, what) for one in self.spectra.values()])


class Arm(NamedTuple):
    """One arm on its way into a fit, or a spectrum that is the only one.

    Attributes
    ----------
    name
        Empty for a spectrum that is the only one.
    spectrum
    resolution
        Resolving power, one number or one a pixel.
    degree
        Of the continuum; None for the default.
    zero_point
        The parameter; None for the first arm.
    """

    name: str
    spectrum: Spectrum
    resolution: Any
    degree: int | None
    zero_point: str | None


def list_arms(spectrum: Spectrum | Arms, resolution: Any, degree: Any) -> list[Arm]:
    """The arms of a fit, with their options.

    Raises
    ------
    InputError
        A resolving power that is missing or not positive; an option of an arm that is not there.
    """
    if isinstance(spectrum, Spectrum):
        for key, given in (("resolution", resolution), ("continuum_degree", degree)):
            if isinstance(given, Mapping):
                raise InputError(f"{key}: a mapping by arm for a single spectrum; give a number")
        return [Arm("", spectrum, find_resolution(spectrum, resolution), degree, None)]
    powers = spectrum.choose("resolution", resolution)
    degrees = spectrum.choose("continuum_degree", degree)
    arms = []
    for name, one in spectrum.spectra.items():
        with of_arm(name):
            power = find_resolution(one, powers[name])
        zero_point = ZERO_POINT + name if arms else None
        arms.append(Arm(name, one, power, degrees[name], zero_point))
    return arms


@contextlib.contextmanager
def of_arm(name: str) -> Iterator[None]:
    """Name the arm in an error of its input; an empty name adds nothing."""
    try:
        yield
    except InputError as problem:
        raise InputError(f"arm {name}: {problem}" if name else str(problem)) from None


def find_resolution(spectrum: Spectrum, resolution: Any) -> Any:
    """A positive resolving power, the spectrum's own by default: a number, or one a pixel."""
    resolution = spectrum.resolution if resolution is None else resolution
    if resolution is None:
        raise InputError(
            "resolution: the spectrum does not carry its resolving power; give resolution= "
            "(--resolution), lambda / FWHM"
        )
    array = np.asarray(resolution, np.float64)
    if array.shape not in ((), (len(spectrum),)):
        raise InputError(f"resolution: shape {array.shape}; give one number or one a pixel")
    if not (np.isfinite(array).all() and (array > 0).all()):
        raise InputError("resolution: give a positive resolving power lambda / FWHM")
    return array if array.ndim else float(array)


def select_arms(arms: Sequence[Arm], check: Callable[[Arm], Any]) -> tuple[list[Arm], list[Any]]:
    """The arms that pass a check, and what it returned for each.

    Raises
    ------
    InputError
        If no arm passes: what the check said of each.
    """
    passed, found, problems = [], [], []
    for arm in arms:
        try:
            with of_arm(arm.name):
                found.append(check(arm))
        except InputError as problem:
            problems.append(str(problem))
        else:
            passed.append(arm)
    if not passed:
        raise InputError("; ".join(problems))
    return passed, found
