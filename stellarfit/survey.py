"""Many stars, part by part: killed at any point, a survey goes on where it stopped."""

import functools
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import pyarrow

from emulators.bundle import tree_to_arrays
from emulators.errors import InputError
from emulators.storage import array_hash

from . import __version__
from .arms import ZERO_POINT
from .catalog import SCHEMA, header, kind_of, read_catalog
from .compiled import load_emulator, with_held
from .emulator_error import amplitude_prior, default_noise
from .fit_stars import Tell, fit_stars
from .merge import merge_survey
from .priors import describe_priors, make_prior
from .readers.build import check_medium
from .sources import COLUMN_KEYS, find_files, list_stars
from .survey_folder import SurveyFolder
from .survey_progress import Progress

_FEWEST_DRAWS = 32  # whose weights have a tail to be told from
_RETRIES = 2  # of a part, where a worker reports an error of its own


class Summary(NamedTuple):
    """How a survey stands after a call.

    Attributes
    ----------
    catalog
        Its path; None while parts are missing.
    stars, failed
        With a row, over all parts that are there; those of them that could not be read or fitted.
    parts, missing
        Of the whole survey; not there yet.
    fitted
        Stars of the parts that this call made.
    seconds
        That it took.
    """

    catalog: Path | None
    stars: int
    failed: int
    parts: int
    missing: int
    fitted: int
    seconds: float


def fit_survey(sources: Any, emulator: Any = None, *, out: Any, **options: Any) -> Any:
    """Fit many stars into one catalogue; killed at any point, it goes on with ``resume=True``.

    Parameters
    ----------
    sources : str, path, or sequence of them
        A glob such as ``"spectra/*.fits"``, or paths and globs. Files of one star and of many, of
        any kind that `stellarfit.read_spectrum` reads.
    emulator : Emulator, its name or the path of its file, optional
        The shipped default otherwise.
    out : path
        The catalogue, ``.fits`` or ``.parquet``. Its parts are kept in the folder ``<out>.parts``,
        which may be removed once the catalogue is there.
    **options
        Those of `run_survey`.

    Returns
    -------
    astropy.table.Table or None
        The catalogue, a row a star in the order of `sources` (`stellarfit.merge.merge_survey` says
        which columns). None where parts are missing that other shards make.

    Raises
    ------
    InputError
        As `run_survey`.

    Examples
    --------
    >>> catalog = sf.fit_survey(
    ...     "spectra/*.fits", out="catalog.fits", medium="air", resolution=28_000, resume=True
    ... )  # doctest: +SKIP
    """
    summary = run_survey(sources, emulator, out=out, **options)
    return None if summary.catalog is None else read_catalog(summary.catalog)


