"""The section of the page on the stars that the model describes worst, and their residuals.

A catalogue holds no spectra and no models. The residuals are those of the same fits made once more,
with what the survey's manifest says, and only where they are asked for.
"""

from typing import Any

import numpy as np

from emulators.errors import InputError

from ..fitting import fit
from ..flags import names as flag_names
from ..sources import COLUMN_KEYS, Source, read_stars
from ..survey_folder import SurveyFolder
from .goodness import chi2_ratio
from .section import Section, Table, draw
from .stars import Stars, with_unit

_MOST = 6
_DPI = 100  # of pictures that are as wide as a sheet
_LABELS = ("teff", "logg", "fe_h")
_READING = ("medium", "resolution", "snr", "format", *COLUMN_KEYS)
_FITTING = ("fixed", "noise", "continuum_degree", "robust")


def worst_sections(stars: Stars, *, residuals: bool = False, emulator: Any = None) -> list[Section]:
    """The stars of largest chi^2/dof, and their residuals.

    Parameters
    ----------
    stars
    residuals
        Fit them again, to draw data, model and residuals.
    emulator
        That of the survey, for this; otherwise the shipped one that the header names.

    Raises
    ------
    InputError
        `residuals`, and the emulator is not that of the survey.
    """
    title = "Worst stars"
    if lacking := stars.lacks("chi2", "dof_effective"):
        return [Section(title, lacking)]
    ratio = chi2_ratio(stars)
    rows = np.flatnonzero(np.isfinite(ratio))
    if not len(rows):
        return [Section(title, ["No star has a χ²: none was fitted."])]
    worst = rows[np.argsort(-ratio[rows], kind="stable")][:_MOST]
    found = stars.file.read_rows(["name", "source", "row", "chi2"], worst)
    text = [f"The {len(worst)} of largest χ²/dof, flagged or not."]
    return [
        Section(title, text, tables=[_table(stars, worst, ratio, found)]),
        _residual_section(stars, found, residuals, emulator),
    ]


def _table(stars: Stars, worst: np.ndarray, ratio: np.ndarray, found: dict) -> Table:
    labels = [name for name in _LABELS if stars.has(name)]
    numbers = [name for name in ("p_value", "snr") if stars.has(name)]
    places = [name for name in ("source", "row") if name in found]
    names = found.get("name", np.full(len(worst), ""))
    rows = [
        [
            str(names[i]),
            f"{ratio[row]:.4g}",
            *(f"{stars[name][row]:.3g}" for name in numbers),
            *(f"{stars[name][row]:.5g}" for name in labels),
            ", ".join(flag_names(int(stars.flags[row]))) or "none",
            *(str(found[name][i]) for name in places),
        ]
        for i, row in enumerate(worst)
    ]
    head = ["name", "χ²/dof", *numbers, *map(with_unit, labels), "flags", *places]
    return Table("Stars of largest χ²/dof", head, rows, (head.index("flags"), len(head) - 2))


def _residual_section(stars: Stars, found: dict, asked: bool, emulator: Any) -> Section:
    title = "Residuals of the worst stars"
    if not asked:
        return Section(title, [
            "The catalogue holds no spectra and no models. To see residuals, let these stars be "
            "fitted again by residuals=True (stellarfit report --residuals)."
        ])  # fmt: skip
    if not {"name", "source", "row"} <= set(found):
        return Section(title, ["Not shown: the catalogue does not say where its spectra are."])
    try:
        config = SurveyFolder(stars.file.path).manifest["config"]
    except InputError as error:
        return Section(title, [f"Not shown: how the stars were fitted is not known ({error})."])
    if config["priors"]:
        return Section(title, ["Not shown: the survey had priors of its own, which are not kept."])
    emulator = _emulator_of(stars, emulator)
    reading = {key: config[key] for key in _READING if config.get(key) is not None}
    fitting = {key: config[key] for key in _FITTING}
    places = zip(found["source"].tolist(), found["row"].tolist(), strict=True)
    said, pictures, rows = [], [], []
    for i, (star, spectrum) in enumerate(read_stars([Source(*place) for place in places], reading)):
        try:
            if isinstance(spectrum, Exception):
                raise spectrum
            result = fit(spectrum, emulator, **fitting)
        # Whatever one spectrum brings up, the page is written.
        except Exception as error:
            said.append(f"{star.path} cannot be fitted again: {' '.join(str(error).split())}")
            continue
        name = str(found["name"][i])
        good = result.spectrum.good
        pull = np.abs(result.spectrum.flux - result.model_flux)[good]
        pull = pull * np.sqrt(result.spectrum.ivar[good])
        alt = f"Data, model and residuals of {name} ({star.path}); the table has their numbers."
        pictures.append(draw(result.plot(), alt, dpi=_DPI))
        rows.append([name, f"{result.chi2:.6g}", f"{found['chi2'][i]:.6g}", str(good.sum()),
                     str((pull > 3).sum()), f"{pull.max():.3g}"])  # fmt: skip
    head = ["name", "χ² again", "χ² in the catalogue", "pixels", "beyond 3 σ", "largest [σ]"]
    tables = [Table("Fits made again", head, rows)] if rows else []
    return Section(title, said, pictures, tables)


def _emulator_of(stars: Stars, emulator: Any) -> Any:
    from emulators.emulator import load_emulator

    name, wanted = (str(stars.file.meta.get(key)) for key in ("EMULATOR", "EMUHASH"))
    if emulator is None:
        try:
            emulator = load_emulator(name)
        except InputError as error:
            raise InputError(
                f"emulator: the survey's, {name} ({wanted}), is not shipped ({error}); give it by "
                "emulator= (--emulator)"
            ) from None
    if emulator.fingerprint != wanted:
        raise InputError(
            f"emulator: {emulator.name} ({emulator.fingerprint}); residuals need that of the "
            f"survey, {name} ({wanted}): give it by emulator= (--emulator)"
        )
    return emulator
