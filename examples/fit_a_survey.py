"""Fit a small survey, a few of its files damaged, and look at what the results are worth.

    python examples/fit_a_survey.py                     # writes into a_survey/; 80 seconds

It makes 21 spectra: 12 stars, 6 of them observed again, and three files that no survey is without.
Their fluxes come from the largest shipped emulator, rotated, spread and binned by the code of
`make_demo_star.py`, with photon noise. The smallest emulator fits them, so that its error is real;
that of 1D LTE itself is not tested by this (`docs/inference.md` has real stars). Abundances but
[Fe/H] and [Mg/Fe] are solar in these stars and held there in the fits, which saves time.
"""

import argparse
import time
from pathlib import Path

import numpy as np
from astropy.table import Table
from make_demo_star import C, observe, rotate, spread

import stellarfit as sf

RESOLUTION = 28_000.0
START, STOP, PIXEL = 5155.0, 5195.0, 0.06  # vacuum Angstrom, inside what the emulators cover
NUM_STARS, NUM_REPEATED = 12, 6
FREE = ("teff", "logg", "fe_h", "mg_fe")
SEED = 0


def held(names: tuple[str, ...]) -> dict[str, float]:
    """Labels that are alike in all stars, and known."""
    return {name: 1.0 if name == "vmic" else 0.0 for name in names if name not in FREE}


def draw_stars() -> list[dict[str, float]]:
    """Labels of dwarfs and giants in turn, and how they move and rotate [km/s]."""
    rng = np.random.default_rng(SEED)
    stars = []
    for i in range(NUM_STARS):
        giant, fe_h = i % 2 == 1, rng.uniform(-1.2, 0.3)
        teff = rng.uniform(4300, 5000) if giant else rng.uniform(5000, 6300)
        stars.append({
            "teff": teff,
            "logg": 1.2 + (teff - 4300) / 350 if giant else 4.6 - (teff - 5000) / 2600,
            "fe_h": fe_h, "mg_fe": np.clip(-0.25 * fe_h, 0, 0.3),
            "v_rad": rng.normal(0, 30), "v_sini": rng.uniform(3, 8),
        })  # fmt: skip
    return stars


def write_spectrum(path: Path, name: str, clean: np.ndarray, snr: float, seed: int) -> None:
    """One observation: photon noise, and a continuum that bends by a few per cent."""
    x = np.linspace(-1, 1, len(clean))
    continuum = 1 + 0.03 * x - 0.015 * x**2
    sigma = continuum / snr * np.sqrt(np.maximum(clean, 0.01))
    noise = sigma * np.random.default_rng((SEED, seed)).normal(size=len(clean))
    pixels = START + PIXEL * np.arange(len(clean))
    columns = {"wave": pixels, "flux": continuum * clean + noise, "ivar": sigma**-2}
    Table(columns, meta={"OBJECT": name}).write(path, overwrite=True)


def make_spectra(folder: Path) -> None:
    """Write all files of the survey, then damage the last three."""
    folder.mkdir(parents=True, exist_ok=True)
    emulator = sf.load_emulator("fgk-mgb-l")
    space = emulator.label_space
    grid = np.exp(np.arange(np.log(START - 3), np.log(STOP + 3), 5e-6))
    pixels = np.arange(START, STOP, PIXEL)
    clean = []
    for star in draw_stars():
        labels = held(space.names) | star
        flux = np.asarray(emulator(np.array([labels[name] for name in space.names]), grid), float)
        flux = spread(grid, rotate(grid, flux, star["v_sini"]), RESOLUTION)
        clean.append(observe(grid * (1 + star["v_rad"] / C), flux, pixels, PIXEL))
    visits = [*range(NUM_STARS), *range(NUM_REPEATED), 0, 1, 2]
    paths = [folder / f"visit{visit:02d}.fits" for visit in range(len(visits))]
    for visit, (path, star) in enumerate(zip(paths, visits, strict=True)):
        snr = 30 * 2 ** ((visit % 7) / 2)  # 30 to 240
        write_spectrum(path, f"star {star}", clean[star], snr, visit)
    *_, cut, empty, masked = paths
    cut.write_bytes(cut.read_bytes()[:9000])  # a transfer that broke off
    empty.write_bytes(b"")
    table = Table.read(masked)
    table["ivar"] = 0.0  # a fibre that saw nothing
    table.write(masked, overwrite=True)


def main() -> None:
    """Make spectra, fit them, print the catalogue, write the page."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("a_survey"))
    out = parser.parse_args().out
    began = time.monotonic()
    make_spectra(out / "spectra")

    emulator = sf.load_emulator("fgk-mgb-s")
    # Killed and run again, it goes on with the parts that are missing.
    catalog = sf.fit_survey(
        str(out / "spectra" / "*.fits"), emulator, out=out / "catalog.fits", medium="vacuum",
        resolution=RESOLUTION, fixed=held(emulator.label_space.names), part_size=10, resume=True,
    )  # fmt: skip
    catalog["file"] = [Path(path).name for path in catalog["source"]]
    catalog["why not"] = [reason[:50] for reason in catalog["reason"]]
    shown = ["file", "teff", "e_teff", "logg", "e_logg", "fe_h", "e_fe_h", "why not"]
    for column in shown[1:-1]:
        catalog[column].format = ".0f" if "teff" in column else ".2f"
    catalog[shown].pprint(max_lines=-1, max_width=-1)

    page = sf.write_quality_page(out / "catalog.fits", residuals=True)
    print(f"{page.usable} of {page.stars} rows are good; open {page.path} in a browser")
    print(f"{time.monotonic() - began:.0f} seconds")


if __name__ == "__main__":
    main()