def run_survey(
    sources: Any,
    emulator: Any = None,
    *,
    out: Any,
    resume: bool = False,
    shard: tuple[int, int] | None = None,
    client: Any = None,
    medium: str | None = None,
    resolution: float | int | None = None,
    snr: float | int | None = None,
    format: str | None = None,
    columns: Mapping[str, Any] | None = None,
    fixed: Mapping[str, float | int] | None = None,
    priors: Mapping[Any, Any] | None = None,
    noise: str | None = None,
    continuum_degree: int | None = None,
    robust: bool = True,
    draws: int = 0,
    seed: int = 0,
    part_size: int = 100,
    progress: bool = True,
) -> Summary:
    """Do what `fit_survey` does, and say how the survey stands, without reading the catalogue.

    Parameters
    ----------
    sources, emulator, out
        As of `fit_survey`.
    resume : bool
        Go on with a survey that was begun; with another configuration it is refused.
    shard : (i, n), optional
        Make only every n-th part, from the i-th on, counted from 0: for n jobs that share a disk.
        The job that finds all parts there merges them. A shard joins a survey that was begun.
    client : dask.distributed.Client, optional
        Parts are then made by its workers, which must all see `sources` and `out`. A part whose
        worker dies is made by another one.
    medium, resolution, snr, format
        As of `stellarfit.read_spectrum`, of all files alike.
    columns : mapping, optional
        Names of columns where the usual ones do not serve: ``wavelength``, ``flux``, ``ivar``,
        ``error``, ``mask``, ``wavelength_unit``, ``hdu``, as of `stellarfit.read_spectrum`.
    fixed, priors, noise, continuum_degree, robust
        As of `stellarfit.fit`, of all stars alike.
    draws, seed : int
        Draws of each posterior, and their seed; by default none. They are in the catalogue with
        percentiles; by importance, or where ``k_hat`` is above 0.7 by chains with an ``r_hat``. The
        flag ``poor_draws`` says that neither can be trusted, and the star wants
        `stellarfit.sample`.
    part_size : int
        Stars of a part; a kill costs at most the time of one part.
    progress : bool
        Show stars done, their rate, the time left and the failures, on stderr.

    Returns
    -------
    Summary

    Raises
    ------
    InputError
        Sources that are not there, options out of range, a used folder without `resume`, another
        configuration with it, a disk that is full. A star that cannot be read or fitted is none:
        it is a row with the flag ``failed`` and the `reason`.
    """
    began = time.monotonic()
    out = Path(out)
    kind_of(out)
    if shard is not None and not 0 <= shard[0] < shard[1]:
        raise InputError(
            f"shard: {shard[0]}/{shard[1]}; give i/n with 0 <= i < n, such as 0/8 to 7/8"
        )
    for key, value in (("draws", draws), ("seed", seed)):
        if not isinstance(value, int | np.integer) or not 0 <= value < 2**32:
            raise InputError(f"{key}: {value!r}; give a whole number from 0 to {2**32 - 1}")
    if 0 < draws < _FEWEST_DRAWS:
        raise InputError(f"draws: {draws}; give {_FEWEST_DRAWS} or more, or 0 for none")
    if part_size < 1:
        raise InputError(f"part_size: {part_size}; give at least one star a part")
    reading: dict[str, Any] = {"medium": medium, "resolution": resolution, "snr": snr,
                               "format": format, **_check_columns(columns)}  # fmt: skip
    reading = {key: value for key, value in reading.items() if value is not None}
    _check_numbers(medium, resolution=resolution, snr=snr, continuum_degree=continuum_degree)
    emulator = load_emulator(emulator)
    if noise is None:
        noise = default_noise(emulator)
    fitting = {"fixed": dict(fixed or {}), "priors": dict(priors or {}), "noise": noise,
               "continuum_degree": continuum_degree, "robust": robust}  # fmt: skip
    if draws:
        fitting |= {"draws": int(draws), "seed": int(seed)}
    _check_fitting(emulator, fitting)
    files = find_files(sources)
    folder = SurveyFolder(out)
    folder.begin(
        _config(emulator, files, reading, fitting, part_size),
        header(emulator, [], seed if draws else None),
        emulator.label_space.names,
        list_stars(files, reading),
        resume=resume or shard is not None,
    )
    first, step = shard or (0, 1)
    todo = [part for part in folder.missing() if part % step == first]
    num = sum(map(folder.num_stars, todo))
    with Progress(num, folder.manifest["stars"], show=progress) as tally:
        if client is not None:
            _on_cluster(client, folder, emulator, todo, reading, fitting, tally.add)
        else:
            for part in todo:
                make_part(folder, part, emulator, reading, fitting, tally.add)
    missing = folder.missing()
    there = sorted(set(range(folder.num_parts)) - set(missing))
    return Summary(
        merge_survey(out) if not missing else None,
        sum(map(folder.num_stars, there)),
        sum(folder.about(part)["failed"] for part in there),
        folder.num_parts,
        len(missing),
        num,
        time.monotonic() - began,
    )


def make_part(
    folder: SurveyFolder,
    part: int,
    emulator: Any,
    reading: Mapping[str, Any],
    fitting: Mapping[str, Any],
    tell: Tell,
) -> None:
    """Fit the stars of one part and write their rows; nothing where another process was first."""
    if folder.part(part).exists():
        tell(folder.num_stars(part), folder.about(part)["failed"])
        return
    rows, parameters = fit_stars(folder.stars(part), emulator, reading, fitting, tell)
    folder.write_part(part, rows, parameters, sum(bool(row["reason"]) for row in rows))


