"""The shipped star: fitted from end to end, with the truth beside the result."""

import time
from pathlib import Path
from typing import Any

from emulators.emulator import load_emulator
from emulators.errors import InputError

from . import report
from .fitting import fit
from .readers import read_spectrum
from .sampling import sample

STAR = Path(__file__).parent / "data" / "demo_star.ecsv"


def run_demo(out: Path, *, emulator: str | None = None, seed: int = 0) -> dict[str, float]:
    """Fit the demo star by MAP, Laplace and NUTS, print truth beside result, write everything.

    The star is an ECSV table (wavelength in vacuum Angstrom, flux, ivar) that
    ``examples/make_demo_star.py`` made from the synthesiser, not from the emulator that fits it.
    Its header holds the truth as ``truth_<parameter>``; the fit does not see it.

    Returns
    -------
    dict
        (posterior mean - truth) / posterior sigma of every parameter.
    """
    began = time.perf_counter()
    report.check_folder(out)
    spectrum = read_spectrum(STAR)
    truth = read_truth(spectrum)
    loaded = load_emulator(emulator)
    print(f"{spectrum}\nemulator {loaded.name} ({loaded.fingerprint})", flush=True)
    found = fit(spectrum, loaded)
    print(f"MAP and Laplace: {found.seconds:.0f} s", flush=True)
    posterior = sample(spectrum, loaded, fit=found, seed=seed, progress=True)
    print(f"NUTS by {posterior.backend}: {posterior.seconds:.0f} s", flush=True)
    pulls = _compare(truth, found, posterior)
    for path in report.write_results(out, found, posterior, truth):
        print(f"wrote {path}")
    print(f"{time.perf_counter() - began:.0f} s in all")
    return pulls


def read_truth(spectrum: Any) -> dict[str, float]:
    """The parameters that a made-up star's header says it was made with."""
    truth = {
        key.removeprefix("truth_"): float(value)
        for key, value in spectrum.meta.items()
        if key.startswith("truth_")
    }
    if not truth:
        raise InputError(f"{spectrum.name}: its header holds no truth_<parameter>")
    return truth


def _compare(truth: dict[str, float], found: Any, posterior: Any) -> dict[str, float]:
    """Print the table, and give the distance from truth in posterior sigma."""
    from rich.console import Console

    table = report.new_table("", "truth", "MAP", "Laplace 1σ", "NUTS mean", "NUTS 1σ", "off by")
    pulls = {}
    rows = zip(found.names, found.values, found.error, posterior.mean, posterior.sigma, strict=True)
    for name, value, error, mean, sigma in rows:
        digits = report.decimals(sigma)
        if name in truth:
            pulls[name] = float((mean - truth[name]) / sigma)
        table.add_row(
            name,
            f"{truth[name]:.{digits}f}" if name in truth else "",
            *(f"{number:.{digits}f}" for number in (value, error, mean, sigma)),
            f"{pulls[name]:+.1f}σ" if name in truth else "",
        )
    Console().print(table)
    return pulls
