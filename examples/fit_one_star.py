"""Fit one star, look at the flags, sample its posterior, and write tables and pictures.

python examples/fit_one_star.py                                      # the shipped demo star
python examples/fit_one_star.py star.fits --medium air --resolution 47000
"""

import argparse
from pathlib import Path

import stellarfit as sf
from stellarfit.catalog import make_catalog, write_catalog
from stellarfit.demo import STAR
from stellarfit.flags import describe


def main() -> None:
    """Read, fit, sample, write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("file", nargs="?", type=Path, default=STAR)
    parser.add_argument("--medium", choices=["air", "vacuum"])
    parser.add_argument("--resolution", type=float)
    parser.add_argument("--snr", type=float, help="for files without errors")
    parser.add_argument("--out", type=Path, default=Path("one_star"))
    arguments = parser.parse_args()

    spectrum = sf.read_spectrum(
        arguments.file,
        medium=arguments.medium,
        resolution=arguments.resolution,
        snr=arguments.snr,
    )
    print(spectrum)

    fit = sf.fit(spectrum)
    print(fit.table)
    print(f"chi2/dof = {fit.chi2:.0f}/{fit.dof}")
    for sentence in describe(fit.flags):
        print(f"flag: {sentence}")

    posterior = sf.sample(spectrum, fit=fit, seed=1)
    print(posterior.summary())

    arguments.out.mkdir(parents=True, exist_ok=True)
    write_catalog(make_catalog([posterior], seed=1), arguments.out / "catalog.fits")
    posterior.to_arviz().to_netcdf(str(arguments.out / "posterior.nc"))
    fit.plot().savefig(arguments.out / "fit.png")
    posterior.plot_corner().savefig(arguments.out / "corner.png")


if __name__ == "__main__":
    main()
