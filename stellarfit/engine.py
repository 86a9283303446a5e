"""Many stars of one spectrograph in lockstep: search, posterior mode, covariance, draws.

For emulators compiled for the spectrograph (`stellarfit.compiled`). Stars are worked on in chunks
of one size, so that everything compiles once; those that need more steps than most are gathered
into chunks of their own. The device keeps an anchor of every star, tens of kilobytes; surveys come
in parts.

What a single star's fit decides on the host is a recipe here: no pixels are down-weighted, and
stars do not rotate. Each star has its own frame, shifted by a velocity that is found by
cross-correlation with templates; the velocity that is fitted is what remains.
"""

import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jaxtyping import Bool, Float, Float64

from emulators.errors import InputError
from emulators.units import SPEED_OF_LIGHT

from .compiled import Anchor, CompiledEmulator, with_held
from .continuum import Continuum
from .draws import Draws, draw_with, star_keys
from .emulator_error import amplitude_prior, default_noise
from .importance import draw_and_weigh
from .instrument import Pixels
from .lockstep import STARTS, anchor, begin, draw, halfway, measure, search, settle
from .model import Problem, StarModel
from .noise import Noise, NoiseMixture
from .optimize import SETTLED
from .priors import make_prior
from .short_chains import CHAINS, chain_lengths, walk
from .spectrograph import Spectrograph
from .spectrum import Spectrum
from .templates import Templates
from .threads import one_blas_thread
from .velocity import WINDOW

_PASSES = 7, 2, 2  # of the search from each start, at most
_ROUNDS = 7  # of freezing the noise, and of going on to where a sampler sees the mode, at most
# Sigma that a star may move from where it was anchored: how the network bends is all that is left.
_ADRIFT = 0.25
_CHUNKS_ON_GPU = 2
_ANCHORS_ON_GPU = 32  # at once, 150 MB each while they are made
_WRONG = 1.5  # chi^2 a pixel that makes another start worth while


class State(NamedTuple):
    """Where the search of each star ended, in its frame.

    Attributes
    ----------
    positions
        Of `stellarfit.priors.Prior`.
    v_frame, level
        The frame's velocity [km/s], and the continuum's rough level.
    anchor
        Of each star, no further off than a quarter of a sigma; None if the network was to do alone.
        It stays on the device: 60 kB a star with a thousand features and ten labels.
    settled
        Whether the search has ended there, in a maximum.
    """

    positions: Float64[np.ndarray, "star parameter"]
    v_frame: Float64[np.ndarray, " star"]
    level: Float64[np.ndarray, " star"]
    anchor: Anchor | None
    settled: Bool[np.ndarray, " star"]


class Found(NamedTuple):
    """What the engine finds of stars; every field has a leading axis of them.

    Attributes
    ----------
    values
        Most probable values of the free parameters.
    covariance, photons
        Of them: everything included, and by photon noise alone.
    converged, bad
        Whether the search ended in a maximum, and whether its curvature has no inverse.
    chi2, dof
        Against what residuals should be, and the degrees of freedom that the fit left.
    pixels
        That were fitted: neither masked nor beyond the emulator.
    state
        For `Engine.draw`.
    """

    values: Float64[np.ndarray, "star parameter"]
    covariance: Float64[np.ndarray, "star parameter parameter"]
    photons: Float64[np.ndarray, "star parameter parameter"]
    converged: Bool[np.ndarray, " star"]
    bad: Bool[np.ndarray, " star"]
    chi2: Float64[np.ndarray, " star"]
    dof: Float64[np.ndarray, " star"]
    pixels: Float64[np.ndarray, " star"]
    state: State


