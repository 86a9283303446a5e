"""``stellarfit report``: the quality page of a catalogue."""

from pathlib import Path
from typing import Annotated

import typer

from .fit_command import EmulatorName, Json


def report(
    catalog: Annotated[Path, typer.Argument(help="A catalogue, .fits or .parquet.")],
    out: Annotated[
        Path | None, typer.Option(help="The page, .html; beside the catalogue otherwise.")
    ] = None,
    residuals: Annotated[
        bool, typer.Option("--residuals", help="Fit the six worst stars again and draw residuals.")
    ] = False,
    emulator: EmulatorName = None,
    json: Json = False,
) -> None:
    """Write a page on what a catalogue is worth: errors, chi^2, flags, repeats, worst stars."""
    from emulators.emulator import load_emulator

    from .quality import write_quality_page
    from .report import print_object

    page = write_quality_page(
        catalog,
        out,
        residuals=residuals,
        emulator=None if emulator is None else load_emulator(emulator),
    )
    print_object(page._asdict() | {"path": str(page.path)}, json)
