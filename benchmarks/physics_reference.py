"""Compare the synthesiser with spectra that Turbospectrum and PySME made of the same input.

    python benchmarks/physics_reference.py shared/reference/*.npz

A `ref_tsx_<star>_<window>.npz` holds the whole problem (atmosphere, lines, abundances,
microturbulence) and Turbospectrum's answer; `pysme_<star>_<window>.npz` beside it holds PySME's
answer to the same problem. One JSON object is printed for each file:

- `rms`, `bias`, `max`: of our normalised flux minus theirs;
- `continuum_ratio`: mean of our continuum flux over theirs (null where the file has none);
- `seconds`: one synthesis, after compilation.

What the codes take as given differs, and each is compared on its own terms:

- Turbospectrum takes the temperatures and electron densities of the model and finds the pressure
  that belongs to them for the given abundances; PySME takes the pressure and finds the electrons.
- For lines without a van der Waals width Turbospectrum uses the list's factor on Unsold's width,
  PySME Unsold's width itself and, where the list has an ABO cross-section, its width at 10^4 K.
- Both take the list's radiative widths as they are, also the placeholder 1e5 s^-1.
"""

import argparse
import json
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from emulators.physics import data_path
from emulators.physics.atmosphere import Atmosphere
from emulators.physics.chemistry import EquilibriumTables, pressure_from_electrons
from emulators.physics.formation import LineFormation, Star, Synthesis
from emulators.physics.linelist import LineList
from emulators.wavelength import air_to_vacuum

CUT = 1e-5  # of the continuum: lines and wings less deep than this are left out


def line_list(problem: dict[str, np.ndarray], code: str) -> LineList:
    """The problem's lines with the damping that `code` ("turbospectrum", "pysme") gives them."""
    damping = problem["line_ts_fdamp"]
    if code == "pysme":
        # 0 in this column means that the list has no width; 1 is a factor on Unsold's
        width = problem["line_log_gamma_vdw_10000K"]
        damping = np.where(width < 0, width, 1.0)
    fraction = problem["line_iso_frac"]
    return LineList.build(
        air_to_vacuum(problem["line_wave_air"]),
        100 * problem["line_Z"] + problem["line_ion"],
        problem["line_elow_ev"],
        problem["line_loggf"] + np.log10(np.where(fraction > 0, fraction, 1.0)),
        # Both codes use 1e5 as it stands; `build` would take exactly that number for "none".
        gamma_rad=np.where(problem["line_gamma_rad"] == 1e5, 1.01e5, problem["line_gamma_rad"]),
        vdw=damping,
    )


def synthesize(problem: dict[str, np.ndarray], code: str) -> tuple[Synthesis, float]:
    """Our spectrum on the problem's wavelengths, and how long it took [s]."""
    wavelength = air_to_vacuum(problem["wave_air"])
    abundance = np.where(problem["abund_solar_GAS07"] < -50, -np.inf, problem["abund_solar_GAS07"])
    abundance[2:] += float(problem["mh"])
    abundance = jnp.asarray(abundance)
    temperature, pressure, mass = (
        jnp.asarray(problem[key]) for key in ("atm_T", "atm_Pg", "atm_rhox")
    )
    if code == "turbospectrum":
        electrons = jnp.asarray(problem["atm_ne"])
        tables = EquilibriumTables.load(data_path("chemistry.h5"))
        pressure = pressure_from_electrons(temperature, electrons, pressure, abundance, tables)
    microturbulence = jnp.asarray(float(problem["vmicro"]))
    star = Star(Atmosphere(temperature, pressure, mass), abundance, microturbulence)

    formation = LineFormation.build(wavelength, line_list(problem, code), [star], CUT)
    run = jax.jit(formation.__call__)
    jax.block_until_ready(run(*star))
    start = time.perf_counter()
    spectrum = jax.block_until_ready(run(*star))
    return spectrum, time.perf_counter() - start


def compare(path: Path) -> dict[str, object]:
    """The JSON object of one file."""
    with np.load(path) as file:
        answer = dict(file)
    if "atm_T" in answer:
        problem, code = answer, "turbospectrum"
        theirs, continuum = answer["flux_norm"], answer["flux"] / answer["flux_norm"]
    else:
        sibling = path.with_name("ref_tsx_" + path.name.partition("_")[2])
        if not sibling.exists():
            raise SystemExit(f"{path}: needs {sibling}, which holds its atmosphere and lines")
        with np.load(sibling) as file:
            problem = dict(file)
        code, continuum = "pysme", None
        theirs = np.interp(problem["wave_air"], answer["wave"], answer["flux"])
    spectrum, seconds = synthesize(problem, code)
    difference = np.asarray(spectrum.normalized) - theirs
    ratio = None if continuum is None else float(np.mean(spectrum.continuum / continuum))
    return {
        "file": path.name,
        "rms": float(np.sqrt(np.mean(difference**2))),
        "bias": float(np.mean(difference)),
        "max": float(np.max(np.abs(difference))),
        "continuum_ratio": ratio,
        "seconds": seconds,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("files", nargs="+", type=Path, help="ref_tsx_*.npz and pysme_*.npz")
    for path in parser.parse_args().files:
        print(json.dumps(compare(path)), flush=True)


if __name__ == "__main__":
    main()
