"""Which size of emulator is good enough for a spectrograph, a star and the labels wanted?"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float64
from scipy.optimize import brentq

from emulators import pretrained
from emulators.emulator import Emulator, load_emulator
from emulators.errors import InputError
from emulators.labels import LabelSpace
from emulators.physics.synthesizer import LTESynthesizer, Synthesizer
from scaling.label_bias import (
    Covariance,
    Design,
    error_model_of,
    make_design,
    make_pixels,
    make_weights,
    observed_covariance,
    response,
    scatter,
)
from scaling.local_error import Fitted, by_comparison, by_synthesis, stars_near, synthesize_stars

# The systematic error of an emulator that is good enough, in units of the statistical one. Added
# in quadrature it makes the whole 2% larger.
THRESHOLD = 0.2

# How far the squared error of the best emulator may be off the one needed, either way.
_WIDEST = 1e12


class Size(NamedTuple):
    """A candidate: its name, and its mean squared error over the label box."""

    name: str
    mse: float


@dataclass(frozen=True, eq=False)
class Choice:
    """What each candidate would do to the labels, and the smallest one that is good enough.

    Attributes
    ----------
    labels, units : tuple of str
        Labels wanted.
    stars : tuple of dict
        All labels of the reference stars.
    sizes : tuple of Size
        Candidates, the one with the largest error, and so the smallest, first.
    statistical : [star, label]
        Error by photon noise alone, in the unit of the label.
    systematic : [size, star, label]
        Error that the emulator causes, rms over stars like this one.
    needed_mse : float
        Mean squared error over the label box that puts the worst label just at `THRESHOLD`, with
        errors of the shape of the best emulator's; infinite where no error reaches it.
    settings : dict
        What was assumed.
    """

    labels: tuple[str, ...]
    units: tuple[str, ...]
    stars: tuple[dict[str, float], ...]
    sizes: tuple[Size, ...]
    statistical: Float64[np.ndarray, "star label"]
    systematic: Float64[np.ndarray, "size star label"]
    needed_mse: float
    settings: dict[str, Any]

    @property
    def ratio(self) -> Float64[np.ndarray, "size star label"]:
        """Systematic over statistical error."""
        return self.systematic / self.statistical

    @property
    def chosen(self) -> str | None:
        """The smallest size whose ratio is below `THRESHOLD` for every star and label."""
        for size, ratio in zip(self.sizes, self.ratio, strict=True):
            if np.all(ratio < THRESHOLD):
                return size.name
        return None

    def table(self) -> list[dict[str, Any]]:
        """One row a star and label: the statistical error, and the systematic one by size."""
        return [
            {
                "star": star,
                "label": label,
                "unit": self.units[column],
                "statistical": float(self.statistical[star, column]),
                "systematic": {
                    size.name: float(self.systematic[row, star, column])
                    for row, size in enumerate(self.sizes)
                },
            }
            for star in range(len(self.stars))
            for column, label in enumerate(self.labels)
        ]

    def to_dict(self) -> dict[str, Any]:
        """What ``stellarfit choose --json`` prints: plain numbers and strings."""
        return {
            "chosen": self.chosen,
            "threshold": THRESHOLD,
            "needed_mse": self.needed_mse,
            "sizes": {size.name: size.mse for size in self.sizes},
            "stars": list(self.stars),
            "rows": self.table(),
            "settings": self.settings,
        }


def choose_emulator(
    emulators: Sequence[Emulator] | None = None,
    *,
    stars: Sequence[Mapping[str, float | int] | Sequence[float | int] | np.ndarray],
    snr: float | int,
    resolution: float | int,
    labels: Sequence[str] | None = None,
    wavelength_range: tuple[float | int, float | int] | None = None,
    pixels_per_fwhm: float | int = 3.0,
    held: Sequence[str] = (),
    continuum_degree: int | None = None,
    sizes: Mapping[str, float] | None = None,
    synthesize: bool = True,
) -> Choice:
    """Predict what emulators of several sizes do to the labels of stars, and choose among them.

    The systematic error is what an emulator's errors near the star do to a fit that weighs the
    pixels as `stellarfit.fit` does, by photon noise and the error model of that emulator; the
    statistical one is what photon noise does to a fit with a perfect emulator. Formulae are in
    `scaling.label_bias`; how large the errors are near a star, in `scaling.local_error`. The
    derivatives are those of the emulators, so nothing is trained.

    Parameters
    ----------
    emulators
        Candidates with error models and one label space; by default the shipped ones.
    stars
        By label, or all labels in the emulators' order. Of those not named ``fe_h`` and
        ``<element>_fe`` are 0, the Sun's; the others must be given.
    snr
        Signal to noise a pixel, at the continuum.
    resolution
        Resolving power, wavelength over FWHM, of a Gaussian line spread.
    labels
        Those that must be good; by default all that are free.
    wavelength_range
        Vacuum Angstrom that the spectrum covers; by default all that the emulators know. The
        line spread of every pixel stays inside.
    pixels_per_fwhm
        Pixels a resolution element.
    held
        Labels, or ``v_rad``, that the fit does not vary. All others are free.
    continuum_degree
        Of the free polynomial that multiplies the spectrum; by default that of fits.
    sizes
        Mean squared errors over the label box of further candidates, by name, as a scaling law
        predicts them. Their errors are those of the best emulator, scaled.
    synthesize
        Measure the emulators' errors on 32 spectra that `LTESynthesizer` makes near each star, 80
        to 100 s a star on two cores. Without, for emulators of other codes' spectra, errors are
        taken half from error models, half from differences between the candidates.

    Returns
    -------
    Choice

    Raises
    ------
    InputError
        Unknown labels, a star outside the box, wavelengths outside the emulators, numbers that
        are not positive, candidates that cannot be compared, or that learned from other spectra
        than the synthesiser's.
    """
    given = {"snr": snr, "resolution": resolution, "pixels_per_fwhm": pixels_per_fwhm}
    for name, value in given.items():
        _check_positive(name, value)
    for name, mse in (sizes or {}).items():
        _check_positive(f"mean squared error of {name}", mse)
    ordered = _ordered(emulators, sizes or {})
    best = ordered[-1]
    space = best.label_space
    wanted = _wanted(space, labels, held)
    if len(stars) == 0:
        raise InputError("choose: no star is given; give at least one")
    points = [_point(space, star) for star in stars]
    limits = _limits(ordered, wavelength_range)
    pixels = make_pixels(limits, float(resolution), float(pixels_per_fwhm), best.step)

    def design(one):
        return partial(
            make_design, one, pixels=pixels, held=held, continuum_degree=continuum_degree
        )

    designs = [design(best)(point) for point in points]
    predict = _Prediction(designs, wanted, float(snr))
    known = [
        [observed_covariance(one, point, pixels, continuum_degree) for point in points]
        for one in ordered
    ]
    near = []
    if synthesize:
        synthesizer = _synthesizer(pixels.fine, space)
        _check_source(synthesizer, ordered)
        samples = [stars_near(space, point) for point in points]
        truths = [synthesize_stars(synthesizer, sample) for sample in samples]
        for one in ordered:
            pairs = zip(samples, truths, strict=True)
            near.append([by_synthesis(one, *pair, pixels, design(one)) for pair in pairs])
    else:
        errors = [
            by_comparison(ordered, models, point, pixels)
            for models, point in zip(zip(*known, strict=True), points, strict=True)
        ]
        for of_stars in zip(*errors, strict=True):
            near.append([[Fitted(*pair)] for pair in zip(designs, of_stars, strict=True)])
    found = {
        Size(one.name, float(error_model_of(one).mse)): predict.systematic(models, of_stars)
        for one, models, of_stars in zip(ordered, known, near, strict=True)
    }

    def scaled(factor):
        """An emulator whose errors are those of the best one, but for their amplitude."""
        errors = [[Fitted(d, e.scaled(factor)) for d, e in fitted] for fitted in near[-1]]
        return predict.systematic([model.scaled(factor) for model in known[-1]], errors)

    best_mse = float(error_model_of(best).mse)
    for name, mse in (sizes or {}).items():
        found[Size(name, float(mse))] = scaled(mse / best_mse)
    every = sorted(found, key=lambda size: -size.mse)
    return Choice(
        labels=wanted,
        units=tuple(space.units[space.index(name)] for name in wanted),
        stars=tuple(dict(zip(space.names, point.tolist(), strict=True)) for point in points),
        sizes=tuple(every),
        statistical=predict.statistical,
        systematic=np.stack([found[size] for size in every]),
        needed_mse=best_mse * _largest_factor(lambda f: scaled(f) / predict.statistical),
        settings={
            **{name: float(value) for name, value in given.items()},
            "first_pixel": float(pixels.wavelength[0]),
            "last_pixel": float(pixels.wavelength[-1]),
            "pixels": len(pixels.wavelength),
            "held": list(held),
            "errors": "synthesis" if synthesize else "comparison",
            "solar_scale": space.solar_scale,
        },
    )


class _Prediction:
    """The fits of the reference stars: the labels wanted, and what photon noise does to them."""

    def __init__(self, designs: list[Design], wanted: tuple[str, ...], snr: float):
        self.snr, self.rows = snr, [designs[0].names.index(name) for name in wanted]
        num_pixels = len(designs[0].columns)
        perfect = Covariance(np.zeros(num_pixels), np.zeros((num_pixels, 0)))
        photons = make_weights(perfect, snr)
        covariances = (response(design, photons)[1] for design in designs)
        self.statistical = np.stack([np.diagonal(c)[self.rows] ** 0.5 for c in covariances])

    def systematic(
        self, known: Sequence[Covariance], near: Sequence[Sequence[Fitted]]
    ) -> np.ndarray:
        """[star, label]: rms over the stars fitted near each, with the covariance known there."""
        found = []
        for model, fitted in zip(known, near, strict=True):
            weights = make_weights(model, self.snr)
            moved = [
                scatter(response(design, weights)[0][self.rows], errors)
                for design, errors in fitted
            ]
            found.append(np.sqrt(np.mean(np.square(moved), axis=0)))
        return np.stack(found)


def _largest_factor(ratio):
    """Factor on the best emulator's covariance at which the largest ratio is at the threshold."""

    def above(log_factor):
        return float(np.log(np.max(ratio(math.exp(log_factor))) / THRESHOLD))

    low, high = -math.log(_WIDEST), math.log(_WIDEST)
    # Nothing disturbs labels that leave no trace in the pixels, if only these are wanted.
    if above(high) < 0:
        return math.inf
    root: Any = brentq(above, low, high, xtol=1e-3)
    return math.exp(root)


