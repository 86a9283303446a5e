"""``stellarfit survey`` and ``stellarfit merge``: many stars into one catalogue."""

from pathlib import Path
from typing import Annotated

import typer

from .fit_command import (
    Degree,
    EmulatorName,
    Error,
    Fix,
    Flux,
    Format,
    Ivar,
    Json,
    Mask,
    Medium,
    Noise,
    Unit,
    Wavelength,
    parse_fixed,
)


def survey(
    sources: Annotated[
        list[str],
        typer.Argument(
            help="Files of one star or of many, or a quoted glob: 'spectra/*.fits'.",
            show_default=False,
        ),
    ],
    out: Annotated[Path, typer.Option(help="The catalogue: .fits or .parquet.")],
    resume: Annotated[bool, typer.Option("--resume", help="Go on with a survey begun.")] = False,
    shard: Annotated[
        str | None,
        typer.Option(help="i/n: of n jobs that share a disk, the i-th, counted from 0."),
    ] = None,
    scheduler: Annotated[
        str | None, typer.Option(help="Of a Dask cluster whose workers see OUT: tcp://host:8786.")
    ] = None,
    medium: Medium = None,
    resolution: Annotated[
        float | None, typer.Option(help="Resolving power lambda / FWHM, unless the files say it.")
    ] = None,
    snr: Annotated[
        float | None, typer.Option(help="S/N a pixel, for files without errors.")
    ] = None,
    fix: Fix = None,
    emulator: EmulatorName = None,
    noise: Noise = None,
    continuum_degree: Degree = None,
    robust: Annotated[
        bool,
        typer.Option("--robust/--no-robust", help="Down-weight pixels that the model misses."),
    ] = True,
    wavelength: Wavelength = None,
    flux: Flux = None,
    ivar: Ivar = None,
    error: Error = None,
    mask: Mask = None,
    wavelength_unit: Unit = None,
    format: Format = None,
    draws: Annotated[int, typer.Option(help="Draws of each posterior, 32 or more; 0: none.")] = 0,
    seed: Annotated[int, typer.Option(help="Of the draws.")] = 0,
    part_size: Annotated[
        int, typer.Option(help="Stars of a part; a kill costs at most one part.")
    ] = 100,
    json: Json = False,
) -> None:
    """Fit many stars into one catalogue; killed at any point, it goes on with --resume."""
    from . import report
    from .compiled import load_emulator
    from .survey import run_survey
    from .sweep_command import connect

    columns = {
        "wavelength": wavelength, "flux": flux, "ivar": ivar, "error": error, "mask": mask,
        "wavelength_unit": wavelength_unit,
    }  # fmt: skip
    summary = run_survey(
        # One glob or file that is not there is a mistake; one of many is a star that failed.
        sources[0] if len(sources) == 1 else sources,
        load_emulator(emulator),
        out=out,
        resume=resume,
        shard=None if shard is None else _parse_shard(shard),
        client=None if scheduler is None else connect(scheduler),
        medium=medium,
        resolution=resolution,
        snr=snr,
        format=format,
        columns={key: name for key, name in columns.items() if name is not None},
        fixed=parse_fixed(fix or []),
        noise=noise,
        continuum_degree=continuum_degree,
        robust=robust,
        draws=draws,
        seed=seed,
        part_size=part_size,
        progress=not json,
    )
    found = summary._asdict()
    report.print_object(
        found | {"catalog": None if summary.catalog is None else str(summary.catalog)}, json
    )


def merge(
    out: Annotated[Path, typer.Argument(help="The catalogue of a survey that was begun.")],
    allow_missing: Annotated[
        bool, typer.Option("--allow-missing", help="Leave out the stars of missing parts.")
    ] = False,
    json: Json = False,
) -> None:
    """Join the parts of a survey into its catalogue; `survey` does so itself at its end."""
    from . import report
    from .catalog_file import CatalogFile
    from .merge import merge_survey

    catalog = merge_survey(out, allow_missing=allow_missing)
    meta = CatalogFile(catalog).meta
    report.print_object(
        {
            "catalog": str(catalog),
            "failed": int(meta["NFAILED"]),
            "missing_stars": int(meta.get("NMISSING", 0)),
        },
        json,
    )


def _parse_shard(text: str) -> tuple[int, int]:
    from emulators.errors import InputError

    first, _, number = text.partition("/")
    try:
        return int(first), int(number)
    except ValueError:
        raise InputError(f"--shard {text}: give i/n, such as 0/8 to 7/8") from None
