"""The command line: one verb a step.

Heavy libraries are imported inside the commands, so that ``--help`` answers at once. Results go to
stdout (with ``--json`` one object, for machines), progress and warnings to stderr. Bad input is
one line on stderr and exit status 2, with nothing written.
"""

import functools
import inspect
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import typer

from .calibrate_command import calibrate
from .choose_command import choose
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

File = Annotated[Path, typer.Argument(help="FITS, ECSV or text file.", show_default=False)]
EmulatorName = Annotated[
    str | None, typer.Option("--emulator", help="Name or .h5 path; the shipped default otherwise.")
]
Medium = Annotated[str | None, typer.Option(help="air or vacuum, unless the file says it.")]
Resolution = Annotated[float | None, typer.Option(help="Resolving power lambda / FWHM.")]
Snr = Annotated[float | None, typer.Option(help="S/N a pixel, for files without errors.")]
Fix = Annotated[
    list[str] | None, typer.Option(help="Hold a parameter: --fix vmic=1.0. May be repeated.")
]
Window = Annotated[
    tuple[float, float] | None, typer.Option(help="Fit only these vacuum wavelengths [Angstrom].")
]
Wavelength = Annotated[str | None, typer.Option(help="Name of the wavelength column.")]
Flux = Annotated[str | None, typer.Option(help="Name of the flux column.")]
Ivar = Annotated[str | None, typer.Option(help="Name of the inverse-variance column.")]
Error = Annotated[str | None, typer.Option(help="Name of the 1-sigma error column.")]
Mask = Annotated[str | None, typer.Option(help="Name of the mask column; nonzero is bad.")]
Unit = Annotated[
    str | None, typer.Option("--wavelength-unit", help="Unit of the wavelengths, such as nm.")
]
Format = Annotated[str | None, typer.Option("--format", help="A specutils loader, by name.")]
Noise = Annotated[
    str | None,
    typer.Option(
        help="Amplitude of the emulator's error: law or validation; none: photons only. "
        "By default law where one is shipped."
    ),
]
Degree = Annotated[
    int | None, typer.Option("--continuum-degree", help="Of the marginalised polynomial.")
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]
OutFolder = Annotated[Path | None, typer.Option("--out", help="Folder for tables and pictures.")]
Seed = Annotated[int, typer.Option(help="Of everything random; it is recorded.")]
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


class _Job(NamedTuple):
    """One spectrum to fit, as the command line says."""

    spectrum: Any
    emulator: Any
    options: dict[str, Any]  # of `fit` and `sample` alike
    out: Path | None
    json: bool


def _job(
    file: File,
    medium: Medium = None,
    resolution: Resolution = None,
    snr: Snr = None,
    fix: Fix = None,
    window: Window = None,
    emulator: EmulatorName = None,
    noise: Noise = None,
    continuum_degree: Degree = None,
    wavelength: Wavelength = None,
    flux: Flux = None,
    ivar: Ivar = None,
    error: Error = None,
    mask: Mask = None,
    wavelength_unit: Unit = None,
    format: Format = None,
    out: OutFolder = None,
    json: Json = False,
) -> _Job:
    """Everything that can be refused, before anything is computed or written."""
    from emulators.emulator import load_emulator

    from .readers import read_spectrum
    from .report import check_folder

    fixed = _parse_fixed(fix or [])
    check_folder(out)
    spectrum = read_spectrum(
        file, medium=medium, resolution=resolution, snr=snr, wavelength=wavelength, flux=flux,
        ivar=ivar, error=error, mask=mask, wavelength_unit=wavelength_unit, format=format,
    )  # fmt: skip
    if window is not None:
        spectrum = spectrum.window(*window)
    options = {"fixed": fixed, "noise": noise, "continuum_degree": continuum_degree}
    return _Job(spectrum, load_emulator(emulator), options, out, json)


def _fits_a_spectrum(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command the options of `_job` before its own; it is called with the job."""
    shared = inspect.signature(_job).parameters
    own = list(inspect.signature(command).parameters.values())[1:]

    @functools.wraps(command)
    def run(**values: Any) -> None:
        job = _job(**{name: values.pop(name) for name in shared})
        command(job, **values)

    # what typer reads the options from
    signature = inspect.Signature([*shared.values(), *own])
    run.__signature__ = signature  # pyright: ignore[reportAttributeAccessIssue]
    return run


@app.command()
@_fits_a_spectrum
def fit(job: _Job) -> None:
    """Fit one spectrum: the most probable labels and their errors (MAP and Laplace)."""
    from . import report
    from .fitting import fit as fit_spectrum

    result = fit_spectrum(job.spectrum, job.emulator, **job.options)
    if job.out is not None:
        report.write_results(job.out, result)
    if job.json:
        report.print_json(result.to_dict())
    else:
        report.print_fit(result, job.out)


@app.command()
@_fits_a_spectrum
def sample(
    job: _Job,
    backend: Annotated[str, typer.Option(help="numpyro, blackjax or blackjax-hmc.")] = "numpyro",
    chains: Annotated[int, typer.Option(help="Number of chains.")] = 4,
    warmup: Annotated[int | None, typer.Option(help="Warm-up steps a chain.")] = None,
    samples: Annotated[int | None, typer.Option(help="Kept draws a chain.")] = None,
    seed: Seed = 0,
) -> None:
    """Sample the posterior of one spectrum by NUTS."""
    from . import report
    from .sampling import sample as sample_spectrum

    lengths: dict[str, Any] = {"num_warmup": warmup, "num_samples": samples}
    posterior = sample_spectrum(
        job.spectrum, job.emulator, backend=backend, num_chains=chains, seed=seed,
        progress=not job.json, **job.options,
        **{key: value for key, value in lengths.items() if value is not None},
    )  # fmt: skip
    if job.out is not None:
        report.write_results(job.out, posterior.fit, posterior)
    if job.json:
        report.print_json(report.posterior_to_dict(posterior))
    else:
        report.print_posterior(posterior, job.out)


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


def _parse_fixed(pairs: list[str]) -> dict[str, float]:
    from .report import parse_pair

    return dict(
        parse_pair(pair, f"--fix {pair}: give name=value, such as vmic=1.0") for pair in pairs
    )


def _steps_per_call(checkpoint_every: int) -> int:
    """Steps of one compiled call: the largest divisor of the checkpoint interval up to 200."""
    return max(n for n in range(1, min(200, checkpoint_every) + 1) if checkpoint_every % n == 0)


if __name__ == "__main__":
    sys.exit(main())
