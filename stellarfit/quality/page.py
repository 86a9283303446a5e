"""The quality page of a catalogue: its facts, then one section after another, in one HTML file."""

import json
import os
from html import escape
from pathlib import Path
from string import Template
from typing import Any, NamedTuple

from emulators.errors import InputError
from emulators.storage import atomic_write

from .. import __version__
from ..catalog_file import CatalogFile
from ..survey_folder import SurveyFolder
from .flagged import failure_section, flag_section
from .goodness import chi2_section
from .labels import error_section, kiel_section
from .repeats import repeat_section
from .section import Section, Table, anchor, section_html
from .stars import Stars, count_text
from .worst import worst_sections

_TEMPLATE = Path(__file__).with_name("page.html")
# What keys of a catalogue's header mean; others are shown as they are.
_KEYS = {
    "CREATOR": "made by",
    "EMULATOR": "emulator",
    "EMUHASH": "its fingerprint",
    "SOLSCALE": "solar scale",
    "WAVEMED": "wavelengths",
    "COVNAMES": "parameters",
    "SEED": "seed",
}
_COUNTED = ("NFAILED", "NMISSING")


class QualityPage(NamedTuple):
    """A page that was written.

    Attributes
    ----------
    path
        Of the page.
    stars, usable, flagged, failed
        Rows of the catalogue; of them those that no flag forbids to use, those with a result that a
        flag forbids to use, and those without a result.
    """

    path: Path
    stars: int
    usable: int
    flagged: int
    failed: int


def write_quality_page(
    catalog: str | os.PathLike[str],
    out: str | os.PathLike[str] | None = None,
    *,
    residuals: bool = False,
    emulator: Any = None,
) -> QualityPage:
    """Show what a catalogue's results are worth, in one HTML file that needs no network.

    The page has the catalogue's facts, the Kiel diagram, errors against S/N, chi^2 and its
    p-values, flags and why stars failed, pulls of repeated observations, and the worst stars. Every
    picture has its numbers in a table. What the catalogue cannot show, a sentence says.

    Parameters
    ----------
    catalog : path
        What `stellarfit.fit_survey`, `merge_survey` or `write_catalog` wrote, ``.fits`` or
        ``.parquet``. Columns that the page does not need are not read.
    out : path, optional
        The page, ``.html``; by default beside the catalogue, under its name.
    residuals : bool
        Fit the six stars of largest chi^2/dof again and draw data, model and residuals. Needs
        their spectra, and the folder of the survey's parts.
    emulator : Emulator, optional
        Of the survey, for `residuals`; by default the shipped one that the catalogue names.

    Returns
    -------
    QualityPage
        Its ``path``, and how many ``stars`` the catalogue has, ``usable``, ``flagged`` and
        ``failed``.

    Raises
    ------
    InputError
        No such file, not a catalogue, `out` without ``.html``, another emulator.

    Examples
    --------
    >>> sf.write_quality_page("catalog.fits").path  # doctest: +SKIP
    PosixPath('catalog.html')
    """
    source = Path(catalog)
    target = source.with_suffix(".html") if out is None else Path(out)
    if target.suffix.lower() != ".html" or target.is_dir():
        raise InputError(f"out: {target}; give a file that ends in .html")
    stars = Stars(CatalogFile(source))
    sections = [
        _facts(stars),
        kiel_section(stars),
        error_section(stars),
        chi2_section(stars),
        flag_section(stars),
        failure_section(stars),
        repeat_section(stars),
        *worst_sections(stars, residuals=residuals, emulator=emulator),
    ]
    text = Template(_TEMPLATE.read_text(encoding="utf-8")).substitute(
        title=escape(f"Quality of {source.name}"),
        links="\n".join(
            f'<li><a href="#{anchor(one)}">{escape(one.title)}</a></li>' for one in sections
        ),
        sections="\n".join(map(section_html, sections)),
        version=escape(__version__),
    )
    try:
        with atomic_write(target) as temporary:
            temporary.write_text(text, encoding="utf-8")
    except OSError as error:
        raise InputError(f"out: {target}: cannot write it: {error}") from error
    counts = (len(stars), stars.usable.sum(), stars.bad.sum(), stars.failed.sum())
    return QualityPage(target, *map(int, counts))


def _facts(stars: Stars) -> Section:
    """What the catalogue is, in numbers and by its header."""
    meta = stars.file.meta
    none = len(stars) - stars.failed.sum() - stars.bad.sum() - stars.warned.sum()
    counts = [
        ("stars", len(stars)),
        ("without a result (failed)", stars.failed.sum()),
        ("with a flag that forbids use (flag_bad)", stars.bad.sum()),
        ("with a flag that warns, and none that forbids (flag_warn)", stars.warned.sum()),
        ("with no flag, or harmless ones", none),
    ]
    if "NMISSING" in meta:
        counts.append(("of parts that are missing, and not in the catalogue", meta["NMISSING"]))
    made = [
        [_KEYS.get(key, key), str(value).replace(",", ", ")]
        for key, value in meta.items()
        if key not in _COUNTED
    ]
    tables = [
        Table(
            "Stars", ["stars", "number"], [[text, count_text(number)] for text, number in counts]
        ),
        Table("Made by", ["what", "which"], made, (1,)),
    ]
    text = [
        f"The catalogue has {count_text(stars.file.num)} rows and {len(stars.file.names)} columns."
    ]
    try:
        config = SurveyFolder(stars.file.path).manifest["config"]
    except InputError:
        text.append(
            "How its stars were read and fitted is not known here: there is no folder of its parts."
        )
    else:
        asked = [
            [key, value if isinstance(value, str) else json.dumps(value)]
            for key, value in config.items()
        ]
        tables.append(Table("How its stars were read and fitted", ["option", "value"], asked, (1,)))
    return Section("The catalogue", text, tables=tables)
