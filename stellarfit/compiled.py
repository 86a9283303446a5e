"""An emulator with one spectrograph in it: a fast network, and the emulator it was made from.

The network is quick and nearly right; its parent is right, and slow. Anchored at some labels, what
is used has the parent's flux there and the parent's derivatives, and of the network what bends.
"""

import os
from collections.abc import Mapping
from functools import partial
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float32, Float64, Int

import emulators.emulator
from emulators import pretrained
from emulators.bundle import (
    arrays_to_tree,
    kind_of_bundle,
    read_bundle,
    tree_to_arrays,
    write_bundle,
)
from emulators.compiled_spectra import CompiledSpectra, evaluate_spline, fit_spline
from emulators.emulator import Emulator
from emulators.error_model import ErrorModel
from emulators.errors import InputError
from emulators.fine_step import fine_step
from emulators.labels import LabelSpace
from emulators.precision import Precision, dot
from emulators.storage import array_hash

from .instrument import SPLINE_REACH, Instrument, Pixels, Velocities, inside
from .spectrograph import Spectrograph, line_spread

_KIND = "compiled emulator"
_FORMAT = 2
# Sigma that a round of anchoring may move labels by, and be the last.
ANCHORED = 0.02
_HELD = 0.05  # of its box, to either side: what the network knows of a label that is held


class Anchor(eqx.Module):
    """What a parent has more than the network made of it, to first order about some labels.

    Attributes
    ----------
    labels
        Where.
    offset
        Of the spline's coefficients there.
    slopes
        Of the network's features there, by labels that are free, in units of their box. What of the
        derivatives no feature can show is not in them: about 1% of their error was not.
    """

    labels: Float64[Array, "*star label"]
    offset: Float32[Array, "*star coefficient"]
    slopes: Float32[Array, "*star feature free"]


