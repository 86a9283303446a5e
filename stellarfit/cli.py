"""The command line: one verb a step.

Heavy libraries are imported inside the commands, so that ``--help`` answers at once. Results go to
stdout (with ``--json`` one object, for machines), progress and warnings to stderr. Bad input is
one line on stderr and exit status 2, with nothing written.
"""

import sys
import warnings
from pathlib import Path
from typing import Annotated, Any

import typer

from .calibrate_command import calibrate
from .catalog_command import convert, flags
from .choose_command import choose
from .compile_command import compile as compile_verb
from .fit_command import EmulatorName, Json, OutFolder, Seed, fit, sample
from .quality_command import report as report_verb
from .survey_command import merge, survey
from .sweep_command import sweep

app = typer.Typer(
    name="stellarfit",
    help="From a star's spectrum to Teff, logg and abundances with honest errors.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
grid_app = typer.Typer(help="Make or import a grid of synthetic spectra.", no_args_is_help=True)
app.add_typer(grid_app, name="grid")

Resume = Annotated[bool, typer.Option("--resume", help="Go on with a run that was stopped.")]


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Folder for the results.")] = Path("demo_out"),
    emulator: EmulatorName = None,
    seed: Seed = 0,
) -> None:
    """Fit a shipped star of known truth by MAP, Laplace and NUTS; write tables and pictures."""
    from .demo import run_demo

    run_demo(out, emulator=emulator, seed=seed)


app.command()(fit)
app.command()(sample)
app.command()(survey)
app.command()(merge)
app.command()(convert)
app.command()(flags)
app.command()(report_verb)
app.command()(compile_verb)


@grid_app.command("generate")
def grid_generate(
    path: Annotated[Path, typer.Argument(help="The .h5 file to write.")],
    num: Annotated[int, typer.Option(help="Number of spectra.")],
    start: Annotated[float, typer.Option(help="First vacuum wavelength [Angstrom].")] = 5100.0,
    stop: Annotated[float, typer.Option(help="Last vacuum wavelength [Angstrom].")] = 5300.0,
    step: Annotated[float, typer.Option(help="Sampling in ln(wavelength).")] = 1e-5,
    label: Annotated[
        list[str] | None,
        typer.Option(help="A label and its range, in order: --label teff=4000:7000. Repeated."),
    ] = None,
    vmic: Annotated[
        float | None, typer.Option(help="Microturbulence [km/s], where it is not a label.")
    ] = None,
    lines: Annotated[Path | None, typer.Option(help="Your own line list.")] = None,
    lines_format: Annotated[
        str, typer.Option(help="Its format: vald, turbospectrum or moog.")
    ] = "vald",
    batch_size: Annotated[int, typer.Option(help="Spectra a batch.")] = 64,
    seed: Seed = 0,
    resume: Resume = False,
    json: Json = False,
) -> None:
    """Synthesise a grid of spectra with quasi-random labels; killed at any point, it resumes."""
    from . import report
    from .grid_commands import generate

    grid = generate(
        path, num, (start, stop, step), label or [], vmic=vmic, lines=lines,
        lines_format=lines_format, batch_size=batch_size, seed=seed, resume=resume,
        progress=not json,
    )  # fmt: skip
    report.print_object(report.describe_grid(grid), json)


@grid_app.command("import")
def grid_import(
    table: Annotated[Path, typer.Argument(help="Table: labels, and a column of file names.")],
    path: Annotated[Path, typer.Argument(help="The .h5 file to write.")],
    medium: Annotated[str, typer.Option(help="air or vacuum: of the files' wavelengths.")],
    folder: Annotated[
        Path | None, typer.Option(help="Where the files are; beside the table otherwise.")
    ] = None,
    file_column: Annotated[str, typer.Option(help="Column of the file names.")] = "file",
    label: Annotated[
        list[str] | None,
        typer.Option(help="A column that is a label, in order; every numeric one otherwise."),
    ] = None,
    json: Json = False,
) -> None:
    """Import spectra that another code wrote: a table of labels, and FITS, text or NPZ files."""
    from emulators.grid_import import import_grid

    from . import report

    grid = import_grid(
        table, table.parent if folder is None else folder, path,
        medium=medium, file_column=file_column, label_columns=label,
    )  # fmt: skip
    report.print_object(report.describe_grid(grid), json)


@app.command()
def train(
    grid: Annotated[Path, typer.Argument(help="A grid file.")],
    run_dir: Annotated[Path, typer.Option(help="Folder of this run alone.")],
    steps: Annotated[int, typer.Option(help="Optimizer steps.")],
    width: Annotated[int, typer.Option(help="Of the network.")] = 64,
    depth: Annotated[int, typer.Option(help="Layers of the network.")] = 4,
    optimizer: Annotated[str, typer.Option(help="adam or muon.")] = "adam",
    learning_rate: Annotated[float, typer.Option(help="At width 64; muP carries it on.")] = 2e-3,
    batch_size: Annotated[int, typer.Option(help="Spectra a step.")] = 16,
    num_pixels: Annotated[int | None, typer.Option(help="Pixels a spectrum and step.")] = None,
    precision: Annotated[str, typer.Option(help="float32, tf32, float16 or bfloat16.")] = "float32",
    checkpoint_every: Annotated[int, typer.Option(help="Steps between checkpoints.")] = 2000,
    seed: Seed = 0,
    resume: Resume = False,
    json: Json = False,
) -> None:
    """Train an emulator on a grid; killed at any point, it resumes with the same bits."""
    from emulators.grid import SpectralGrid
    from emulators.train import train as train_emulator
    from emulators.train_config import TrainConfig
    from scaling.mup import MaximalUpdate

    from . import report

    config = TrainConfig(
        steps=steps, width=width, depth=depth, parametrization=MaximalUpdate(),
        optimizer=optimizer, learning_rate=learning_rate, batch_size=batch_size,
        num_pixels=num_pixels, precision=precision, seed=seed, checkpoint_every=checkpoint_every,
        validate_every=checkpoint_every, steps_per_call=_steps_per_call(checkpoint_every),
    )  # fmt: skip
    result = train_emulator(
        SpectralGrid.open(grid), config=config, run_dir=run_dir, resume=resume, progress=not json
    )
    report.print_object({"emulator": str(run_dir / "emulator.h5"), **result.row}, json)


