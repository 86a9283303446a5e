"""A seeded fuzzer: one good star in files of ten kinds, and what may happen to such files.

Every damage has a fate, what must become of the star in a survey:

- ``right``: the numbers of the undamaged file, and no flag that it has not;
- ``refused``: a row with the flag ``failed`` and the reason;
- ``open``: either, or a flag that the undamaged file has not. A wrong number without a flag never.
"""

import gzip
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from damage_layout import layout_damages
from good_files import PLAIN, SUFFIXES, WRITERS, Star, Unfit

# Pixels that are hurt where not all are: always as many, so that all fits share a compilation.
FEW = 8


class Damaged(NamedTuple):
    """A file of the fuzzer."""

    path: Path
    kind: str
    damage: str
    fate: str


# ---- damage to what is in the file ---------------------------------------------------------------


def _few(star: Star) -> np.ndarray:
    """The same few pixels for every damage, apart from one another and inside the spectrum."""
    return (np.linspace(0.2, 0.8, FEW) * len(star.flux)).astype(int)


def _put(star: Star, name: str, where: Any, values: Any) -> Star:
    array = np.array(getattr(star, name), np.float64)
    array[where] = values
    return star._replace(**{name: array})


def _duplicate(rng: np.random.Generator, star: Star) -> Star:
    """Pixels that took the wavelength of the one before, and keep a flux of their own."""
    where = _few(star)
    return _put(star, "wavelength", where, star.wavelength[where - 1])


def _twice(rng: np.random.Generator, star: Star) -> Star:
    return star.at(np.tile(np.arange(len(star.flux)), 2))


def _shuffle(rng: np.random.Generator, star: Star) -> Star:
    return star.at(rng.permutation(len(star.flux)))


def _random_flux(rng: np.random.Generator, star: Star) -> Star:
    return star._replace(flux=rng.uniform(100, 1500, len(star.flux)))


def _jump(rng: np.random.Generator, star: Star) -> Star:
    """The end of one exposure is on the scale of another."""
    flux = star.flux.copy()
    flux[rng.integers(150, 250) :] *= rng.uniform(3, 30)
    return star._replace(flux=flux)


def _swap(rng: np.random.Generator, star: Star) -> Star:
    return Star(star.flux, star.wavelength, star.ivar, star.unit)


def _swap_bright(rng: np.random.Generator, star: Star) -> Star:
    """Fluxes that could be wavelengths."""
    factor = np.median(star.wavelength) / np.median(star.flux)
    return _swap(rng, star._replace(flux=star.flux * factor, ivar=star.ivar / factor**2))


Change = Callable[[np.random.Generator, Star], Star]
VALUES: dict[str, tuple[Change, str]] = {
    "descending": (lambda rng, s: s.at(slice(None, None, -1)), "right"),
    "shuffled": (_shuffle, "right"),
    "every pixel twice": (_twice, "right"),
    "few NaN": (lambda rng, s: _put(s, "flux", _few(s), np.nan), "right"),
    "few without ivar": (lambda rng, s: _put(s, "ivar", _few(s), 0.0), "right"),
    "few negative ivar": (lambda rng, s: _put(s, "ivar", _few(s), -1.0), "right"),
    "few infinite": (lambda rng, s: _put(s, "flux", _few(s), np.inf), "right"),
    "few duplicated": (_duplicate, "right"),
    "in nm": (lambda rng, s: s._replace(wavelength=s.wavelength / 10, unit="nm"), "right"),
    "in nm without a unit": (
        lambda rng, s: s._replace(wavelength=s.wavelength / 10, unit=None), "refused"),
    "in nm called Angstrom": (lambda rng, s: s._replace(wavelength=s.wavelength / 10), "refused"),
    "in furlongs": (lambda rng, s: s._replace(unit="furlong per fortnight"), "refused"),
    "in Hz": (lambda rng, s: s._replace(unit="Hz"), "refused"),
    "all NaN": (lambda rng, s: s._replace(flux=s.flux * np.nan), "refused"),
    "no ivar at all": (lambda rng, s: s._replace(ivar=0 * s.ivar), "refused"),
    "no light": (lambda rng, s: s._replace(flux=0 * s.flux), "refused"),
    "dark": (lambda rng, s: s._replace(flux=-s.flux), "refused"),
    "wavelengths NaN": (lambda rng, s: _put(s, "wavelength", _few(s), np.nan), "refused"),
    "wavelengths zero": (lambda rng, s: _put(s, "wavelength", _few(s), 0.0), "refused"),
    "one wavelength": (lambda rng, s: s._replace(wavelength=0 * s.wavelength + 5155), "refused"),
    "one pixel": (lambda rng, s: s.at(slice(200, 201)), "refused"),
    "no pixel": (lambda rng, s: s.at(slice(0, 0)), "refused"),
    "columns swapped": (_swap, "refused"),
    "columns swapped, bright": (_swap_bright, "open"),
    "sigma for ivar": (lambda rng, s: s._replace(ivar=s.ivar**-0.5), "open"),
    "ivar 1e30": (lambda rng, s: s._replace(ivar=s.ivar * 1e30), "open"),
    "ivar 1e-30": (lambda rng, s: s._replace(ivar=s.ivar * 1e-30), "open"),
    "flux 1e200": (lambda rng, s: s._replace(flux=s.flux * 1e200), "open"),
    "backwards": (lambda rng, s: s._replace(flux=s.flux[::-1]), "open"),
    "random flux": (_random_flux, "open"),
    "a jump": (_jump, "open"),
}  # fmt: skip
# What a survey's layout never has is refused there, and echelle orders may have elsewhere.
UNORDERED = ("shuffled", "every pixel twice", "few duplicated")