def _on_cluster(client, folder, emulator, todo, reading, fitting, tell) -> None:
    """Parts made by the workers of a cluster; only their numbers and counts travel."""
    from distributed import as_completed

    # On the disk that all share: data sent to a worker are lost with it.
    if not folder.emulator.exists():
        emulator.save(folder.emulator)
    futures = {
        client.submit(
            _work, folder, part, reading, fitting, pure=False, retries=_RETRIES,
            key=f"{folder.out.name}-part-{part:05d}-{time.time_ns()}",
        ): part
        for part in todo
    }  # fmt: skip
    errors = {}
    try:
        for future in as_completed(futures):
            error = future.exception()
            if error is not None:
                errors[futures[future]] = error
                continue
            tell(*future.result())
            future.release()
    except BaseException:
        client.cancel(list(futures))
        raise
    if errors:
        part, error = min(errors.items())
        raise InputError(
            f"{len(errors)} of {len(todo)} parts failed on the cluster, the first is "
            f"{folder.part(part).name}: {type(error).__name__}: {error}; the others are kept: go "
            "on by resume=True (--resume)"
        )


def _work(folder: SurveyFolder, part: int, reading: Any, fitting: Any) -> tuple[int, int]:
    """On a worker: make a part, and say how many stars it has and how many of them failed."""
    emulator = _load(folder.emulator, folder.emulator.stat().st_mtime_ns)
    make_part(folder, part, emulator, reading, fitting, lambda *_: None)
    return folder.num_stars(part), folder.about(part)["failed"]


@functools.lru_cache(maxsize=1)
def _load(path: Path, _changed: int) -> Any:
    return load_emulator(path)


def _check_columns(columns: Mapping[str, Any] | None) -> dict[str, Any]:
    found = dict(columns or {})
    for key in found:
        if key not in COLUMN_KEYS:
            raise InputError(
                f"columns: {key!r} is not known; give some of {', '.join(COLUMN_KEYS)}"
            )
    return found


def _check_numbers(medium: str | None, **given: float | int | None) -> None:
    """Refuse once what would otherwise fail with every star."""
    check_medium(medium)
    for key, value in given.items():
        least = 0 if key == "continuum_degree" else np.finfo(float).tiny
        if value is not None and not least <= value < np.inf:
            wanted = "0 or more" if key == "continuum_degree" else "a positive number"
            raise InputError(f"{key}: {value}; give {wanted}")


def _check_fitting(emulator: Any, fitting: Mapping[str, Any]) -> None:
    """Refuse once what would otherwise fail with every star."""
    keys = [*fitting["fixed"], *fitting["priors"]]
    names = [name for key in keys for name in ([key] if isinstance(key, str) else key)]
    # Which arms there are, only the stars can tell.
    arms = sorted({name for name in names if name.startswith(ZERO_POINT)})
    fixed = with_held(emulator, fitting["fixed"], fitting["priors"])
    make_prior(emulator.label_space, fixed, fitting["priors"], arms)
    amplitude_prior(emulator, fitting["noise"])


def _config(
    emulator: Any,
    files: Sequence[str],
    reading: Mapping[str, Any],
    fitting: Mapping[str, Any],
    part_size: int,
) -> dict[str, Any]:
    """Everything that decides the rows, by a key that a message can name."""
    errors = tree_to_arrays(emulator.error_model)
    return {
        "emulator": emulator.fingerprint,
        "emulator.error_model": array_hash(errors)[:12],
        "sources": f"{len(files)} files, {array_hash({'files': np.array(files)})[:12]}",
        **reading,
        **fitting,
        "priors": describe_priors(fitting["priors"]),
        "part_size": part_size,
        "version": __version__,
        "version.schema": SCHEMA,
        "version.jax": jax.__version__,
        "version.numpy": np.__version__,
        "version.pyarrow": pyarrow.__version__,
    }
