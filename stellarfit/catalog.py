"""Fits and posteriors as one table: a row a star, in FITS or Parquet."""

import json
import os
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from astropy.table import Column, Table

from emulators.errors import InputError
from emulators.storage import atomic_write

from . import __version__
from .abundances import IRON, hydrogen_name, over_hydrogen
from .arms import ZERO_POINT, Arms
from .draws import Drawn
from .flags import BAD, WARN, Flag
from .readers.frame import FRAMES

# Of the columns and header, as docs/catalog.md has them: one more where a column changes what it
# is called or means, or goes; a new one leaves it.
SCHEMA = 1

# Catalogue names of parameters whose name in the model is shorter.
_COLUMN_NAMES = {"vmic": "v_micro", "v_mac": "v_macro"}
# Logarithmic columns carry no unit: FITS has none for dex.
_UNITS = {"teff": "K"} | {f"v_{name}": "km/s" for name in ("rad", "sini", "micro", "macro")}
_PARTS = ("stat", "sys", "emulator", "mismatch")  # of an error
_PERCENTILES = (16, 50, 84)


def make_catalog(results: Sequence[Any], *, seed: int | None = None) -> Any:
    """Put fits and posteriors of one emulator into one table.

    Parameters
    ----------
    results : sequence of Fit or Posterior
        One a star.
    seed : int, optional
        The seed of the sampling, for the header.

    Returns
    -------
    astropy.table.Table
        Per parameter ``teff``, ``e_teff`` (1 sigma, everything included), ``e_teff_stat``,
        ``e_teff_sys`` (its part by photon noise, and the rest), ``e_teff_emulator`` and
        ``e_teff_mismatch`` (the two parts of the rest); NaN for a parameter held fixed; and
        ``teff_p16``, ``teff_p50``, ``teff_p84`` where any star was sampled. ``v_rad`` is in the
        `frame` of the wavelengths. [X/H] follows from
        [Fe/H] and [X/Fe] with their covariance, or draw by draw. ``p_value`` is of ``chi2`` with
        ``dof_effective`` (`stellarfit.goodness`). ``covariance`` is the upper
        triangle, row by row, over the parameters that the header lists as ``COVNAMES``.
    """
    if not results:
        raise InputError("catalog: no results to tabulate")
    fits = [_fit_of(result) for result in results]
    parameters = _parameters(fits)
    rows = [
        _row(fit, None if result is fit else result, parameters)
        for fit, result in zip(fits, results, strict=True)
    ]
    table: Any = Table(_fill(rows))
    for name in table.colnames:
        if (unit := unit_of(name)) is not None:
            table[name].unit = unit
    table.meta = header(fits[0].emulator, parameters, seed)
    return table


def result_row(result: Any) -> tuple[dict[str, Any], list[str]]:
    """Put one result into a row of plain numbers, over its own parameters, which come with it."""
    fit = _fit_of(result)
    parameters = _parameters([fit])
    row = _row(fit, None if result is fit else result, parameters)
    if isinstance(result, Drawn):
        draws = _spread(result.samples, result.names, parameters)
        row |= {"k_hat": result.k_hat, "r_hat": result.r_hat, "draws": draws}
    return row, parameters


