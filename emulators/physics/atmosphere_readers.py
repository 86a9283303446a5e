"""Model atmosphere files of MARCS and ATLAS9, and grids made of them.

`read_marcs` and `read_atlas9` read one model; `import_atmospheres` puts a folder of models on a
rectangular grid in teff, logg and [M/H] and writes the HDF5 file that the synthesiser reads:

    teff [t], logg [g], fe_h [m]          the nodes: K, dex (cgs), dex
    available [t, g, m]                   a model is there
    filled [t, g, m]                      it is not a published model but made from neighbours
    spherical [t, g, m]                   the model was computed in spherical geometry
    log_tau_5000, temperature, log_gas_pressure, log_electron_pressure, log_column_mass
        [t, g, m, layer]                  base-10 logarithms, cgs, kelvin; NaN where not available

All models of one grid have the same number of layers on the same Rosseland optical depths, so that
layers can be interpolated between nodes one by one.
"""

import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import h5py
import numpy as np

from emulators.errors import InputError
from emulators.physics.constants import BOLTZMANN
from emulators.storage import atomic_write

QUANTITIES = (
    "log_tau_5000",
    "temperature",
    "log_gas_pressure",
    "log_electron_pressure",
    "log_column_mass",
)


class ModelAtmosphere(NamedTuple):
    """One plane of layers, from the surface inwards.

    `log_tau_ross` and the five arrays of `QUANTITIES` are [layer]; `log_tau_5000` of an ATLAS9
    model is its Rosseland depth, which such files carry instead.
    """

    teff: float
    logg: float
    fe_h: float
    alpha_fe: float
    spherical: bool
    log_tau_ross: np.ndarray
    log_tau_5000: np.ndarray
    temperature: np.ndarray
    log_gas_pressure: np.ndarray
    log_electron_pressure: np.ndarray
    log_column_mass: np.ndarray


class ModelText:
    """The lines of one model, for errors that name file and line.

    Parameters
    ----------
    text
        The lines.
    name, first
        File name and number of the first line.
    """

    def __init__(self, text: Sequence[str], name: str = "model", first: int = 1):
        self.text, self.name, self.first = text, name, first

    def fail(self, index: int, problem: str) -> InputError:
        return InputError(f"{self.name}, line {self.first + index}: {problem}")

    def find(self, pattern: str, start: int = 0) -> int:
        for index in range(start, len(self.text)):
            if re.search(pattern, self.text[index]):
                return index
        raise self.fail(len(self.text) - 1, f"file ends before a line with '{pattern}'")

    def number(self, index: int, column: int = 0) -> float:
        try:
            return float(self.text[index].split()[column])
        except (ValueError, IndexError):
            raise self.fail(index, f"no number in column {column + 1}") from None

    def table(self, start: int, rows: int, columns: Sequence[int]) -> np.ndarray:
        """Columns [column, row] of a block of numbers."""
        values = np.empty((len(columns), rows))
        for row in range(rows):
            if start + row >= len(self.text):
                raise self.fail(len(self.text) - 1, f"only {row} of {rows} layers")
            for place, column in enumerate(columns):
                values[place, row] = self.number(start + row, column)
        bad = ~np.isfinite(values).all(axis=0)
        if bad.any():
            raise self.fail(start + int(np.argmax(bad)), "not a finite number")
        return values


def _positive_log(lines: ModelText, start: int, values: np.ndarray, what: str) -> np.ndarray:
    if (values <= 0).any():
        raise lines.fail(start + int(np.argmax(values <= 0)), f"{what} is not positive")
    return np.log10(values)


def read_marcs(lines: ModelText) -> ModelAtmosphere:
    """A MARCS model in its `.mod` text form (Gustafsson et al. 2008)."""
    teff = lines.number(lines.find(r"Teff"))
    gravity_line = lines.find(r"[Gg]ravity")
    logg = np.log10(lines.number(gravity_line))
    metallicity_line = lines.find(r"Metallicity")
    fe_h, alpha_fe = (lines.number(metallicity_line, column) for column in (0, 1))
    radius = lines.number(lines.find(r"[Rr]adius"))
    depth_line = lines.find(r"Number of depth points")
    layers = int(lines.number(depth_line))
    upper = lines.find(r"lgTauR\s+lgTau5", depth_line) + 1
    tau_ross, tau_5000, temperature, electron, gas = lines.table(upper, layers, (1, 2, 4, 5, 6))
    lower = lines.find(r"lgTauR\s+KappaRoss", upper) + 1
    (mass,) = lines.table(lower, layers, (7,))
    if (np.diff(mass) <= 0).any():
        raise lines.fail(lower + int(np.argmax(np.diff(mass) <= 0)) + 1, "RHOX does not increase")
    return ModelAtmosphere(
        teff,
        round(float(logg), 4),
        fe_h,
        alpha_fe,
        # Plane-parallel MARCS models carry a nominal radius of 1 cm.
        radius > 1e5,
        tau_ross,
        tau_5000,
        temperature,
        _positive_log(lines, upper, gas, "gas pressure"),
        _positive_log(lines, upper, electron, "electron pressure"),
        _positive_log(lines, lower, mass, "RHOX"),
    )