def _check_positive(name, value):
    if not (math.isfinite(value) and value > 0):
        raise InputError(f"choose: {name} is {value:g}; give a positive number")


def _synthesizer(wavelength: np.ndarray, space: LabelSpace) -> Synthesizer:
    try:
        return LTESynthesizer.build(wavelength, space)
    except InputError as error:
        raise InputError(
            f"choose: spectra near the star cannot be synthesised ({error}); give synthesize=False "
            "to compare the emulators with one another instead"
        ) from error


def _check_source(synthesizer: Synthesizer, emulators: Sequence[Emulator]) -> None:
    """The spectra that emulators learned from must be those they are measured on."""
    made = synthesizer.provenance()
    keys = ["synthesizer", "vmic", *(key for key in made if key.startswith("sha256_"))]
    for one in emulators:
        grid = one.record.get("grid", {})
        # Of a grid of files it has an entry of its own; of spectra made as training went, none.
        own = grid.get("synthesizer")
        record = own if isinstance(own, dict) else grid
        for key in keys:
            if key not in record or record[key] != made[key]:
                theirs, ours = (str(each)[:16] for each in (record.get(key), made[key]))
                raise InputError(
                    f"choose: {one.name} learned from spectra whose {key} is {theirs}, those made "
                    f"here have {ours}: they may differ by more than its error; give "
                    "synthesize=False to compare the emulators with one another instead"
                )


