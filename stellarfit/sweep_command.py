"""``stellarfit sweep``: train a ladder of emulators on one grid."""

from pathlib import Path
from typing import Annotated, Any

import typer


def sweep(
    config: Annotated[Path, typer.Argument(help="Which runs: a TOML file; see docs/scaling.md.")],
    grid: Annotated[Path, typer.Option(help="A grid file.")],
    out: Annotated[Path, typer.Option(help="Folder of the ledger and the checkpoints.")],
    held_out: Annotated[
        int, typer.Option(help="Spectra to validate on, and as many for the one test.")
    ] = 1024,
    seconds: Annotated[
        float | None, typer.Option(help="Begin nothing that would not end in them.")
    ] = None,
    scheduler: Annotated[
        str | None, typer.Option(help="Of a Dask cluster whose workers see OUT: tcp://host:8786.")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Make the runs that the ledger lacks, on all devices; killed at any point, call it again."""
    import math

    from emulators.grid import SpectralGrid
    from emulators.training_data import split_grid
    from scaling.sweep import Sweep
    from scaling.train_sweep import Spectra, train_sweep

    from . import report

    asked = Sweep.load(config)
    opened = SpectralGrid.open(grid)
    spectra = Spectra(opened.label_space, *split_grid(opened, 0, held_out, held_out))
    limit = math.inf if seconds is None else seconds
    client = None if scheduler is None else connect(scheduler)
    rows = train_sweep(asked, spectra, out, client=client, seconds=limit, progress=not json)
    expected = sum(
        trunks.num_runs for trunks in asked.trunks(opened.label_space, len(opened.wavelength))
    )
    summary = {
        "ledger": str(out / "runs.jsonl"),
        "runs": len(rows),
        "missing": expected - len(rows),
        "diverged": sum(row["mse_test"] is None for row in rows),
        "flops_spent": float(sum(row["flops_spent"] for row in rows)),
        "seconds": sum(row["seconds"] for row in rows),
    }
    report.print_object(summary, json)


def connect(address: str) -> Any:
    """A client of the Dask scheduler at an address."""
    from emulators.errors import InputError

    try:
        from distributed import Client
    except ImportError as error:
        raise InputError("--scheduler needs dask: pip install 'stellarfit[cluster]'") from error
    try:
        return Client(address, timeout=30)
    except (OSError, ValueError) as error:
        raise InputError(f"--scheduler {address}: no scheduler answers there: {error}") from error
