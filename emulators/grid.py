"""A grid of synthetic spectra in one HDF5 file, made so that a kill costs at most one batch.

Every spectrum is sampled on one nominal wavelength grid displaced by a sub-pixel `dither`: star s,
pixel i lies at ``wavelength[i] * exp(dither[s] * step)``, dither uniform in [-0.5, 0.5). A cool
star's lines are as narrow as a pixel, and the emulator is later evaluated between the pixels;
without the dither a network with periods shorter than a pixel would be unconstrained there.

The labels and the dither of star s depend on the seed and on s only, and each batch is written
to a shard of its own, under a temporary name and renamed. So a run that was killed and resumed
gives the same arrays as one that was not, and no spectrum is lost or made twice.
"""

import json
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import h5py
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int

from emulators.errors import InputError
from emulators.grid_files import (
    FORMAT,
    check_spectra,
    config_hash,
    continuum_nodes,
    ln_step,
    log_continuum_nodes,
    merge_shards,
    refuse_existing,
    write_grid,
    write_shard,
)
from emulators.labels import LabelSpace
from emulators.storage import array_hash, atomic_write
from emulators.wavelength import air_to_vacuum

if TYPE_CHECKING:
    from emulators.physics.synthesizer import Synthesizer

_DITHER_STREAM = 1  # keeps the dither's random numbers apart from the labels' of the same seed


