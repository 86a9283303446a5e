"""Which elements can a window measure? Fisher error of each [X/Fe] alone, from the synthesiser.

    python benchmarks/label_leverage.py [--first 5100 --last 5300]

Prints one JSON object: for each element its error [dex] at S/N 100 per pixel of 1e-5, other labels
held fixed, in each of five stars, from central differences of +-0.05 dex. The shipped emulator's
labels are the elements below 0.02 dex in at least three of the stars.
"""

import argparse
import json

import jax
import jax.numpy as jnp
import numpy as np

import emulators  # noqa: F401  (float64)
from emulators.labels import LabelSpace
from emulators.physics.abundances import SYMBOLS
from emulators.physics.synthesizer import LTESynthesizer

STARS = {
    "sun": (5772.0, 4.44, 1.0, 0.0),
    "red giant": (4500.0, 2.0, 1.5, 0.0),
    "cool dwarf": (4200.0, 4.6, 1.0, 0.0),
    "F dwarf": (6500.0, 4.2, 1.5, -0.5),
    "metal-poor giant": (4900.0, 2.2, 1.5, -1.5),
}
SNR, STEP = 100.0, 0.05


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--first", type=float, default=5100.0)
    parser.add_argument("--last", type=float, default=5300.0)
    arguments = parser.parse_args()
    wavelength = np.exp(np.arange(np.log(arguments.first), np.log(arguments.last), 1e-5))
    space = LabelSpace(
        ("teff", "logg", "vmic", "fe_h"), (4000.0, 1.0, 0.5, -2.5), (7000.0, 5.0, 3.0, 0.5)
    )
    synth = LTESynthesizer.build(wavelength, space)

    @jax.jit
    def flux(labels, change):
        star = synth.star
        abundance = star.abundances(labels) + change
        return synth.formation(star.atmosphere(labels), abundance, labels[2]).normalized

    used = {code // 100 for code in synth.formation.lines.table.codes if code < 10000}
    used |= {6, 7, 8}  # in molecules
    errors: dict[str, dict[str, float]] = {}
    for number in sorted(used - {1, 2, 26}):
        name = SYMBOLS[number - 1].lower() + "_fe"
        change = jnp.zeros(92).at[number - 1].set(STEP)
        errors[name] = {}
        for star, labels in STARS.items():
            where = jnp.asarray(labels)
            gradient = (flux(where, change) - flux(where, -change)) / (2.0 * STEP)
            fisher = float(jnp.sum((gradient * SNR) ** 2))
            errors[name][star] = round(fisher**-0.5, 4) if fisher > 0 else float("inf")
    chosen = [name for name, by in errors.items() if sum(e < 0.02 for e in by.values()) >= 3]
    print(json.dumps({"errors": errors, "chosen": chosen}, indent=1))


if __name__ == "__main__":
    main()
