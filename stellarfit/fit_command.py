"""``stellarfit fit`` and ``stellarfit sample``: one star, seen by one arm or by several."""

import functools
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import typer

Files = Annotated[
    list[Path],
    typer.Argument(
        help="FITS, ECSV, text or bulk file; several are arms of one star.", show_default=False
    ),
]
ArmNames = Annotated[
    list[str] | None, typer.Option("--arm", help="Name of an arm. Repeated: one a file.")
]
ZeroPoint = Annotated[
    float | None,
    typer.Option(
        help="Free the velocity zero point of each arm but the first; sigma of its prior [km/s]."
    ),
]
EmulatorName = Annotated[
    str | None, typer.Option("--emulator", help="Name or .h5 path; the shipped default otherwise.")
]
Medium = Annotated[str | None, typer.Option(help="air or vacuum, unless the file says it.")]
Resolution = Annotated[
    list[float] | None,
    typer.Option(
        help="Resolving power lambda / FWHM; of several files, repeated where it differs."
    ),
]
Snr = Annotated[
    list[float] | None,
    typer.Option(help="S/N a pixel, for files without errors; repeated as --resolution."),
]
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
Format = Annotated[
    str | None,
    typer.Option(
        "--format", help="A survey's layout, such as 'LAMOST LRS', or a specutils loader."
    ),
]
Row = Annotated[int | None, typer.Option(help="The star in a file of many, counted from 0.")]
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


class Job(NamedTuple):
    """One star to fit, as the command line says."""

    spectrum: Any
    emulator: Any
    options: dict[str, Any]  # of `fit` and `sample` alike
    out: Path | None
    json: bool


def _job(
    files: Files,
    arm: ArmNames = None,
    zero_point: ZeroPoint = None,
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
    row: Row = None,
    out: OutFolder = None,
    json: Json = False,
) -> Job:
    """Everything that can be refused, before anything is computed or written."""
    from emulators.errors import InputError

    from .arms import Arms
    from .compiled import load_emulator
    from .readers import read_spectrum
    from .report import check_folder

    fixed = parse_fixed(fix or [])
    check_folder(out)
    names = _check_arms(files, arm or [])
    each = zip(
        _one_each("--resolution", resolution, files), _one_each("--snr", snr, files), strict=True
    )
    spectra = [
        read_spectrum(
            file, medium=medium, resolution=power, snr=ratio, wavelength=wavelength, flux=flux,
            ivar=ivar, error=error, mask=mask, wavelength_unit=wavelength_unit, format=format,
            row=row,
        )
        for file, (power, ratio) in zip(files, each, strict=True)
    ]  # fmt: skip
    options = {"fixed": fixed, "noise": noise, "continuum_degree": continuum_degree}
    spectrum = Arms.gather(dict(zip(names, spectra, strict=True))) if names else spectra[0]
    if zero_point is not None:
        from numpyro.distributions import Normal

        if not (isinstance(spectrum, Arms) and len(spectrum.spectra) > 1 and zero_point > 0):
            raise InputError(
                f"--zero-point: {zero_point:g} for {len(files)} files; give a positive width "
                "[km/s], and two arms or more"
            )
        free = [name for name in spectrum.zero_points if name not in fixed]
        options["priors"] = {name: Normal(0.0, zero_point) for name in free}
    if window is not None:
        spectrum = spectrum.window(*window)
    return Job(spectrum, load_emulator(emulator), options, out, json)


def _check_arms(files: list[Path], names: list[str]) -> list[str]:
    """The names of the arms; none for a single file without one."""
    from emulators.errors import InputError

    if len(names) != len(files) and (names or len(files) > 1):
        raise InputError(
            f"--arm: {len(names)} names for {len(files)} files; files that are arms of one star "
            "are named, in their order: --arm blue --arm red"
        )
    if len(set(names)) < len(names):
        raise InputError(f"--arm: {', '.join(names)}; give every arm a name of its own")
    return names


def _one_each(key: str, given: list[float] | None, files: list[Path]) -> list[float | None]:
    """A value for each file, of one for all, one a file, or none."""
    from emulators.errors import InputError

    values: list[float | None] = list(given or [None])
    if len(values) not in (1, len(files)):
        raise InputError(f"{key}: {len(values)} values for {len(files)} files; give one for each")
    return values if len(values) == len(files) else values * len(files)


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


@_fits_a_spectrum
def fit(job: Job) -> None:
    """Fit one star: the most probable labels and their errors (MAP and Laplace)."""
    from . import report
    from .fitting import fit as fit_spectrum

    result = fit_spectrum(job.spectrum, job.emulator, **job.options)
    if job.out is not None:
        report.write_results(job.out, result)
    if job.json:
        report.print_json(result.to_dict())
    else:
        report.print_fit(result, job.out)


@_fits_a_spectrum
def sample(
    job: Job,
    backend: Annotated[str, typer.Option(help="numpyro, blackjax or blackjax-hmc.")] = "numpyro",
    chains: Annotated[int, typer.Option(help="Number of chains.")] = 4,
    warmup: Annotated[int | None, typer.Option(help="Warm-up steps a chain.")] = None,
    samples: Annotated[int | None, typer.Option(help="Kept draws a chain.")] = None,
    seed: Seed = 0,
) -> None:
    """Sample the posterior of one star by NUTS."""
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


def parse_fixed(pairs: list[str]) -> dict[str, float]:
    """What ``--fix`` says."""
    from .report import parse_pair

    return dict(
        parse_pair(pair, f"--fix {pair}: give name=value, such as vmic=1.0") for pair in pairs
    )
