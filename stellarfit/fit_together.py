"""Stars of one spectrograph fitted in lockstep, and judged as single fits are.

Which way a star goes is said by the configuration and by the star, never by its neighbours: one
that is alone with its pixels is a group of one. So a row does not hang on how stars are divided
into parts.
"""

import functools
import json
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from emulators.errors import InputError
from emulators.storage import array_hash
from emulators.units import SPEED_OF_LIGHT

from .compiled import CompiledEmulator, with_held
from .continuum import default_degree, rough_level
from .draws import Drawn, Draws
from .emulator_error import AmplitudePrior, amplitude_prior
from .engine import Engine, Found
from .goodness import Goodness
from .judge import Result, judge
from .lockstep import of_star
from .priors import VELOCITIES, describe_priors, make_prior
from .spectrum import MaskBit, Spectrum
from .velocity import WINDOW

# Stars at once: on each core of a processor one after another; a GPU is full with these.
_CHUNK_ON_CPU, _CHUNK = 4, 512
# An engine works on all cores: threads of a cluster's worker take turns.
_ALL_CORES = threading.Lock()
_ENGINES = 4  # that a process keeps: building one costs seconds, and its templates take memory


def can_fit_together(emulator: Any, fitting: Mapping[str, Any]) -> bool:
    """Whether stars can be fitted in lockstep, by the arguments of `stellarfit.fit`."""
    fixed = fitting["fixed"]
    return (
        isinstance(emulator, CompiledEmulator)
        and not fitting["robust"]
        and fixed.get("v_sini") == fixed.get("v_mac", 0) == 0
        and "v_rad" not in fixed
    )


def hash_pixels(spectrum: Spectrum) -> str:
    """What spectra share that can be fitted together: wavelengths, widths, resolving power."""
    resolution = np.nan if spectrum.resolution is None else spectrum.resolution
    return array_hash(
        {
            "wavelength": spectrum.wavelength,
            "width": spectrum.width,
            "resolution": np.asarray(resolution, np.float64),
        }
    )


def fit_together(
    spectra: Sequence[Spectrum], emulator: CompiledEmulator, fitting: Mapping[str, Any]
) -> list[Callable[[], Result | Drawn]]:
    """Fit stars of the same pixels; their masks may differ.

    Parameters
    ----------
    spectra
        Alike by `hash_pixels`.
    emulator
    fitting
        Arguments of `stellarfit.fit`; and where draws are wanted their number, ``draws``, and
        ``seed``.

    Returns
    -------
    list of callable
        Of each star its result, with draws where they are wanted; it raises where something is
        wrong with this star.

    Raises
    ------
    InputError
        What `stellarfit.engine.Engine.build` cannot do, which `stellarfit.fit` may.
    """
    others = ("robust", "draws", "seed")
    options = {key: value for key, value in fitting.items() if key not in others}
    described = options | {"priors": describe_priors(options["priors"])}
    same = (id(emulator), hash_pixels(spectra[0]), json.dumps(described, sort_keys=True))
    with _ALL_CORES:
        shared = _share(_Wanted(same, emulator, spectra[0], options))
        pixels = shared.pixels
        flux = np.stack([one.flux[pixels] for one in spectra])
        ivar = np.stack([np.where(one.good, one.ivar, 0.0)[pixels] for one in spectra])
        chunk = _CHUNK_ON_CPU if jax.default_backend() == "cpu" else _CHUNK
        found, drawn = shared.engine.fit(flux, ivar, chunk=chunk), None
        if num := fitting.get("draws"):
            drawn = shared.engine.draw(
                flux, ivar, found.state, num=num, seed=fitting["seed"], chunk=chunk
            )
    rows = found._replace(state=found.state._replace(anchor=None)), drawn
    return [
        functools.partial(shared.result, one, *jax.tree.map(lambda rows, i=i: rows[i], rows))
        for i, one in enumerate(spectra)
    ]