def read_atlas9(lines: ModelText) -> ModelAtmosphere:
    """An ATLAS9 model in the form READ DECK6 (Kurucz 1993; Castelli & Kurucz 2003).

    The metallicity is the logarithm of ABUNDANCE SCALE. The Rosseland depth is the integral of
    ABROSS over RHOX, which starts as ABROSS times RHOX in the first layer.
    """
    head = lines.find(r"^\s*TEFF")
    teff, logg = lines.number(head, 1), lines.number(head, 3)
    scale = lines.number(lines.find(r"ABUNDANCE SCALE"), 2)
    deck = lines.find(r"READ DECK6")
    layers = int(lines.number(deck, 2))
    mass, temperature, gas, electrons, opacity = lines.table(deck + 1, layers, range(5))
    if (np.diff(mass) <= 0).any():
        raise lines.fail(deck + 2 + int(np.argmax(np.diff(mass) <= 0)), "RHOX does not increase")
    log_mass = _positive_log(lines, deck + 1, mass, "RHOX")
    # The integrand varies by powers of ten: trapezoid in ln RHOX of ABROSS * RHOX.
    integrand = opacity * mass
    steps = 0.5 * (integrand[1:] + integrand[:-1]) * np.diff(np.log(mass))
    tau = integrand[0] + np.concatenate([[0.0], np.cumsum(steps)])
    log_tau = _positive_log(lines, deck + 1, tau, "ABROSS")
    return ModelAtmosphere(
        teff,
        logg,
        round(float(np.log10(scale)), 3),
        0.0,
        False,
        log_tau,
        log_tau,
        temperature,
        _positive_log(lines, deck + 1, gas, "gas pressure"),
        _positive_log(lines, deck + 1, electrons * BOLTZMANN * temperature, "electron density"),
        log_mass,
    )


def read_model(path: str | os.PathLike[str]) -> ModelAtmosphere:
    """A model file of either kind, told apart by its text."""
    try:
        text = Path(path).read_text(encoding="ascii", errors="replace").splitlines()
    except OSError as error:
        raise InputError(f"model atmosphere {path}: cannot be read ({error.strerror})") from None
    if any("READ DECK6" in line for line in text):
        return read_atlas9(ModelText(text, str(path)))
    if any("lgTauR" in line for line in text):
        return read_marcs(ModelText(text, str(path)))
    raise InputError(
        f"{path}, line 1: neither a MARCS .mod file (no 'lgTauR' table) nor an ATLAS9 model "
        "(no 'READ DECK6')"
    )


def _common_depths(models: Sequence[ModelAtmosphere]) -> np.ndarray:
    """Rosseland depths [layer] that every model covers: the first model's, cut to all."""
    lo = max(model.log_tau_ross[0] for model in models)
    hi = min(model.log_tau_ross[-1] for model in models)
    depths = models[0].log_tau_ross
    inside = depths[(depths > lo) & (depths < hi)]
    return np.concatenate([[lo], inside, [hi]])


def grid_of_models(models: Iterable[ModelAtmosphere]) -> dict[str, np.ndarray]:
    """The datasets of a grid file from models with distinct (teff, logg, [M/H]).

    Models whose Rosseland depths are not the first one's (ATLAS9) are interpolated linearly
    in log tau_Ross to depths that all of them cover.
    """
    models = list(models)
    if not models:
        raise InputError("no model atmospheres: an atmosphere grid needs at least one")
    axes = [np.unique([getattr(model, name) for model in models]) for name in _AXES]
    shape = tuple(len(axis) for axis in axes)
    same = all(
        len(m.log_tau_ross) == len(models[0].log_tau_ross)
        and np.allclose(m.log_tau_ross, models[0].log_tau_ross, atol=1e-3)
        for m in models
    )
    depths = models[0].log_tau_ross if same else _common_depths(models)
    grid: dict[str, np.ndarray] = dict(zip(_AXES, axes, strict=True))
    grid["available"] = np.zeros(shape, bool)
    grid["filled"] = np.zeros(shape, bool)
    grid["spherical"] = np.zeros(shape, bool)
    for name in QUANTITIES:
        grid[name] = np.full((*shape, len(depths)), np.nan, np.float32)
    for model in models:
        node = tuple(
            int(np.searchsorted(axis, getattr(model, name)))
            for name, axis in zip(_AXES, axes, strict=True)
        )
        if grid["available"][node]:
            raise InputError(
                f"two model atmospheres with teff {model.teff:g}, logg {model.logg:g}, "
                f"[M/H] {model.fe_h:g}: keep one"
            )
        grid["available"][node] = True
        grid["spherical"][node] = model.spherical
        for name in QUANTITIES:
            column = getattr(model, name)
            if not same:
                column = np.interp(depths, model.log_tau_ross, column)
            grid[name][node] = column
    return grid


_AXES = ("teff", "logg", "fe_h")


def write_grid(
    path: str | os.PathLike[str], grid: dict[str, np.ndarray], attributes: dict[str, str]
) -> None:
    """Write a grid file, atomically; the same grid gives the same bytes."""
    with atomic_write(path) as temporary, h5py.File(temporary, "w") as file:
        for name in sorted(grid):
            options = {"compression": "gzip", "compression_opts": 9, "shuffle": True}
            file.create_dataset(
                name,
                data=grid[name],
                track_times=False,
                **(options if grid[name].size > 64 else {}),
            )
        for key, value in attributes.items():
            file.attrs[key] = value


def import_atmospheres(
    paths: Sequence[str | os.PathLike[str]], out: str | os.PathLike[str], *, citation: str
) -> None:
    """Make a grid file of model files (MARCS `.mod` or ATLAS9), for `LTESynthesizer`.

    Parameters
    ----------
    paths
        The model files; all with one [alpha/Fe].
    out
        The HDF5 file to write; it must not exist.
    citation
        Where the models come from; kept in the file and in everything made with it.
    """
    if Path(out).exists():
        raise InputError(f"{out} exists already: give another name or remove it")
    models = [read_model(path) for path in paths]
    alphas = sorted({model.alpha_fe for model in models})
    if len(alphas) > 1:
        raise InputError(f"models with [alpha/Fe] of {alphas}: a grid has one value only")
    write_grid(out, grid_of_models(models), {"citation": citation, "alpha_fe": str(alphas[0])})