def blank_row(parameters: Sequence[str], num_draws: int = 0) -> dict[str, Any]:
    """The row of a star that has no result: NaN for what is real, 0 for what is counted."""
    row: dict[str, Any] = {"name": "", "medium": "", "frame": ""}
    for parameter in parameters:
        column = _column_name(parameter)
        stems = [column]
        names = [column, f"e_{column}", *(f"e_{column}_{part}" for part in _PARTS)]
        if parameter.endswith("_fe") and IRON in parameters:
            stems.append(hydrogen_name(parameter))
            names += [stems[1], f"e_{stems[1]}"]
        if num_draws:
            names += [f"{stem}_p{percent}" for stem in stems for percent in _PERCENTILES]
        row |= dict.fromkeys(names, np.nan)
    number = len(parameters)
    if num_draws:
        row |= dict.fromkeys(("k_hat", "r_hat"), np.nan)
        row |= {"draws": np.full(num_draws * number, np.nan)}
    return row | {
        "chi2": np.nan,
        "dof": 0,
        "dof_effective": np.nan,
        "p_value": np.nan,
        "snr": np.nan,
        "num_pixels": 0,
        "result_flags": 0,
        **_judge(0),
        "covariance": np.full(number * (number + 1) // 2, np.nan),
    }


def failed_row(name: str, parameters: Sequence[str], num_draws: int = 0) -> dict[str, Any]:
    """The row of a star that could not be read or fitted."""
    flags = int(Flag.FAILED)
    return blank_row(parameters, num_draws) | {"name": name, "result_flags": flags} | _judge(flags)


def widen_row(
    row: dict[str, Any], parameters: Sequence[str], wider: Sequence[str]
) -> dict[str, Any]:
    """A row over `parameters` as one over `wider`, which holds them all; NaN where it is blank."""
    number = len(parameters)
    packed, whole = np.full((number, number), np.nan), np.full((len(wider),) * 2, np.nan)
    packed[np.triu_indices(number)] = row["covariance"]
    packed.T[np.triu_indices(number)] = row["covariance"]
    where = [list(wider).index(name) for name in parameters]
    whole[np.ix_(where, where)] = packed
    found: dict[str, Any] = {"covariance": whole[np.triu_indices(len(wider))]}
    num_draws = len(row.get("draws", ())) // number
    if num_draws:
        draws = np.reshape(row["draws"], (num_draws, number))
        found["draws"] = _spread(draws, parameters, wider)
    return blank_row(wider, num_draws) | row | found


def _spread(draws: np.ndarray, names: Sequence[str], wider: Sequence[str]) -> np.ndarray:
    """Draws over `names` as a row's, one after another over `wider`; NaN for the others."""
    whole = np.full((len(draws), len(wider)), np.nan)
    whole[:, [list(wider).index(name) for name in names]] = draws
    return whole.ravel()


def header(emulator: Any, parameters: Sequence[str], seed: int | None = None) -> dict[str, Any]:
    """What a catalogue says of all its rows; `parameters` are those of its covariances."""
    found = {
        "SCHEMA": SCHEMA,
        "CREATOR": f"stellarfit {__version__}",
        "EMULATOR": emulator.name,
        "EMUHASH": emulator.fingerprint,
        "SOLSCALE": emulator.label_space.solar_scale,
        "WAVEMED": "vacuum",
        "COVNAMES": covariance_names(parameters),
    }
    return found if seed is None else found | {"SEED": seed}


def covariance_names(parameters: Sequence[str]) -> str:
    """The header's ``COVNAMES``."""
    return ",".join(_column_name(name) for name in parameters)


def write_catalog(table: Any, path: str | os.PathLike[str]) -> Path:
    """Write a catalogue as FITS or Parquet, by the file's suffix; whole or not at all."""
    target = Path(path)
    kind = kind_of(target)
    with atomic_write(target) as temporary:
        if kind == "fits":
            with warnings.catch_warnings():
                # COVNAMES may be longer than a card; astropy continues it on the next.
                warnings.filterwarnings("ignore", ".*card is too long.*")
                table.write(temporary, format="fits", overwrite=True)
        else:
            _write_parquet(table, temporary)
    return target


def read_catalog(path: str | os.PathLike[str]) -> Any:
    """Read a catalogue that `write_catalog` wrote."""
    source = Path(path)
    if not source.is_file():
        raise InputError(f"{source}: no such file")
    if kind_of(source) == "fits":
        # NaN (a fixed parameter has no error) stays NaN instead of becoming a masked entry.
        stored: Any = Table.read(source, format="fits", mask_invalid=False)
        stored.convert_bytestring_to_unicode()
        return stored
    import pyarrow.parquet

    columns = pyarrow.parquet.read_table(source)
    metadata = json.loads((columns.schema.metadata or {}).get(b"stellarfit", b'{"meta": {}}'))
    table: Any = Table(
        {name: column_array(columns[name]) for name in columns.column_names},
        meta=metadata["meta"],
    )
    for name, unit in metadata.get("units", {}).items():
        table[name].unit = unit
    return table


def _fit_of(result: Any) -> Any:
    return getattr(result, "fit", result)


def _column_name(parameter: str) -> str:
    return _COLUMN_NAMES.get(parameter, parameter)


def _parameters(fits: Sequence[Any]) -> list[str]:
    """Every parameter of the fits, labels first and in the emulator's order, fixed ones too."""
    labels = list(fits[0].emulator.label_space.names)
    for fit in fits:
        if list(fit.emulator.label_space.names) != labels:
            raise InputError("catalog: the fits come from emulators with different labels")
    others = [name for fit in fits for name in (*fit.names, *fit.fixed) if name not in labels]
    return labels + list(dict.fromkeys(others))


def _row(fit: Any, posterior: Any, parameters: Sequence[str]) -> dict[str, Any]:
    row: dict[str, Any] = {
        "name": fit.spectrum.name,
        "medium": fit.spectrum.medium,
        "frame": _frame(fit.spectrum),
    }
    names = list(fit.names)
    covariance = _full_covariance(fit, parameters)
    draws = {}
    if posterior is not None:
        flat = np.asarray(posterior.samples).reshape(-1, len(posterior.names))
        draws = dict(zip(posterior.names, flat.T, strict=True))
        draws |= over_hydrogen(draws, fit.fixed)
    for i, parameter in enumerate(parameters):
        column = _column_name(parameter)
        if parameter in names:
            j = names.index(parameter)
            row[column] = float(fit.values[j])
            row[f"e_{column}"] = float(fit.error[j])
            row |= {
                f"e_{column}_{part}": float(getattr(fit, f"error_{part}")[j]) for part in _PARTS
            }
        else:
            row[column] = float(fit.fixed.get(parameter, np.nan))
            row |= dict.fromkeys(
                [f"e_{column}", *(f"e_{column}_{part}" for part in _PARTS)], np.nan
            )
        if parameter in draws:
            row |= _percentiles(column, draws[parameter])
        if parameter.endswith("_fe"):
            row |= _over_hydrogen(row, parameter, i, parameters, covariance, draws)
    good = fit.spectrum.good
    row |= {
        "chi2": float(fit.chi2),
        "dof": int(fit.dof),
        "dof_effective": float(fit.dof_effective),
        "p_value": float(fit.p_value),
        "snr": float(fit.spectrum.snr),
        "num_pixels": int(good.sum()),
        "result_flags": _flags(fit, posterior),
    }
    row |= _judge(row["result_flags"])
    row["covariance"] = covariance[np.triu_indices(len(parameters))]
    return row


def _frame(spectrum: Any) -> str:
    """Whose velocity the wavelengths are free of; arms may differ."""
    spectra = spectrum.spectra.values() if isinstance(spectrum, Arms) else [spectrum]
    found = {str(one.meta.get("frame", "unknown")) for one in spectra}
    # A header may have a card of that name which means something else.
    return " and ".join(sorted(one if one in FRAMES else "unknown" for one in found))


def _full_covariance(fit: Any, parameters: Sequence[str]) -> np.ndarray:
    """Covariance over all parameters of the catalogue; NaN where one was not free."""
    full = np.full((len(parameters), len(parameters)), np.nan)
    where = [parameters.index(name) for name in fit.names]
    full[np.ix_(where, where)] = np.asarray(fit.covariance)
    return full


def _over_hydrogen(row, parameter, i, parameters, covariance, draws) -> dict[str, float]:
    """[X/H] = [X/Fe] + [Fe/H], with the error that their covariance gives."""
    if IRON not in parameters:
        return {}
    j = list(parameters).index(IRON)
    column = hydrogen_name(parameter)
    # A fixed parameter has no covariance and adds none.
    variance = np.nansum([covariance[i, i], covariance[j, j], 2 * covariance[i, j]])
    free = np.isfinite(covariance[i, i]) or np.isfinite(covariance[j, j])
    derived = {
        column: row[parameter] + row[IRON],
        f"e_{column}": float(np.sqrt(variance)) if free else np.nan,
    }
    if column in draws:
        derived |= _percentiles(column, draws[column])
    return derived


def _percentiles(column: str, draws: np.ndarray) -> dict[str, float]:
    # Of n draws a further one lies below the k-th in k cases of n + 1: between the percentiles of
    # few draws lies the truth as often as it should.
    values = np.percentile(draws, _PERCENTILES, method="weibull")
    return {
        f"{column}_p{percent}": float(v) for percent, v in zip(_PERCENTILES, values, strict=True)
    }


def _flags(fit: Any, posterior: Any) -> int:
    return int(fit.flags) | (int(posterior.flags) if posterior is not None else 0)


def _judge(flags: int) -> dict[str, bool]:
    """Whether the flags of a result warn of, or forbid, its use."""
    return {"flag_warn": bool(flags & int(WARN)), "flag_bad": bool(flags & int(BAD))}


def _fill(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Columns over all rows; stars that were not sampled have NaN percentiles."""
    keys = list(max(rows, key=len))
    return {key: Column([row.get(key, np.nan) for row in rows], name=key) for key in keys}


def unit_of(column: str) -> str | None:
    """The unit of a catalogue's column, if it has one."""
    stem = column.removeprefix("e_")
    for ending in (*(f"_{part}" for part in _PARTS), *(f"_p{p}" for p in _PERCENTILES)):
        stem = stem.removesuffix(ending)
    return "km/s" if stem.startswith(ZERO_POINT) else _UNITS.get(stem)


def ascii_text(text: str) -> bytes:
    """Text as FITS knows it."""
    return text.encode("ascii", "backslashreplace")


def kind_of(path: Path) -> str:
    """Whether a catalogue of this name is ``"fits"`` or ``"parquet"``."""
    suffixes = {".fits": "fits", ".parquet": "parquet"}
    if path.suffix.lower() not in suffixes:
        raise InputError(f"{path}: a catalogue is written as .fits or .parquet, by its suffix")
    return suffixes[path.suffix.lower()]


def _write_parquet(table: Any, path: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    columns = {name: pyarrow.array(np.asarray(table[name]).tolist()) for name in table.colnames}
    units = {name: str(table[name].unit) for name in table.colnames if table[name].unit is not None}
    metadata = parquet_metadata(units, table.meta)
    arrow = pyarrow.table(columns).replace_schema_metadata(metadata)
    pyarrow.parquet.write_table(arrow, path)


def column_array(column: Any) -> np.ndarray:
    """A column of a pyarrow Table as an array: numbers, text, or rows of equal length."""
    import pyarrow
    import pyarrow.compute

    if pyarrow.types.is_list(column.type):
        flat = pyarrow.compute.call_function("list_flatten", [column]).to_numpy()
        return flat.reshape(len(column), -1 if len(column) else 0)
    found = column.to_numpy()
    if found.dtype != object:
        return found
    # A column of a table without rows has no type.
    return found.astype(str if len(found) else float)


def parquet_metadata(units: Mapping[str, str], meta: Mapping[str, Any]) -> dict[str, str]:
    """What a catalogue in Parquet says of its columns, by their names, and of itself."""
    return {"stellarfit": json.dumps({"meta": dict(meta), "units": dict(units)})}