# ---- damage to bytes -----------------------------------------------------------------------------


def _cut(rng: np.random.Generator, data: bytes) -> bytes:
    return data[: rng.integers(1, len(data))]


def _overwrite(rng: np.random.Generator, data: bytes, new: bytes) -> bytes:
    start = rng.integers(0, max(len(data) - len(new), 1))
    return data[:start] + new + data[start + len(new) :]


def _flip(rng: np.random.Generator, data: bytes) -> bytes:
    array = np.frombuffer(data, np.uint8).copy()
    where = rng.integers(0, len(array), 5)
    array[where] ^= (1 << rng.integers(0, 8, 5)).astype(np.uint8)
    return array.tobytes()


BYTES: dict[str, tuple[Callable[[np.random.Generator, bytes], bytes], str]] = {
    "cut": (_cut, "open"),
    "cut to its first bytes": (lambda rng, d: d[: rng.integers(1, 50)], "refused"),
    "empty": (lambda rng, d: b"", "refused"),
    "random bytes": (lambda rng, d: rng.bytes(len(d)), "refused"),
    "a random block": (lambda rng, d: _overwrite(rng, d, rng.bytes(512)), "open"),
    "a block of zeros": (lambda rng, d: _overwrite(rng, d, bytes(2880)), "open"),
    "bits flipped": (_flip, "open"),
    "bytes before it": (lambda rng, d: rng.bytes(int(rng.integers(1, 9))) + d, "open"),
    "bytes lost": (lambda rng, d: _cut(rng, d) + d[-len(d) // 3 :], "open"),
    "packed": (lambda rng, d: gzip.compress(d), "open"),
    "packed and cut": (lambda rng, d: gzip.compress(d)[: len(d) // 9], "refused"),
    "a web page": (lambda rng, d: b"<html><body>404 Not Found</body></html>", "refused"),
}


def damaged_files(folder: Path, star: Star, num: int, seed: int) -> Iterator[Damaged]:
    """Files of all kinds with all damages, in an order of chance, as many as are asked for."""
    rng = np.random.default_rng(seed)
    layouts = {kind: layout_damages(kind) for kind in WRITERS}
    every = [(kind, name) for kind in WRITERS for name in (*VALUES, *BYTES, *layouts[kind])]
    made = 0
    for place in rng.permutation(len(every)):
        kind, name = every[place]
        path = folder / f"{made:03d}-{kind}-{name.replace(' ', '-')}{SUFFIXES[kind]}"
        try:
            fate = _make(path, kind, name, star, rng, layouts[kind])
        except Unfit:
            path.unlink(missing_ok=True)
            continue
        yield Damaged(path, kind, name, fate)
        made += 1
        if made == num:
            return
    raise ValueError(f"num: there are {made} damages")


def _make(path, kind, name, star, rng, layout) -> str:
    if name in VALUES:
        change, fate = VALUES[name]
        # The same numbers in files of all kinds: every other spectrum costs a compilation.
        same = np.random.default_rng(list(VALUES).index(name))
        WRITERS[kind](path, change(same, star))
        return "refused" if name in UNORDERED and kind not in PLAIN else fate
    WRITERS[kind](path, star)
    if name in layout:
        apply, fate = layout[name]
        try:
            apply(path)
        except IndexError:  # no such card in this kind of file
            raise Unfit from None
        return fate
    spoil, fate = BYTES[name]
    path.write_bytes(spoil(rng, path.read_bytes()))
    return fate
