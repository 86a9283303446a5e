"""An emulator with one spectrograph in it: a fast network, and the emulator it was made from.

The network is quick and nearly right; its parent is right, and slow. Anchored at some labels, the
network gives what the parent gives there exactly, and its own derivatives. Where these are wrong by
a part e, a fit that is anchored where it ends misses the parent's maximum by about e of its error.
"""

import os
from collections.abc import Mapping
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float32, Float64

import emulators.emulator
from emulators import pretrained
from emulators.bundle import (
    arrays_to_tree,
    kind_of_bundle,
    read_bundle,
    tree_to_arrays,
    write_bundle,
)
from emulators.compiled_spectra import CompiledSpectra, fit_spline
from emulators.emulator import Emulator
from emulators.error_model import ErrorModel
from emulators.errors import InputError
from emulators.fine_step import fine_step
from emulators.labels import LabelSpace
from emulators.storage import array_hash

from .instrument import SPLINE_REACH, Instrument, Pixels, Velocities, inside

_KIND = "compiled emulator"
_FORMAT = 2
# A spectrograph that differs by more is another one.
_RESOLUTION_AGREES, _WIDTH_AGREES = 0.005, 0.02
STILL = Velocities(0.0, 0.0, 0.0, 0.0)
# Sigma that a round of anchoring may move labels by, and be the last.
ANCHORED = 0.02
# Sigma of photon noise that the network may displace labels of 95% of stars by, unanchored.
TOLERABLE = 0.1
_HELD = 0.05  # of its box, to either side: what the network knows of a label that is held


class Spectrograph(eqx.Module):
    """How a spectrograph sees each wavelength: what is folded into a compiled emulator.

    Attributes
    ----------
    wavelength
        Ascending [vacuum Angstrom].
    width, resolution
        Of a pixel there [Angstrom], and lambda / FWHM of the line spread.
    """

    wavelength: Float64[Array, " place"]
    width: Float64[Array, " place"]
    resolution: Float64[Array, " place"]

    def at(self, wavelength: Float64[np.ndarray, " other"]) -> "Spectrograph":
        """The same at other wavelengths; beyond the ends as at them."""
        log, places = np.log(wavelength), np.log(np.asarray(self.wavelength))
        return Spectrograph(
            jnp.asarray(wavelength),
            jnp.asarray(np.interp(log, places, np.asarray(self.width))),
            jnp.asarray(np.interp(log, places, np.asarray(self.resolution))),
        )

    def check(
        self,
        wavelength: Float64[np.ndarray, " pixel"],
        width: Float64[np.ndarray, " pixel"],
        resolution: float | Float64[np.ndarray, " pixel"],
    ) -> None:
        """Refuse pixels of another spectrograph.

        Raises
        ------
        InputError
            A resolving power that differs by more than 0.5%, a width that does by more than 2%.
        """
        mine = self.at(wavelength)
        for key, found, own, tolerance in (
            ("resolution", resolution, mine.resolution, _RESOLUTION_AGREES),
            ("width of a pixel", width, mine.width, _WIDTH_AGREES),
        ):
            found = np.broadcast_to(np.asarray(found, np.float64), wavelength.shape)
            off = np.abs(found / np.asarray(own) - 1)
            if (off > tolerance).any():
                i = int(np.argmax(off))
                raise InputError(
                    f"{key}: {found[i]:.6g} at {wavelength[i]:.2f} Angstrom, but the emulator was "
                    f"compiled for {float(own[i]):.6g}; compile one for this spectrograph, or give "
                    "the emulator that it was made from"
                )


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
        encoding = eqx.filter_jit(parent.encode)(instrument.wavelength)
        pairs = tuple(sorted(held.items()))
        errs = jnp.asarray(rms), jnp.asarray(shift)
        return cls(parent, network, spectrograph, errors, pairs, *errs, instrument, encoding)

    @property
    def label_space(self) -> LabelSpace:
        """The parent's."""
        return self.parent.label_space

    def snr_limit(self, tolerance: float = TOLERABLE) -> float:
        """S/N a pixel up to which the network needs no anchoring.

        Parameters
        ----------
        tolerance
            Sigma of photon noise that it may displace a label by, of 95% of stars.
        """
        typical = np.percentile(np.abs(np.asarray(self.shift)), 95, axis=0)
        return 100.0 * tolerance / float(np.max(typical))

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
        return self.network.flux_at(labels, encoding, shift)

    def exact(self, labels: Float[Array, " label"]) -> Float[Array, " coefficient"]:
        """The parent's coefficients: its spectrum through the spectrograph."""
        depth = 1.0 - self.parent.flux_at(labels, self.encoding)
        return fit_spline(self.instrument.to_pixels(depth)).astype(jnp.float32)

    def offset(self, labels: Float[Array, " label"]) -> Float32[Array, " coefficient"]:
        """What the parent's coefficients are more than the network's."""
        return self.exact(labels) - self.network.coefficients(labels)

    def with_offset(self, offset: Float32[Array, " coefficient"]) -> "CompiledEmulator":
        """The same with so much added to every spectrum; differences remain the network's."""
        return eqx.tree_at(lambda e: e.network.mean, self, self.network.mean + offset)

    def anchored(self, labels: Float[Array, " label"]) -> "CompiledEmulator":
        """The same with the parent's flux at these labels."""
        return self.with_offset(self.offset(labels))

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


def line_spread(parent: Emulator, seen: Spectrograph) -> Instrument:
    """From the parent's flux to pixels of the spectrograph."""
    return Instrument.build(
        np.asarray(seen.wavelength),
        np.asarray(seen.width),
        np.asarray(seen.resolution),
        step=fine_step(parent.step, np.asarray(seen.resolution)),
        velocities=STILL,
    )


@eqx.filter_jit
def _see(instrument, errors):
    grid, native = jnp.log(instrument.wavelength), jnp.log(errors.wavelength)
    return jax.lax.map(
        lambda pattern: instrument.to_pixels(jnp.interp(grid, native, pattern)), errors.patterns
    )


def _under(prefix: str, arrays: dict[str, Any]) -> dict[str, Any]:
    return {k.removeprefix(prefix): v for k, v in arrays.items() if k.startswith(f"{prefix}.")}
