"""What the commands print and write. The verb ``report`` is `stellarfit.quality_command`."""

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from emulators.errors import InputError
from emulators.storage import atomic_write

from . import flags as flag_table
from .arms import Arms


def check_folder(out: Path | None) -> None:
    """Refuse an output folder that cannot be one, before any work is done."""
    if out is None:
        return
    if out.exists() and not out.is_dir():
        raise InputError(f"--out {out}: a file of that name exists; give a folder")
    parent = next(folder for folder in (out, *out.absolute().parents) if folder.is_dir())
    if not os.access(parent, os.W_OK):
        raise InputError(f"--out {out}: cannot write in {parent}")


def parse_pair(pair: str, complaint: str) -> tuple[str, float]:
    """``name=value`` as a name and a number, or the complaint as the one error."""
    name, _, value = pair.partition("=")
    try:
        return name.strip(), float(value)
    except ValueError:
        raise InputError(complaint) from None


def write_results(
    out: Path, fit: Any, posterior: Any = None, truth: Mapping[str, float] | None = None
) -> list[Path]:
    """Write ``catalog.fits`` and ``fit.png``; with a posterior ``posterior.nc`` and ``corner.png``.

    Returns the paths written.
    """
    from .catalog import make_catalog, write_catalog

    check_folder(out)
    result = fit if posterior is None else posterior
    seed = None if posterior is None else posterior.seed
    paths = [write_catalog(make_catalog([result], seed=seed), out / "catalog.fits")]
    paths.append(save_figure(fit.plot(), out / "fit.png"))
    if posterior is not None:
        with atomic_write(out / "posterior.nc") as temporary:
            posterior.to_arviz().to_netcdf(str(temporary))
        paths.append(out / "posterior.nc")
        paths.append(save_figure(posterior.plot_corner(truth=truth), out / "corner.png"))
    return paths


def save_figure(figure: Any, path: Path, dpi: Any = "figure") -> Path:
    """Write a PNG, whole or not at all; by default at the figure's own dots an inch."""
    with atomic_write(path) as temporary:
        figure.savefig(temporary, format="png", dpi=dpi)
    return path


def check_plot(path: Path) -> None:
    """Refuse a ``--plot`` that cannot be written, before there is anything to draw."""
    if path.is_dir() or not path.absolute().parent.is_dir():
        raise InputError(f"--plot {path}: give a file in a folder that exists")


def posterior_to_dict(posterior: Any) -> dict[str, Any]:
    """The fit's object, with the posterior's percentiles and diagnostics beside it."""
    table = posterior.summary()
    sampled = {
        row["name"]: {key: float(row[key]) for key in table.colnames if key != "name"}
        for row in table
    }
    return posterior.fit.to_dict() | {
        "posterior": sampled,
        "sampler": {key: _plain(value) for key, value in table.meta.items()},
        "flags": int(posterior.fit.flags) | int(posterior.flags),
    }


def print_json(contents: Any) -> None:
    """One JSON object on stdout; what is not finite becomes null."""
    print(json.dumps(_plain(contents), indent=2, allow_nan=False))


def print_object(contents: Mapping[str, Any], as_json: bool) -> None:
    """A description, for machines or for people."""
    if as_json:
        print_json(contents)
    else:
        _print_nested(_plain(contents), "")


def _print_nested(contents: Mapping[str, Any], indent: str) -> None:
    width = max((len(str(key)) for key in contents), default=0)
    for key, value in contents.items():
        if isinstance(value, dict) and value:
            print(f"{indent}{key}")
            _print_nested(value, indent + "  ")
        elif isinstance(value, list):
            print(f"{indent}{key:<{width}}  {', '.join(map(_text, value)) or '-'}")
        else:
            print(f"{indent}{key:<{width}}  {_text(value)}")


def _text(value: Any) -> str:
    return (
        f"{value:.6g}" if isinstance(value, float) else "-" if value in (None, {}) else str(value)
    )


def _plain(value: Any) -> Any:
    """Only what JSON knows."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | np.ndarray):
        return [_plain(item) for item in value]
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def print_fit(fit: Any, out: Path | None) -> None:
    """A table of the labels with their errors, and what to know about the fit."""
    table = new_table("parameter", "value", "error", "photon noise", "emulator", "mismatch")
    for i, name in enumerate(fit.names):
        digits = decimals(fit.error[i])
        numbers = (
            *(fit.values[i], fit.error[i], fit.error_stat[i]),
            *(fit.error_emulator[i], fit.error_mismatch[i]),
        )
        table.add_row(name, *(f"{number:.{digits}f}" for number in numbers))
    for name, value in fit.fixed.items():
        table.add_row(name, f"{value:g}", "fixed", "", "", "")
    _show(table)
    _print_closing(fit, int(fit.flags), out)


def print_posterior(posterior: Any, out: Path | None) -> None:
    """A table of posterior percentiles and diagnostics."""
    table = new_table("parameter", "mean", "sigma", "16%", "50%", "84%", "R-hat", "eff. draws")
    for row in posterior.summary():
        digits = decimals(row["sigma"])
        numbers = [f"{row[key]:.{digits}f}" for key in ("mean", "sigma", "p16", "p50", "p84")]
        table.add_row(row["name"], *numbers, f"{row['r_hat']:.3f}", f"{row['ess']:.0f}")
    _show(table)
    _print_closing(posterior.fit, int(posterior.fit.flags) | int(posterior.flags), out)


def new_table(*columns: str) -> Any:
    """A rich table: a column of names, then columns of numbers."""
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for i, column in enumerate(columns):
        table.add_column(column, justify="left" if i == 0 else "right", no_wrap=True)
    return table


def _show(table: Any) -> None:
    from rich.console import Console

    Console().print(table)


def decimals(error: float) -> int:
    """Decimals that show two digits of an error."""
    if not (np.isfinite(error) and error > 0):
        return 3
    return int(np.clip(1 - np.floor(np.log10(error)), 0, 5))


def _print_closing(fit: Any, flags: int, out: Path | None) -> None:
    spectrum = fit.spectrum
    print(
        f"{spectrum.name}: chi2/dof = {fit.chi2:.0f}/{fit.dof_effective:.1f}, "
        f"p = {fit.p_value:.2g}, {fit.seconds:.1f} s"
    )
    arms = spectrum.spectra.items() if isinstance(spectrum, Arms) else ()
    by_arm = ", ".join(f"{name} {int(one.good.sum())}" for name, one in arms)
    print(
        f"{int(spectrum.good.sum())} pixels fitted{by_arm and f' ({by_arm})'}, "
        f"wavelengths given in {spectrum.medium}; emulator {fit.emulator.name} "
        f"({fit.emulator.fingerprint}), solar scale {fit.emulator.label_space.solar_scale}"
    )
    for sentence in flag_table.describe(flags):
        print(f"flag: {sentence}")
    if out is not None:
        print(f"written to {out}")


def describe_grid(grid: Any) -> dict[str, Any]:
    """What a spectral grid holds."""
    space = grid.label_space
    return {
        "grid": str(grid.path),
        "spectra": len(grid),
        "labels": {
            name: {"lower": low, "upper": high, "unit": unit}
            for name, low, high, unit in zip(
                space.names, space.lower, space.upper, space.units, strict=True
            )
        },
        "wavelength": {
            "first": float(grid.wavelength[0]),
            "last": float(grid.wavelength[-1]),
            "pixels": len(grid.wavelength),
            "ln_step": grid.step,
            "medium": "vacuum",
        },
        "solar_scale": space.solar_scale,
        "provenance": grid.provenance,
        "hash": grid.hash,
    }
