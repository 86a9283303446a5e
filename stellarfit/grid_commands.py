"""What ``stellarfit grid`` does with its arguments."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from emulators.errors import InputError
from emulators.grid import SpectralGrid
from emulators.labels import LabelSpace
from emulators.physics.linelist_readers import read_lines
from emulators.physics.synthesizer import LTESynthesizer

_DEFAULT_LABELS = ("teff=4000:7000", "logg=1:5", "vmic=0.5:3", "fe_h=-2.5:0.5", "mg_fe=-0.5:0.8")


def generate(
    path: Path,
    num: int,
    wavelengths: tuple[float, float, float],
    ranges: Sequence[str],
    *,
    vmic: float | None,
    lines: Path | None,
    lines_format: str,
    batch_size: int,
    seed: int,
    resume: bool,
    progress: bool,
) -> SpectralGrid:
    """Synthesise a grid.

    Parameters
    ----------
    wavelengths
        First and last vacuum wavelength [Angstrom], and the step in ln(wavelength).
    ranges
        Labels as ``name=lower:upper``; the first-light labels where there are none.
    """
    space = parse_labels(ranges or [r for r in _DEFAULT_LABELS if vmic is None or "vmic" not in r])
    start, stop, step = wavelengths
    if not (0 < start < stop and 0 < step < np.log(stop / start)):
        raise InputError(
            f"grid: start {start:g}, stop {stop:g}, step {step:g}; give 0 < start < stop and a "
            "step in ln(wavelength) that is shorter than the window"
        )
    wavelength = start * np.exp(step * np.arange(int(np.log(stop / start) / step + 1e-6) + 1))
    listed = None if lines is None else read_lines(lines, lines_format)
    synthesizer = LTESynthesizer.build(wavelength, space, lines=listed, vmic=vmic)
    return SpectralGrid.generate(
        synthesizer, space, num, path, seed=seed, batch_size=batch_size, progress=progress,
        resume=resume,
    )  # fmt: skip


def parse_labels(ranges: Sequence[str]) -> LabelSpace:
    """A label space from ``name=lower:upper``."""
    names, lower, upper = [], [], []
    for text in ranges:
        name, _, limits = text.partition("=")
        low, _, high = limits.partition(":")
        try:
            lower.append(float(low))
            upper.append(float(high))
        except ValueError:
            raise InputError(
                f"--label {text}: give name=lower:upper, such as teff=4000:7000"
            ) from None
        names.append(name.strip())
    return LabelSpace(tuple(names), tuple(lower), tuple(upper))