class SpectralGrid:
    """Spectra with labels, on one wavelength grid, in one HDF5 file opened for reading.

    Attributes
    ----------
    path
        The file.
    label_space
        Names and bounds of the labels.
    wavelength
        Nominal wavelengths [pixel], vacuum Angstrom, float64.
    step
        Spacing in ln wavelength; None where the grid is not ln-uniform (imported spectra).
    labels
        [star, label], float64.
    dither
        Displacement of each star's samples in steps [star], float64.
    provenance
        What made the spectra.
    hash
        Hash of everything but the path.
    """

    def __init__(self, path: str | os.PathLike[str]):
        self.path = Path(path)
        if not self.path.is_file():
            raise InputError(f"grid {path}: no such file")
        try:
            with h5py.File(self.path, "r") as file:
                if file.attrs.get("format") != FORMAT:
                    raise KeyError("format")
                self.label_space = LabelSpace.from_dict(json.loads(file.attrs["label_space"]))
                self.provenance: dict[str, Any] = json.loads(file.attrs["provenance"])
                self.hash: str = file.attrs["hash"]
                self.wavelength: np.ndarray = file["wavelength"][()]
                self.labels: np.ndarray = file["labels"][()]
                self.dither: np.ndarray = file["dither"][()]
                self._num_pixels = file["flux"].shape[1]
                step = file.attrs["step"]
        except (OSError, KeyError, ValueError) as error:
            raise InputError(
                f"grid {path}: not a whole grid file of stellarfit ({error})"
            ) from None
        self.step: float | None = float(step) if step > 0 else None

    def __len__(self) -> int:
        return len(self.labels)

    def flux(self, stars: slice | np.ndarray = slice(None)) -> Float[np.ndarray, "star pixel"]:
        """Normalised flux of some stars (a slice, or increasing indices), float32."""
        with h5py.File(self.path, "r") as file:
            return file["flux"][stars]

    def continuum(self, stars: slice | np.ndarray = slice(None)) -> Float[np.ndarray, "star pixel"]:
        """Continuum of some stars [erg/s/cm^2/A], between the stored nodes linear in its log."""
        with h5py.File(self.path, "r") as file:
            log = file["log_continuum"][stars]
        pixels = np.arange(self._num_pixels)
        nodes = continuum_nodes(self._num_pixels)
        return 10 ** np.array([np.interp(pixels, nodes, row) for row in log])

    def split(self, seed: int, validation: int, test: int) -> dict[str, Int[np.ndarray, " _"]]:
        """Star indices of "train", "validation" and "test", disjoint, increasing, by the seed.

        Parameters
        ----------
        validation, test
            Numbers of stars; the rest is for training.
        """
        if validation < 0 or test < 0 or validation + test >= len(self):
            raise InputError(
                f"grid {self.path}: {validation} validation and {test} test spectra of "
                f"{len(self)}: leave at least one to train on"
            )
        order = np.random.default_rng(seed).permutation(len(self))
        parts = np.split(order, [validation, validation + test])
        return {
            name: np.sort(part)
            for name, part in zip(("validation", "test", "train"), parts, strict=True)
        }

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> "SpectralGrid":
        """Open a finished grid."""
        return cls(path)

    @classmethod
    def from_arrays(
        cls,
        wavelength: np.ndarray,
        labels: np.ndarray,
        flux: np.ndarray,
        *,
        label_space: LabelSpace | Sequence[str],
        path: str | os.PathLike[str],
        continuum: np.ndarray | None = None,
        medium: str = "vacuum",
        provenance: dict[str, Any] | None = None,
    ) -> "SpectralGrid":
        """Write spectra that another code made as a grid file, and open it.

        Parameters
        ----------
        wavelength
            [pixel], Angstrom, increasing, in `medium`.
        labels
            [star, label].
        flux
            [star, pixel]: normalised flux where `continuum` is not given, surface flux otherwise.
        label_space
            A label space, or the labels' names: its bounds are then the labels' extremes.
        path
            File to write; it must not exist.
        continuum
            [star, pixel], in the unit of `flux`, which is divided by it.
        medium
            "vacuum" or "air"; air wavelengths are converted.
        provenance
            What made the spectra; kept in the file.
        """
        path = Path(path)
        refuse_existing(path)
        wavelength, labels = np.asarray(wavelength, float), np.asarray(labels, float)
        flux = np.asarray(flux)
        if medium not in ("vacuum", "air"):
            raise InputError(f"medium is {medium!r}; allowed: 'vacuum', 'air'")
        if wavelength.ndim != 1 or labels.ndim != 2 or flux.shape != (len(labels), len(wavelength)):
            raise InputError(
                f"grid: labels {labels.shape}, wavelength {wavelength.shape} and flux {flux.shape} "
                "do not fit; they must be [star, label], [pixel] and [star, pixel]"
            )
        if not len(labels):
            raise InputError("grid: no spectra given")
        if not np.all(np.isfinite(wavelength)) or np.any(np.diff(wavelength) <= 0):
            raise InputError("grid: wavelength must be finite and increase from pixel to pixel")
        if continuum is None:
            continuum = np.ones_like(flux)
        elif np.shape(continuum) != flux.shape:
            raise InputError(
                f"grid: continuum {np.shape(continuum)} differs from flux {flux.shape}"
            )
        else:
            with np.errstate(divide="ignore", invalid="ignore"):
                flux = flux / continuum
        if medium == "air":
            wavelength = air_to_vacuum(wavelength)
        if not isinstance(label_space, LabelSpace):
            label_space = _space_of(tuple(label_space), labels)
        label_space.check(labels)
        continuum = np.asarray(continuum)
        check_spectra(flux, continuum, labels, label_space, 0)
        step = ln_step(wavelength)
        contents = {
            "wavelength": wavelength,
            "labels": labels,
            "dither": np.zeros(len(labels)),
            "flux": flux.astype(np.float32),
            "log_continuum": log_continuum_nodes(continuum),
        }
        record = {"source": "arrays", "medium_of_input": medium, **(provenance or {})}
        write_grid(path, contents, label_space, step, record)
        return cls(path)

    @classmethod
    def generate(
        cls,
        synthesizer: "Synthesizer",
        label_space: LabelSpace,
        num: int,
        path: str | os.PathLike[str],
        *,
        seed: int,
        batch_size: int = 64,
        dither: bool = True,
        progress: bool = True,
        resume: bool = False,
    ) -> "SpectralGrid":
        """Synthesise `num` spectra with Sobol labels and write them as one file.

        While it runs, finished batches lie in the folder ``<path>.parts``. A killed run goes on
        from them with ``resume=True``, which also accepts a finished grid; another seed, size,
        label box, wavelength grid or synthesiser is then an error.

        Parameters
        ----------
        synthesizer
            Gives the spectra; its wavelengths must be ln-uniform.
        label_space
            Box that the labels fill.
        num
            How many spectra.
        path
            File to write; it must not exist unless `resume`.
        seed
            Seed of labels and dither.
        batch_size
            Spectra in one call of the synthesiser and in one shard.
        dither
            Displace each star's samples by a part of a pixel.
        progress
            Show a progress bar.
        resume
            Go on with a killed run.

        Raises
        ------
        InputError
            Also for spectra with NaN, naming the labels; what was made before stays.
        """
        path = Path(path)
        parts = Path(f"{path}.parts")
        if num < 1 or batch_size < 1:
            raise InputError(f"grid: num = {num} and batch_size = {batch_size} must be positive")
        wavelength = np.asarray(synthesizer.wavelength, float)
        step = ln_step(wavelength)
        if step is None:
            raise InputError("grid: the synthesizer's wavelengths must be uniform in ln wavelength")
        if synthesizer.label_space.names != label_space.names:
            raise InputError(
                f"grid: labels {label_space.names} are not the synthesizer's, "
                f"{synthesizer.label_space.names}: give them in its order"
            )
        config = {
            "num": num,
            "seed": seed,
            "batch_size": batch_size,
            "dither": dither,
            "label_space": label_space.to_dict(),
            "wavelength": array_hash({"wavelength": wavelength}),
            "synthesizer": synthesizer.provenance(),
        }
        if path.exists():
            return _finished(cls, path, config, resume)
        _open_run(parts, config, resume)
        shards = [parts / f"{index:06d}.h5" for index in range(-(-num // batch_size))]
        with _progress_bar(num, "grid", progress) as advance:
            for index, shard in enumerate(shards):
                start = index * batch_size
                count = min(batch_size, num - start)
                if not shard.exists():
                    labels = label_space.sobol(batch_size, seed=seed, start=start)
                    offsets = draw_dither(seed, start, batch_size) * dither
                    # A short last batch is computed in full, so that its shape is the others':
                    # one compiled program, and the same numbers however the run was cut.
                    spectra = synthesizer.batch(jnp.asarray(labels), jnp.asarray(offsets * step))
                    flux = np.asarray(spectra.flux)[:count]
                    continuum = np.asarray(spectra.continuum)[:count]
                    normalized = (np.asarray(flux, float) / np.asarray(continuum, float)).astype(
                        np.float32
                    )
                    check_spectra(normalized, continuum, labels[:count], label_space, start)
                    contents = {
                        "labels": labels[:count],
                        "dither": offsets[:count],
                        "flux": normalized,
                        "log_continuum": log_continuum_nodes(continuum),
                    }
                    write_shard(shard, contents)
                advance(count)
        record = {
            **config,
            "medium": "vacuum",
            "stellarfit": _version(),
            "wavelength": f"{wavelength[0]:g}-{wavelength[-1]:g} A, {len(wavelength)} pixels",
        }
        merge_shards(path, shards, wavelength, label_space, step, record, config)
        shutil.rmtree(parts)
        return cls(path)


def draw_dither(seed: int, start: int, num: int) -> Float[np.ndarray, " star"]:
    """Displacements in [-0.5, 0.5) steps of the stars `start` to `start + num`.

    Star s depends on the seed and on s alone.
    """
    stream = np.random.Philox(key=[seed, _DITHER_STREAM])
    # Philox hands out four numbers a count: start at the block of the first star.
    stream.advance(start // 4)
    return np.random.Generator(stream).random(start % 4 + num)[start % 4 :] - 0.5


def _finished(cls: type, path: Path, config: dict[str, Any], resume: bool) -> SpectralGrid:
    if not resume:
        refuse_existing(path)
    grid = cls(path)
    stored = grid.provenance.get("config_hash")
    if stored != config_hash(config):
        raise InputError(f"grid {path} was made with another configuration: give another name")
    return grid


def _open_run(parts: Path, config: dict[str, Any], resume: bool) -> None:
    """Make the folder of shards, or check that it belongs to this configuration."""
    record = parts / "config.json"
    if parts.exists() and not resume:
        raise InputError(
            f"grid: {parts} holds an unfinished run: go on with resume=True, or remove it"
        )
    if record.exists():
        stored = json.loads(record.read_text())
        current = json.loads(json.dumps(config))
        for key in sorted(stored.keys() | current.keys()):
            if stored.get(key) != current.get(key):
                raise InputError(
                    f"grid: {parts} was started with another {key}: {stored.get(key)}, now "
                    f"{current.get(key)}: resume with the same, or remove it and start again"
                )
        return
    parts.mkdir(parents=True, exist_ok=True)
    with atomic_write(record) as temporary:
        temporary.write_text(json.dumps(config, sort_keys=True, indent=1))


def _space_of(names: tuple[str, ...], labels: np.ndarray) -> LabelSpace:
    if len(names) != labels.shape[1]:
        raise InputError(f"grid: {len(names)} label names but {labels.shape[1]} label columns")
    lower, upper = labels.min(axis=0), labels.max(axis=0)
    for name, lo, hi in zip(names, lower, upper, strict=True):
        if not lo < hi:
            raise InputError(f"grid: label {name} is {lo:g} in every spectrum: leave it out")
    return LabelSpace(names, tuple(lower.tolist()), tuple(upper.tolist()))


@contextmanager
def _progress_bar(total: int, text: str, shown: bool) -> Iterator[Callable[[int], None]]:
    if not shown:
        yield lambda count: None
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task(text, total=total)
        yield lambda count: bar.update(task, advance=count)


def _version() -> str:
    try:
        return metadata.version("stellarfit")
    except metadata.PackageNotFoundError:
        return "not installed"
