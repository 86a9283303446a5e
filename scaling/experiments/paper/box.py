"""The label box of the paper: teff, logg, and [X/H] of every element that shows.

    python -m scaling.experiments.paper.box

finds the elements anew, which takes a 2-core machine a quarter of an hour: those that change the
normalised flux at some wavelength by more than 0.1% between [X/H] = -2 and +1, in a dwarf of 4500
or 5750 K that is else solar.
"""

import json

import equinox as eqx
import jax.numpy as jnp
import numpy as np

from emulators.labels import LabelSpace
from emulators.physics import data_path
from emulators.physics.abundances import SYMBOLS
from emulators.physics.linelist import LineList
from emulators.physics.synthesizer import LTESynthesizer

STEP = 1e-5
# 4000-5000 A at a constant step in ln(wavelength).
WAVELENGTH = 4000.0 * np.exp(STEP * np.arange(22315))
VMIC = 1.0
# Deeper than this at some corner of the box: lines below are 0.1-0.3% rms of the spectra in it,
# which are the truth of this experiment and of nothing else.
CUT = 1e-2
# All metals of the line list but Ar, As, Ag and Hg, which do not show.
_SHOWN = (
    "Li Be C N O Na Mg Al Si P S Cl K Ca Sc Ti V Cr Mn Fe Co Ni Cu Zn Ga Ge Rb Sr Y Zr Nb Mo Ru Rh "
    "Pd Cd In Sn Sb Cs Ba La Ce Pr Nd Sm Eu Gd Tb Dy Ho Er Tm Yb Lu Hf Ta W Re Os Ir Pt Au Pb Bi "
    "Th U"
)
ELEMENTS = tuple(_SHOWN.split())
_SHOWS = 1e-3
_DWARFS = ((4500.0, 4.5), (5750.0, 4.5))


def box(symbols: tuple[str, ...]) -> LabelSpace:
    """teff, logg, fe_h and [X/H] of other elements, each from -2 to +1."""
    names = ("teff", "logg", "fe_h", *(f"{s.lower()}_h" for s in symbols if s != "Fe"))
    abundances = len(names) - 2
    return LabelSpace(
        names, (4000.0, 4.0, *[-2.0] * abundances), (6000.0, 5.0, *[1.0] * abundances)
    )


def build(symbols: tuple[str, ...]) -> LTESynthesizer:
    """Synthesiser of the experiment; its atmospheres follow iron."""
    return LTESynthesizer.build(WAVELENGTH, box(symbols), vmic=VMIC, cut=CUT)


def in_lines() -> tuple[str, ...]:
    """Elements heavier than helium in the line list, as atoms or in molecules."""
    lines = LineList.load(data_path("lines.h5")).select(WAVELENGTH[0], WAVELENGTH[-1])
    atoms = {int(code) // 100 for code in np.unique(lines.species) if code < 10000}
    return tuple(SYMBOLS[number - 1] for number in sorted(atoms | {6, 7, 8, 12, 22}) if number > 2)


def effects() -> dict[str, float]:
    """Of every such element the largest change of flux between [X/H] = -2 and +1."""
    symbols = in_lines()
    synth = build(symbols)
    flux = eqx.filter_jit(lambda synth, labels: synth(labels).normalized)
    found = {}
    for symbol in symbols:
        place = synth.label_space.index(f"{symbol.lower()}_h")
        found[symbol] = 0.0
        for dwarf in _DWARFS:
            labels = jnp.zeros(len(synth.label_space)).at[:2].set(jnp.asarray(dwarf))
            low, high = (flux(synth, labels.at[place].set(value)) for value in (-2.0, 1.0))
            found[symbol] = max(found[symbol], float(jnp.max(jnp.abs(high - low))))
        print(symbol, f"{found[symbol]:.2g}", flush=True)
    return found


def main() -> None:
    chosen = [symbol for symbol, effect in effects().items() if effect > _SHOWS]
    print(json.dumps(chosen), len(chosen))


if __name__ == "__main__":
    main()