class CompiledEmulator(eqx.Module):
    """Spectra as one spectrograph sees them, fast; to be used where an `Emulator` is.

    Made by `stellarfit.compile_emulator`.

    Attributes
    ----------
    parent
        What it was made from.
    network
        Flux in pixels of the spectrograph centred at any wavelength.
    spectrograph
        Which is in the network.
    error_model
        The parent's, as the spectrograph sees its patterns; None where the parent has none.
    held
        Labels that are not free, and their values; the network knows them near these alone, enough
        for its derivatives.
    rms
        Of the spline's coefficients against the parent's, before anchoring, of each of some stars
        that the network did not learn from.
    shift
        By which the same stars' labels would be displaced, in sigma of photon noise of S/N 100 a
        pixel, one column a label that is free.
    anchor
        What makes it exact somewhere; None leaves the network alone.
    """

    parent: Emulator
    network: CompiledSpectra
    spectrograph: Spectrograph
    error_model: ErrorModel | None
    held: tuple[tuple[str, float], ...] = eqx.field(static=True)
    rms: Float64[Array, " unseen"]
    shift: Float64[Array, "unseen free"]
    instrument: Instrument
    encoding: Any
    anchor: Anchor | None = None

    @classmethod
    def build(
        cls,
        parent: Emulator,
        network: CompiledSpectra,
        spectrograph: Spectrograph,
        held: Mapping[str, float],
        rms: Float64[np.ndarray, " unseen"],
        shift: Float64[np.ndarray, "unseen free"],
    ) -> "CompiledEmulator":
        """Lay out what is not stored."""
        seen = spectrograph.at(network.wavelength)
        instrument = line_spread(parent, seen)
        errors = parent.error_model
        if errors is not None:
            errors = eqx.tree_at(
                lambda model: (model.wavelength, model.patterns),
                errors,
                (seen.wavelength, _see(instrument, errors)),
            )
        encoding = eqx.filter_jit(parent.encode)(jnp.asarray(instrument.reached))
        pairs = tuple(sorted(held.items()))
        errs = jnp.asarray(rms), jnp.asarray(shift)
        return cls(parent, network, spectrograph, errors, pairs, *errs, instrument, encoding)

    @property
    def label_space(self) -> LabelSpace:
        """The parent's."""
        return self.parent.label_space

    @property
    def wavelength_range(self) -> tuple[float, float]:
        """Centres of the first and the last pixel that can be given [vacuum Angstrom]."""
        places = self.network.wavelength
        # The spline needs coefficients on either side.
        return float(places[2]), float(places[-3])

    @property
    def step(self) -> float:
        """Between coefficients in ln(wavelength)."""
        return self.network.step

    @property
    def name(self) -> str:
        """The parent's: the labels are the parent's."""
        return self.parent.name

    @property
    def record(self) -> dict[str, Any]:
        """The parent's."""
        return self.parent.record

    @property
    def fingerprint(self) -> str:
        """Twelve hexadecimal digits that name parent, network and spectrograph."""
        trees = tree_to_arrays((self.network, self.spectrograph, self.shift))
        network = self.network
        about = repr((describe(self.parent), self.held, network.start, network.step)).encode()
        return array_hash(trees | {"about": np.frombuffer(about, np.uint8)})[:12]

    def encode(self, wavelength: Float[Array, " pixel"]) -> Any:
        """What `flux_at` needs of fixed wavelengths."""
        return self.network.encode(wavelength)

    def flux_at(
        self,
        labels: Float[Array, " label"],
        encoding: Any,
        shift: Float[Array, ""] | float = 0.0,
    ) -> Float[Array, " pixel"]:
        """Normalised flux in pixels at ``wavelength * exp(shift)`` of an encoded grid."""
        if self.anchor is None:
            return self.network.flux_at(labels, encoding, shift)
        away = self.to_unit(labels) - self.to_unit(self.anchor.labels)
        features = self.network.features(labels) + dot(
            "fu,u->f", self.anchor.slopes, away.astype(jnp.float32), "float32"
        )
        coefficients = self.network.mix(features) + self.anchor.offset
        return 1.0 - evaluate_spline(coefficients, encoding + shift / self.step)

    @property
    def free(self) -> Int[np.ndarray, " free"]:
        """Places among the labels of those that are not held."""
        held = dict(self.held)
        return np.array([i for i, name in enumerate(self.label_space.names) if name not in held])

    def to_unit(self, labels: Float[Array, " label"]) -> Float[Array, " free"]:
        """Labels that are free, in units of their box."""
        return self.label_space.to_unit(labels)[self.free]

    def exact(
        self, labels: Float[Array, " label"], precision: Precision = "float32"
    ) -> Float[Array, " coefficient"]:
        """The parent's coefficients: its spectrum through the spectrograph."""
        depth = 1.0 - self.parent.flux_at(labels, self.encoding, precision=precision)
        return fit_spline(self.instrument.to_pixels(depth)).astype(jnp.float32)

    def anchor_at(self, labels: Float[Array, " label"]) -> Anchor:
        """What the parent has more than the network at labels, and in its derivatives there.

        Where a GPU has TF32, in that: 7e-5 (rms) of the coefficients are lost, far less than what
        any emulator is off by, and a third of the time is won.
        """
        scale = jnp.asarray(self.label_space.upper) - jnp.asarray(self.label_space.lower)
        steps = jnp.diag(scale)[self.free]

        def along(function):
            # Of every label at once, beside the value.
            both = jax.vmap(lambda step: jax.jvp(function, (labels,), (step,)), out_axes=(None, 0))
            return both(steps)

        exact, slopes = along(partial(self.exact, precision="tf32"))
        found, own = along(self.network.features)
        more = self.network.along_basis(slopes) - own
        return Anchor(labels, exact - self.network.mix(found), more.T)

    def anchored(self, anchor: Anchor) -> "CompiledEmulator":
        """The same with the parent's flux and derivatives where the anchor is."""
        return eqx.tree_at(lambda e: e.anchor, self, anchor, is_leaf=lambda leaf: leaf is None)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write one HDF5 file, without the parent, which `load` is to be given."""
        arrays = {f"network{key}": one for key, one in tree_to_arrays(self.network).items()}
        arrays |= {"rms": np.asarray(self.rms), "shift": np.asarray(self.shift)}
        arrays |= {f"sees{key}": one for key, one in tree_to_arrays(self.spectrograph).items()}
        write_bundle(
            path,
            _KIND,
            arrays,
            {
                "format": _FORMAT,
                "hidden": [len(bias) for bias in self.network.biases[:-1]],
                "start": self.network.start,
                "step": self.network.step,
                "held": dict(self.held),
                "name": self.parent.name,
                "parent": describe(self.parent),
            },
        )

    @classmethod
    def load(
        cls, path: str | os.PathLike[str], parent: Emulator | None = None
    ) -> "CompiledEmulator":
        """Read what `save` wrote.

        Parameters
        ----------
        parent
            What it was made from; by default the shipped emulator of that name.

        Raises
        ------
        InputError
            A damaged file, one of another version, another parent.
        """
        arrays, record = read_bundle(path, _KIND)
        if record["format"] != _FORMAT:
            raise InputError(
                f"compiled emulator: {path} has format {record['format']}, this version reads "
                f"{_FORMAT}; compile it anew"
            )
        if parent is None:
            if record["name"] not in pretrained.available():
                raise InputError(
                    f"compiled emulator: {path} was made from {record['name']}, which is not "
                    "shipped; load that and give it as parent= of CompiledEmulator.load"
                )
            parent = emulators.emulator.load_emulator(record["name"])
        if record["parent"] != describe(parent):
            raise InputError(
                f"compiled emulator: {path} was made from the emulator {record['name']}, not from "
                f"this {parent.name} ({parent.fingerprint}); compile it anew"
            )
        basis = jnp.zeros_like(arrays["network.basis"])
        template = CompiledSpectra.draw(
            learned_box(parent.label_space, record["held"]),
            record["hidden"],
            basis,
            jnp.zeros_like(arrays["network.mean"]),
            start=record["start"],
            step=record["step"],
            key=jax.random.key(0),
        )
        network = arrays_to_tree(template, _under("network", arrays))
        sees = _under("sees", arrays)
        seen = Spectrograph(*(jnp.asarray(sees[f".{key}"]) for key in _FIELDS))
        held, errs = record["held"], (arrays["rms"], arrays["shift"])
        return cls.build(parent, network, seen, held, *errs)


_FIELDS = ("wavelength", "width", "resolution")


def load_emulator(emulator: Any = None) -> Any:
    """Load a shipped emulator by name, or any emulator, compiled or not, by the path of its file.

    Parameters
    ----------
    emulator : str, path or emulator, optional
        A name from ``emulators.pretrained.available()``, or the path of an ``.h5`` file; by
        default the shipped default. What is an emulator already is given back.
    """
    if isinstance(emulator, Emulator | CompiledEmulator):
        return emulator
    if not isinstance(emulator, str | os.PathLike | None):
        raise InputError(
            f"emulator: got a {type(emulator).__name__}; give an emulator, the name of a shipped "
            "one or the path of an .h5 file"
        )
    if emulator is not None and kind_of_bundle(emulator) == _KIND:
        return CompiledEmulator.load(emulator)
    return emulators.emulator.load_emulator(emulator)


def describe(parent: Emulator) -> list[Any]:
    """Everything of an emulator that decides what is compiled from it; JSON-able."""
    static = repr(jax.tree.structure(parent.model))
    digest = array_hash({"static": np.frombuffer(static.encode(), np.uint8)})[:12]
    return [parent.fingerprint, digest, *parent.wavelength_range, parent.step]


def learned_box(space: LabelSpace, held: Mapping[str, float]) -> LabelSpace:
    """Where a network knows labels: their box, of those that are held a part about the value."""
    low, high = np.array(space.lower), np.array(space.upper)
    for name, value in held.items():
        i = space.index(name)
        reach = _HELD * (high[i] - low[i])
        # Near an end of the box the part is as long as elsewhere.
        middle = np.clip(value, low[i] + reach, high[i] - reach)
        low[i], high[i] = middle - reach, middle + reach
    return LabelSpace(space.names, tuple(low), tuple(high), space.solar_scale)


def with_held(
    emulator: Any, fixed: Mapping[str, float | int] | None, priors: Mapping[Any, Any] | None
) -> dict[str, float | int]:
    """What is fixed, with the labels that an emulator was compiled to hold.

    Raises
    ------
    InputError
        One of these is to be free, or held elsewhere.
    """
    fixed = dict(fixed or {})
    if not isinstance(emulator, CompiledEmulator):
        return fixed
    asked = [name for key in priors or {} for name in ([key] if isinstance(key, str) else key)]
    for name, value in emulator.held:
        if name in asked or fixed.get(name, value) != value:
            raise InputError(
                f"fixed: the emulator was compiled with {name} held at {value:g}; leave it there, "
                "or compile one without"
            )
    return dict(emulator.held) | fixed


def uncompiled(emulator: Any) -> Any:
    """What an emulator was made from; itself where it is not compiled."""
    return emulator.parent if isinstance(emulator, CompiledEmulator) else emulator


def usable_pixels(
    emulator: Any,
    wavelength: Float64[np.ndarray, " pixel"],
    width: Float64[np.ndarray, " pixel"],
    resolution: Any,
    velocities: Velocities,
) -> np.ndarray:
    """Which pixels an emulator can model for every allowed velocity.

    Raises
    ------
    InputError
        If there is none, or a compiled emulator is of another spectrograph.
    """
    step = emulator.step
    if isinstance(emulator, CompiledEmulator):
        emulator.spectrograph.check(wavelength, width, resolution)
        # Pixels are in the spline; what broadens stars first asks it farther around them.
        still = velocities.v_sini == velocities.v_mac == 0
        width = 2 * (0 if still else SPLINE_REACH + 1) * step * wavelength
        resolution = np.inf
    else:
        step = fine_step(step, resolution)
    return inside(
        wavelength,
        width,
        resolution,
        step=step,
        velocities=velocities,
        limits=emulator.wavelength_range,
    )


def make_instrument(
    emulator: Any,
    wavelength: Float64[np.ndarray, " pixel"],
    width: Float64[np.ndarray, " pixel"],
    resolution: Any,
    velocities: Velocities,
) -> Instrument | Pixels:
    """What lies between an emulator and pixels; of a compiled one only the star's broadening."""
    if not isinstance(emulator, CompiledEmulator):
        step = fine_step(emulator.step, resolution)
        return Instrument.build(wavelength, width, resolution, step=step, velocities=velocities)
    if velocities.v_sini == velocities.v_mac == 0:
        return Pixels(jnp.asarray(wavelength))
    return Instrument.interpolating(wavelength, step=emulator.step, velocities=velocities)


@eqx.filter_jit
def _see(instrument, errors):
    grid, native = jnp.log(instrument.wavelength), jnp.log(errors.wavelength)
    return jax.lax.map(
        lambda pattern: instrument.to_pixels(jnp.interp(grid, native, pattern)), errors.patterns
    )


def _under(prefix: str, arrays: dict[str, Any]) -> dict[str, Any]:
    return {k.removeprefix(prefix): v for k, v in arrays.items() if k.startswith(f"{prefix}.")}