@app.command("coordinate-check")
def coordinate_check(
    grid: Annotated[
        Path | None, typer.Option(help="A grid file to learn from; made-up lines otherwise.")
    ] = None,
    width: Annotated[
        list[int] | None, typer.Option(help="Of a network; 64, 128, 256 and 512. Repeated.")
    ] = None,
    seeds: Annotated[int, typer.Option(help="Runs of every network, from --seed on.")] = 8,
    seed: Seed = 0,
    out: OutFolder = None,
    json: Json = False,
) -> None:
    """Is it really muP? How far every layer moves in five training steps, against the width."""
    from scaling.coordinate_check import WIDTHS

    from . import report, scaling_commands

    summary, found = scaling_commands.coordinate_check(
        grid, width or WIDTHS, seeds, seed=seed, out=out, progress=not json
    )
    if json:
        report.print_json(summary)
    else:
        scaling_commands.print_slopes(found, summary, out)


@app.command()
def law(
    ledger: Annotated[Path, typer.Argument(help="A ledger of runs (runs.jsonl).")],
    out: Annotated[Path, typer.Option(help="The law to write.")] = Path("law.json"),
    seed: Seed = 0,
    json: Json = False,
) -> None:
    """Fit the scaling law of a ledger: test error by weights, unique spectra and spectra seen."""
    from . import report, scaling_commands

    summary = scaling_commands.fit_law(ledger, out, seed=seed)
    if json:
        report.print_json(summary)
    else:
        scaling_commands.print_law(summary)


@app.command()
def plan(
    law: Annotated[str, typer.Option(help="paper, fgk-mgb, or what `law` wrote.")] = "paper",
    target_mse: Annotated[float | None, typer.Option(help="Test MSE to reach.")] = None,
    flops: Annotated[float | None, typer.Option(help="Or operations to spend.")] = None,
    gpu_hours: Annotated[float | None, typer.Option(help="Or hours on one GPU.")] = None,
    gpu: Annotated[str, typer.Option(help="h200, h100 or a100.")] = "h200",
    tflops: Annotated[
        float | None, typer.Option(help="Its sustained TFLOP/s, where you measured them.")
    ] = None,
    json: Json = False,
) -> None:
    """What to train: size, spectra, steps and GPU hours for an error, or for a budget."""
    from . import report, scaling_commands

    summary = scaling_commands.make_plan(
        law, target_mse=target_mse, flops=flops, gpu_hours=gpu_hours, gpu=gpu, tflops=tflops
    )
    if json:
        report.print_json(summary)
    else:
        scaling_commands.print_plan(summary)


app.command()(choose)
app.command()(calibrate)
app.command()(sweep)


@app.command()
def info(
    source: Annotated[
        str | None, typer.Argument(help="An emulator (name or .h5), a grid file, or nothing.")
    ] = None,
    json: Json = False,
) -> None:
    """Say what an emulator or a grid holds, or what is installed."""
    from . import report
    from .info import describe

    report.print_object(describe(source), json)


def main(arguments: list[str] | None = None) -> int:
    """Run the command line and return its exit status: 0, or 2 for bad input."""
    warnings.showwarning = _show_warning
    warnings.filterwarnings("ignore", ".*ArviZ", FutureWarning)
    _progress_to_stderr()
    try:
        status = app(args=arguments, standalone_mode=False)
    except typer.Abort:
        return 130
    except Exception as error:
        # Wrong usage: typer brings its own copy of click, whose error class has no public name.
        if hasattr(error, "format_message"):
            message = error.format_message()  # pyright: ignore
            return _fail(message) if message else 2
        if not _is_input_error(error):
            raise
        return _fail(str(error))
    return int(status or 0)


def _is_input_error(error: Exception) -> bool:
    from emulators.errors import InputError

    return isinstance(error, InputError)


def _fail(message: str) -> int:
    sys.stderr.write(f"stellarfit: {' '.join(message.split())}\n")
    return 2


def _show_warning(message: Any, category: Any, *_: Any, **__: Any) -> None:
    sys.stderr.write(f"warning: {' '.join(str(message).split())}\n")


def _progress_to_stderr() -> None:
    """Every progress bar that is not told otherwise draws on rich's global console."""
    import rich

    rich.reconfigure(stderr=True)


def _steps_per_call(checkpoint_every: int) -> int:
    """Steps of one compiled call: the largest divisor of the checkpoint interval up to 200."""
    return max(n for n in range(1, min(200, checkpoint_every) + 1) if checkpoint_every % n == 0)


if __name__ == "__main__":
    sys.exit(main())