@dataclass(frozen=True)
class _Wanted:
    """What an engine is built from; two are equal where `same` is.

    An emulator that is held here has an `id` of its own.
    """

    same: tuple[int, str, str]
    emulator: CompiledEmulator = field(compare=False)
    example: Spectrum = field(compare=False)
    options: dict[str, Any] = field(compare=False)


class _Shared(NamedTuple):
    """What stars of the same pixels share."""

    engine: Engine
    pixels: slice  # that the emulator may reach at some velocity
    limits: tuple[float, float]  # of v_rad
    fixed: dict[str, float]
    amplitude: AmplitudePrior | None

    def result(self, spectrum: Spectrum, found: Found, drawn: Draws | None) -> Result | Drawn:
        """What one star has of the engine's findings, judged as a single fit is."""
        engine, v_frame = self.engine, float(found.state.v_frame)
        reach = np.zeros(len(spectrum), bool)
        reach[self.pixels] = _reach(engine, jnp.asarray(v_frame))
        seen = spectrum.masked(~reach, MaskBit.OUTSIDE)
        seen.check_good()
        rough_level(seen.flux[seen.good])
        # As in a single fit, the velocity lies in what was asked for, near the first guess.
        i = engine.names.index("v_rad")
        prior, (low, high) = engine.problem.prior, self.limits
        lower, upper = np.array(prior.lower), np.array(prior.upper)
        lower[i], upper[i] = max(low, v_frame - WINDOW), min(high, v_frame + WINDOW)
        result = judge(
            seen,
            engine.emulator,
            engine.names,
            found.values,
            (lower, upper),
            [found.photons, found.covariance],
            self.fixed,
            Goodness(float(found.chi2), float(found.dof)),
            num_coefficients=engine.problem.continuum.basis.shape[1],
            num_outside=int(np.sum(spectrum.good & ~reach)),
            converged=bool(found.converged),
            bad=bool(found.bad),
            amplitude=self.amplitude,
        )
        if drawn is None:
            return result
        return Drawn(result, np.asarray(drawn.samples), float(drawn.k_hat), float(drawn.r_hat))


@functools.lru_cache(maxsize=_ENGINES)
def _share(wanted: _Wanted) -> _Shared:
    emulator, example = wanted.emulator, wanted.example
    options: dict[str, Any] = dict(wanted.options)
    fixed = with_held(emulator, options["fixed"], options["priors"])
    prior, _ = make_prior(emulator.label_space, fixed, options["priors"])
    i = prior.names.index("v_rad")
    limits = float(prior.lower[i]), float(prior.upper[i])
    # The pixels in reach of a star that does not move: a single fit has about these.
    still = example.wavelength[_between(emulator, example, WINDOW, -WINDOW)]
    if not len(still):
        raise InputError("wavelength: the emulator reaches no pixel")
    if options["continuum_degree"] is None:
        options["continuum_degree"] = default_degree(still)
    pixels = _between(emulator, example, *limits)
    engine = Engine.build(emulator, example.cut(pixels), **options)
    names = [*emulator.label_space.names, *VELOCITIES]
    held = zip(names, np.asarray(engine.problem.star.held).tolist(), strict=True)
    return _Shared(
        engine,
        pixels,
        limits,
        {name: value for name, value in held if name not in engine.names},
        amplitude_prior(emulator, options["noise"]),
    )


def _between(emulator: CompiledEmulator, spectrum: Spectrum, low: float, high: float) -> slice:
    """Pixels from where the emulator begins at one velocity to where it ends at another."""
    velocities = 1 + np.array([low, high]) / SPEED_OF_LIGHT
    ends = np.array(emulator.wavelength_range) * velocities
    first, last = np.searchsorted(spectrum.wavelength, ends)
    return slice(int(first), int(last))


@eqx.filter_jit
def _reach(engine, v_frame):
    """Which pixels the engine uses of a star without a mask."""
    ones = jnp.ones_like(engine.problem.flux)
    return of_star(engine, ones, ones, v_frame, jnp.ones(())).noise.central.inverse_variance > 0