def _ordered(emulators: Sequence[Emulator] | None, sizes: Mapping[str, float]) -> list[Emulator]:
    """Candidates with the best one last, after checking that they can be compared."""
    if emulators is None:
        emulators = [load_emulator(name) for name in pretrained.available()]
    if not emulators:
        raise InputError("choose: no emulator is given; give at least one, with an error model")
    for one in emulators:
        if one.label_space != emulators[0].label_space:
            raise InputError(
                f"choose: emulators {emulators[0].name} and {one.name} have different labels or "
                "boxes; compare those of one family"
            )
    names = [*(one.name for one in emulators), *sizes]
    for name in names:
        if names.count(name) > 1:
            raise InputError(f"choose: two candidates are called {name!r}; give each its own name")
    return sorted(emulators, key=lambda one: -float(error_model_of(one).mse))


def _wanted(space, labels, held) -> tuple[str, ...]:
    for name in (*(labels or ()), *(name for name in held if name != "v_rad")):
        space.index(name)  # an unknown name is an error
    free = tuple(name for name in space.names if name not in held)
    wanted = free if labels is None else tuple(dict.fromkeys(labels))
    for name in wanted:
        if name in held:
            raise InputError(f"choose: {name} is both wanted and held; drop one of the two")
    if not wanted:
        raise InputError("choose: no label is wanted; leave at least one free")
    return wanted


def _point(space: LabelSpace, star) -> np.ndarray:
    """All labels of a star inside the box."""
    if isinstance(star, Mapping):
        for name in star:
            space.index(name)
        solar = {name: 0.0 for name in space.names if name.endswith(("_h", "_fe"))}
        known = solar | dict(star)
        for name in space.names:
            if name not in known:
                raise InputError(f"choose: the star has no {name}; give it")
        star = [known[name] for name in space.names]
    point = np.asarray(star, np.float64)
    if point.ndim != 1:
        raise InputError(f"choose: a star has shape {point.shape}; give one value a label")
    space.check(point)
    return point


def _limits(emulators, asked) -> tuple[float, float]:
    """Wavelengths asked for, all inside every emulator's."""
    low = max(one.wavelength_range[0] for one in emulators)
    high = min(one.wavelength_range[1] for one in emulators)
    first, last = (low, high) if asked is None else map(float, asked)
    if not low <= first < last <= high:
        raise InputError(
            f"choose: wavelengths {first:g} .. {last:g}; give a range inside {low:.1f} .. "
            f"{high:.1f} Angstrom (vacuum), which the emulators know"
        )
    return first, last
