"""Fit the Sun and HD 22072 as observed, and draw residuals and error budgets.

    python benchmarks/real_stars.py --observed ../shared/observed --out docs/_static

The star's echelle orders are arms: each has its own blaze, so each has its own continuum.
"""

import argparse
from pathlib import Path

import numpy as np
import numpyro.distributions as dist
from astropy.table import Table

import stellarfit as sf
from emulators.emulator import Emulator
from stellarfit.flags import describe

# Literature, and its scatter: teff [K], log g, [Fe/H]. Sun: IAU; HD 22072: see the file's notes.
SUN = {"teff": (5772.0, 0.0), "logg": (4.438, 0.0), "fe_h": (0.0, 0.0)}
HD22072 = {"teff": (5000.0, 60.0), "logg": (3.5, 0.2), "fe_h": (-0.2, 0.2)}
_V_MAC = {"v_mac": dist.Uniform(0.0, 8.0)}
_LEAST = 20.0  # Angstrom of an order that the emulator has to cover


def fit_sun(folder: Path, emulator: Emulator) -> sf.Fit:
    """No errors and no resolving power are stated: S/N 100, and R rather too high (docs)."""
    spectrum = sf.read_spectrum(folder / "sun_uves.fits", medium="air", resolution=100_000, snr=100)
    return sf.fit(spectrum, emulator, fixed={"v_sini": 1.6}, priors=_V_MAC)


def fit_hd22072(folder: Path, emulator: Emulator) -> sf.Fit:
    """Keck HIRES; orders stand one after another in the file."""
    table = Table.read(folder / "hd22072_hires.fits")
    wave, flux, ivar = (np.asarray(table[name], float) for name in ("wave", "flux", "ivar"))
    low, high = emulator.wavelength_range
    orders = {}
    for part in np.split(np.arange(len(wave)), np.flatnonzero(np.diff(wave) < 0) + 1):
        covered = min(wave[part[-1]], high) - max(wave[part[0]], low)
        if covered > _LEAST:
            orders[f"order_{len(orders) + 1}"] = sf.Spectrum(
                wave[part], flux[part], ivar[part], resolution=60_000, medium="air"
            )
    return sf.fit(orders, emulator, fixed={"v_sini": 1.5}, priors=_V_MAC)


def compare(fit: sf.Fit, literature: dict[str, tuple[float, float]]) -> None:
    """Print each label beside the literature, and what its error is made of."""
    for name, (known, scatter) in literature.items():
        i = fit.names.index(name)
        total = np.hypot(fit.error[i], scatter)
        print(
            f"  {name:5s} {fit.values[i]:9.3f} +- {fit.error[i]:.3f} (photons "
            f"{fit.error_stat[i]:.3f}, emulator {fit.error_emulator[i]:.3f}, mismatch "
            f"{fit.error_mismatch[i]:.3f}); literature {known:g} +- {scatter:g}: "
            f"{(fit.values[i] - known) / total:+.1f} sigma"
        )
    print(f"  chi2 {fit.chi2:.0f} / {fit.dof}, mismatch {fit.mismatch:.2f} dex")
    print(f"  {fit.seconds:.0f} s; {describe(fit.flags)}")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--observed", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--emulator", default="fgk-mgb-m")
    given = parser.parse_args()
    emulator = sf.load_emulator(given.emulator)
    for name, make, known in (("sun", fit_sun, SUN), ("hd22072", fit_hd22072, HD22072)):
        fit = make(given.observed, emulator)
        print(name, given.emulator, flush=True)
        compare(fit, known)
        fit.plot().savefig(given.out / f"{name}_fit.png", dpi=70)
        fit.plot_budget().savefig(given.out / f"{name}_budget.png", dpi=70)


if __name__ == "__main__":
    main()
