"""``stellarfit compile``: an emulator that is fast for the spectra of one spectrograph."""

from pathlib import Path
from typing import Annotated

import typer

from .fit_command import EmulatorName, Fix, Format, Json, Medium, Seed, parse_fixed


def compile(
    spectrum: Annotated[
        Path, typer.Argument(help="Any spectrum of the spectrograph.", show_default=False)
    ],
    out: Annotated[Path, typer.Option(help="The .h5 file to write.")],
    emulator: EmulatorName = None,
    fix: Fix = None,
    medium: Medium = None,
    resolution: Annotated[
        float | None, typer.Option(help="Resolving power lambda / FWHM, unless the file says it.")
    ] = None,
    snr: Annotated[
        float | None, typer.Option(help="S/N a pixel, for a file without errors.")
    ] = None,
    format: Format = None,
    seed: Seed = 0,
    json: Json = False,
) -> None:
    """Fold a spectrograph into an emulator: minutes on a GPU, up to half an hour on a processor."""
    import json as json_module

    import numpy as np

    from emulators import pretrained
    from emulators.emulator import load_emulator
    from emulators.errors import InputError

    from .compile import compile_emulator
    from .readers import read_spectrum

    if emulator is not None and emulator not in pretrained.available():
        raise InputError(
            f"emulator: {emulator} is not shipped, and a compiled one finds shipped ones alone; "
            "use stellarfit.compile_emulator from Python"
        )
    star = read_spectrum(spectrum, medium=medium, resolution=resolution, snr=snr, format=format)
    compiled = compile_emulator(
        star, load_emulator(emulator), fixed=parse_fixed(fix or []), seed=seed, progress=not json
    )
    compiled.save(out)
    low, high = compiled.wavelength_range
    rms = float(np.sqrt(np.mean(np.asarray(compiled.rms) ** 2)))
    found = {
        "path": str(out), "emulator": compiled.name, "fingerprint": compiled.fingerprint,
        "wavelength": {"first": low, "last": high, "medium": "vacuum"}, "rms": rms,
        "fixed": dict(compiled.held),
    }  # fmt: skip
    if json:
        print(json_module.dumps(found))
        return
    print(f"{out}: {compiled.name} for {low:.1f} .. {high:.1f} Angstrom (vacuum)")
    print(f"its flux is off by {rms:.1e} (rms) before it is anchored; fits end where it is exact")