class Engine(eqx.Module):
    """Everything that the stars of a survey share.

    Attributes
    ----------
    problem
        Of no star in particular.
    spectrograph
        At the pixels.
    templates
        To find velocities with.
    amplitude
        Prior of the emulator's error; None leaves photon noise alone.
    anchored
        Whether stars end where the emulator is its parent.
    """

    emulator: CompiledEmulator
    problem: Problem
    spectrograph: Spectrograph
    templates: Templates
    amplitude: Any
    anchored: bool = eqx.field(static=True)

    @classmethod
    def build(
        cls,
        emulator: CompiledEmulator,
        example: Spectrum,
        *,
        fixed: Mapping[str, float | int] | None = None,
        priors: Mapping[Any, Any] | None = None,
        noise: str | None = None,
        continuum_degree: int | None = None,
        anchored: bool = True,
    ) -> "Engine":
        """Lay out what is shared.

        Parameters
        ----------
        emulator
            Compiled for the spectrograph.
        example
            A spectrum with the pixels and the resolving power of all stars.
        fixed, priors, noise, continuum_degree
            As of `stellarfit.fit`; ``v_sini`` and ``v_mac`` must be held at 0. Of ``v_rad`` a
            Uniform says where the first guess is sought; the fit may end 50 km/s beyond.
        anchored
            End where the compiled emulator has its parent's flux and derivatives, which takes
            longer. Without, the network's error goes into labels and is in no error bar.

        Raises
        ------
        InputError
            As `stellarfit.fit`; another spectrograph; stars that may be broadened; a prior of
            v_rad other than Uniform.
        """
        wavelength = example.wavelength
        if example.resolution is None:
            raise InputError("resolution: the spectrum does not say; give resolution= when reading")
        emulator.spectrograph.check(wavelength, example.width, example.resolution)
        if noise is None:
            noise = default_noise(emulator)
        asked = dict(priors or {})
        fixed = with_held(emulator, fixed, asked)
        prior, held = make_prior(emulator.label_space, fixed, asked, ())
        if held.get("v_sini") != 0 or held.get("v_mac") != 0:
            raise InputError(
                "fixed: stars in lockstep are not broadened; give v_sini=0 and v_mac=0"
            )
        if "v_rad" not in prior.names:
            raise InputError("fixed: v_rad is fixed; leave it free, it costs nothing here")
        if not isinstance(asked.get("v_rad", dist.Uniform(0.0, 1.0)), dist.Uniform) or any(
            "v_rad" in names for names in asked if isinstance(names, tuple)
        ):
            raise InputError(
                "priors: v_rad has one that is not Uniform; stars in lockstep take none"
            )
        velocity = prior.names.index("v_rad")
        limits = float(prior.lower[velocity]), float(prior.upper[velocity])
        window = {"v_rad": dist.Uniform(-WINDOW, WINDOW)}
        prior, held = make_prior(emulator.label_space, fixed, asked | window, ())
        star = StarModel.build(
            emulator, [(Pixels(jnp.asarray(wavelength)), None)], prior.names, held
        )
        continuum = Continuum.build(wavelength, 1.0, continuum_degree)
        nothing = jnp.zeros((len(wavelength), 0))
        blank = jnp.zeros(len(wavelength))
        problem = Problem(
            star=star,
            prior=prior,
            continuum=continuum,
            noise=NoiseMixture.single(Noise.build(blank + 1.0, nothing)),
            flux=blank,
        )
        amplitude = amplitude_prior(emulator, noise)
        return cls(
            emulator=emulator,
            problem=problem,
            spectrograph=emulator.spectrograph.at(wavelength),
            templates=Templates.build(
                emulator, prior, held, wavelength, limits, continuum.basis.shape[1]
            ),
            amplitude=None if amplitude is None else amplitude.arrays,
            anchored=anchored,
        )

    @property
    def names(self) -> tuple[str, ...]:
        """The free parameters."""
        return self.problem.prior.names

    def fit(
        self,
        flux: Float[np.ndarray, "star pixel"],
        ivar: Float[np.ndarray, "star pixel"],
        *,
        chunk: int,
    ) -> "Found":
        """The posterior mode and covariance of each star.

        Parameters
        ----------
        flux, ivar
            On the pixels; an inverse variance of 0 masks one.
        chunk
            Stars at once: on a GPU 512 or more, on a processor 4 for each core.
        """
        stars = _Pool(self, flux, ivar, chunk)
        starts, v_frame, level, pixels = stars.run(begin, stars.all)
        positions = _search(stars, starts, v_frame, level, pixels)
        state = self._settle(stars, positions, v_frame, level)
        found = _measure(stars, state)
        i = self.names.index("v_rad")
        found["values"][:, i] = _add(found["values"][:, i], v_frame)
        # Without data nothing is known.
        enough = pixels > len(self.names) + self.problem.continuum.basis.shape[1]
        converged = state.settled & found.pop("at_peak") & enough
        state = state._replace(settled=converged)
        return Found(**found, converged=converged, pixels=pixels, state=state)

    def _settle(self, stars, positions, v_frame, level) -> State:
        """Go on with the emulator's error, and where it is its parent."""
        number, frozen = len(positions), np.inf if self.amplitude is None else SETTLED
        settled, astray = np.zeros(number, bool), np.zeros(number, bool)
        # None is anchored yet, or need ever be.
        away = np.full(number, np.inf if self.anchored else -np.inf)
        positions, anchors, active = positions.copy(), None, stars.all
        places, last = positions.copy(), np.zeros_like(positions)
        for _ in range(_ROUNDS):
            if not len(active):
                break
            adrift = active[away[active] > _ADRIFT]
            if len(adrift):
                # Where a label may be almost anything, anchors may send a star to and fro.
                step = positions - places
                astray[adrift] |= np.sum(step * last, axis=1)[adrift] < 0
                between = np.asarray(halfway(self.problem.prior, places, positions))
                positions[adrift] = np.where(astray[:, None], between, positions)[adrift]
                places[adrift], last[adrift] = positions[adrift], step[adrift]
                anchors = stars.renew(anchors, anchor, adrift, places)
                away[adrift] = 0.0
            out = stars.run(settle, active, positions, v_frame, level, anchors)
            positions[active], converged, moved = out
            away[active] += moved
            settled[active] = converged & (moved <= frozen) & (away <= _ADRIFT)[active]
            active = active[~settled[active]]
        return State(positions, v_frame, level, anchors, settled)

    def draw(self, flux: Any, ivar: Any, state: State, *, num: int, seed: int, chunk: int) -> Draws:
        """Posteriors: draws of a Gaussian cut off by the boxes, weighted; chains where they fail.

        Parameters
        ----------
        flux, ivar, chunk
            As of `fit`.
        state
            Of its result.
        num
            Draws a star.
        seed
            Of the draws, which hang on it and on a star's flux, not on its neighbours.
        """
        stars = _Pool(self, flux, ivar, chunk)
        columns = state.positions, state.v_frame, state.level, state.anchor, star_keys(seed, flux)
        fewer = _Pool(self, flux, ivar, -(-chunk // CHAINS))
        lengths = chain_lengths(seed, num)

        # A partial of equinox, whose numbers tell compiled functions apart.
        def weigh(some, weighed):
            by = eqx.Partial(draw_and_weigh, num=weighed, kept=num)
            return stars.run(partial(draw, by=by), some, *columns)

        def chains(some):
            return fewer.run(partial(draw, by=eqx.Partial(walk, lengths=lengths)), some, *columns)

        found = draw_with(weigh, chains, state.settled, num)
        i = self.names.index("v_rad")
        found.samples[:, :, i] = _add(found.samples[:, :, i], state.v_frame[:, None])
        found.mean[:, i] = _add(found.mean[:, i], state.v_frame)
        return found


def _search(stars, starts, v_frame, level, pixels):
    """Where photon noise alone leads; from a further start only where the last led nowhere."""
    positions = starts[:, 0].copy()
    cost, done = np.full(len(starts), np.inf), np.zeros(len(starts), bool)
    for start in range(STARTS):
        left = np.flatnonzero(~done)
        trial, reached = starts[:, start].copy(), np.full(len(starts), np.inf)
        for _ in range(_PASSES[start]):
            if not len(left):
                break
            trial[left], reached[left], over = stars.run(search, left, trial, v_frame, level)
            left = left[~over]
        better = reached < cost
        positions[better], cost[better] = trial[better], reached[better]
        done = cost < 0.5 * _WRONG * pixels
    return positions


def _measure(stars, state):
    """What `measure` tells of all stars, by name."""
    found: dict[str, Any] = {}
    peak, active = state.positions.copy(), stars.all
    for _ in range(_ROUNDS):
        if not len(active):
            break
        columns = state.positions, peak, state.v_frame, state.level, state.anchor
        out = stars.run(measure, active, *columns)._asdict()
        peak[active] = out.pop("peak")
        for name, part in out.items():
            shape = (len(peak), *part.shape[1:])
            found.setdefault(name, np.zeros(shape, part.dtype))[active] = part
        active = active[~out["at_peak"]]
    return found


def _add(one, other):
    """Two velocities after one another: both multiply wavelengths."""
    return one + other + one * other / SPEED_OF_LIGHT


def _cores() -> int:
    """That this process may use, where the system says so."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


class _Pool:
    """Stars on the host, worked on in chunks of one size; on a processor one for each core."""

    def __init__(self, engine, flux, ivar, chunk):
        self.engine, self.chunk = engine, chunk
        self.flux, self.ivar = flux, ivar
        self.all = np.arange(len(flux))
        # On a GPU, so that some chunks travel while others are worked on.
        on_cpu = jax.default_backend() == "cpu"
        self.at_once = _cores() if on_cpu else _CHUNKS_ON_GPU
        self.anchors = 1 if on_cpu else _ANCHORS_ON_GPU

    def run(self, work, active, *columns) -> Any:
        """Results of `work` for some stars, rows of `columns` being theirs, on the host."""
        parts = [out for _, out in self._chunks(work, active, columns, self.chunk, np.asarray)]
        return jax.tree.map(lambda *leaves: np.concatenate(leaves)[: len(active)], *parts)

    def renew(self, rows, work, active, *columns) -> Any:
        """Results of `work` that stay on the device: `rows`, those of some stars replaced."""
        chunks = self._chunks(work, active, columns, self.anchors, jax.block_until_ready)
        for full, out in chunks:
            if rows is None:
                rows = jax.tree.map(
                    lambda leaf: jnp.zeros((len(self.all), *leaf.shape[1:]), leaf.dtype), out
                )
            rows = _replace(rows, jnp.asarray(full), out)
        return rows

    def _chunks(self, work, active, columns, chunk, finish):
        """Of each chunk in turn the stars, the last one filled up by repeating, and the results."""

        def one(first):
            full = np.resize(active[first : first + chunk], chunk)
            out = work(
                self.engine,
                jnp.asarray(self.flux[full]),
                jnp.asarray(self.ivar[full]),
                *jax.tree.map(lambda column: jnp.asarray(column[full]), columns),
            )
            return full, jax.tree.map(finish, out)

        first, *others = range(0, len(active), chunk)
        with one_blas_thread(), ThreadPoolExecutor(self.at_once) as threads:
            # The first one compiles.
            yield one(first)
            yield from threads.map(one, others)


@partial(jax.jit, donate_argnums=0)
def _replace(rows, places, new):
    return jax.tree.map(lambda old, new: old.at[places].set(new), rows, new)
