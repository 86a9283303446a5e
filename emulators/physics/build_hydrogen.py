"""hydrogen.h5: Stark profiles of H-beta to H-epsilon on a regular table.

The profiles are Stehle & Hutcheon (1999, A&AS 140, 93), thermal Doppler broadening included, in the
form that the `pysme-astro` wheel carries (a Fortran record file). There every temperature and
density has its own detunings, 0.2 apart in log10(alpha); here all share one grid twice as fine,
alpha = |dlambda| / F0 with F0 = 1.25e-9 N_e^(2/3) [Angstrom per unit of alpha, N_e in cm^-3].
In between goes a monotone cubic (PCHIP) in both logarithms; beyond the last point follows the
source's quasi-static wing, alpha^-5/2.
"""

from pathlib import Path

import numpy as np
from scipy.interpolate import PchipInterpolator
from scipy.io import FortranFile

LINES = {
    # upper level: vacuum wavelength [A] (gf-weighted mean of the components), loggf (n=2 to n)
    4: (4862.683, -0.020),
    5: (4341.684, -0.447),
    6: (4102.892, -0.753),
    7: (3971.195, -0.993),
}
"""Balmer lines in the window (H-epsilon by its red wing). log gf: Wiese & Fuhr (2009)."""

SELF_BROADENING = {4: (2320.0, 0.455), 5: (4208.0, 0.380)}
"""Resonance and dispersion broadening by hydrogen: cross section at 10 km/s [a0^2] and velocity
exponent alpha of Barklem, Piskunov & O'Mara (2000, A&A 363, 1091), table 3. Higher lines are not
listed there and take the values of H-gamma."""

TEMPERATURES = 4  # the source's first four: 2500, 5000, 10000, 19950 K
LOG_ALPHA = np.round(np.arange(-4.0, 5.05, 0.1), 1)


def read_stehle(path: Path) -> dict[str, np.ndarray]:
    """The source's arrays: one record each, little-endian, dimensions in the first record."""
    with FortranFile(path, "r", header_dtype=np.uint32) as file:
        _, temperatures, densities, lines = file.read_ints("<i4")
        shape = (lines, densities)
        table = {
            "levels": np.asarray(file.read_ints("<i4")).reshape(lines, 2),
            "temperature": file.read_reals("<f4"),
            "log_density": file.read_reals("<f4"),
            "field": np.asarray(file.read_reals("<f4")).reshape(shape),
            "wing": np.asarray(file.read_reals("<f4")).reshape(shape),
            "width": np.asarray(file.read_reals("<f4")).reshape(*shape, temperatures),
            "points": np.asarray(file.read_ints("<i4")).reshape(*shape, temperatures),
        }
        alpha, profile = [], []
        for _ in range(lines):
            alpha.append(np.asarray(file.read_reals("<f4")).reshape(densities, temperatures, -1))
            profile.append(np.asarray(file.read_reals("<f4")).reshape(densities, temperatures, -1))
    return table | {"alpha": np.array(alpha), "profile": np.array(profile)}


def resample(alpha: np.ndarray, profile: np.ndarray, wing: float) -> np.ndarray:
    """log10 of one profile [detuning] on `LOG_ALPHA` from its points, flat inside the first.

    Points where the source's four digits have run out (zero) are replaced by the wing.
    """
    good = profile > 0
    x, y = np.log10(alpha[good][1:]), np.log10(profile[good][1:])
    result = PchipInterpolator(x, y)(np.clip(LOG_ALPHA, x[0], x[-1]))
    beyond = x[-1] < LOG_ALPHA
    # The wing meets the last point to 0.00-0.03 dex (0.07 at 10^16 cm^-3, H-epsilon).
    result[beyond] = np.log10(wing) - 2.5 * LOG_ALPHA[beyond]
    return result


def build(path: Path) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Datasets and attributes of hydrogen.h5 from the wheel's stehle_long.dat.INTEL."""
    table = read_stehle(path)
    densities = len(table["log_density"])
    log_profile = np.empty((len(LINES), TEMPERATURES, densities, len(LOG_ALPHA)), np.float32)
    for row, upper in enumerate(LINES):
        line = int(np.flatnonzero((table["levels"] == (2, upper)).all(axis=1))[0])
        for t in range(TEMPERATURES):
            for d in range(densities):
                points = slice(table["points"][line, d, t])
                log_profile[row, t, d] = resample(
                    table["alpha"][line, d, t][points],
                    table["profile"][line, d, t][points],
                    table["wing"][line, d],
                )
    datasets = {
        "upper_level": np.array(list(LINES), np.int32),
        "wavelength": np.array([w for w, _ in LINES.values()]),
        "loggf": np.array([g for _, g in LINES.values()]),
        "self_cross_section": np.array(
            [SELF_BROADENING.get(n, SELF_BROADENING[5])[0] for n in LINES]
        ),
        "self_exponent": np.array([SELF_BROADENING.get(n, SELF_BROADENING[5])[1] for n in LINES]),
        "log_temperature": np.log10(table["temperature"][:TEMPERATURES].astype(float)),
        "log_electron_density": table["log_density"].astype(float),
        "log_alpha": LOG_ALPHA,
        "log_profile": np.round(log_profile, 4),
    }
    attributes = {
        "citation": "Stehle & Hutcheon 1999, A&AS 140, 93; self broadening Barklem, Piskunov & "
        "O'Mara 2000, A&A 363, 1091",
        "source": "wheel pysme-astro 1.2.0 (BSD), pysme/share/libsme/stehle_long.dat.INTEL",
        "units": "log_profile [line, temperature, electron density, alpha]: log10 of the profile "
        "per unit of alpha, normalised to one over both sides, thermal Doppler broadening "
        "included; alpha = |wavelength - centre| / F0, F0 = 1.25e-9 N_e^(2/3) Angstrom; "
        "log_temperature log10 K; log_electron_density log10 cm^-3; wavelength vacuum A; "
        "self_cross_section a0^2 at 10 km/s, as in linelist.abo_width",
        "interpolation": "linear in all four logarithms; the first alpha stands for line centre",
    }
    return datasets, attributes
