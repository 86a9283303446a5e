"""Catalogues under the column names that surveys publish theirs with.

Only what means the same is renamed; what a survey has no column for is left out, and so is what
only the survey has. Which star it is and whether to trust it stay under our own names.
"""

from typing import Any, NamedTuple

import numpy as np
from astropy.table import Table

from emulators.errors import InputError

_KEPT = ("name", "source", "row", "frame", "result_flags", "flag_warn", "flag_bad", "reason")
# The surveys' velocities are free of the Earth's motion; these two differ by 0.02 km/s at most.
_FRAMES = ("barycentric", "heliocentric")


class Naming(NamedTuple):
    """The names of one survey.

    Attributes
    ----------
    table : str
        Which table of the survey they are of.
    source : str
        Where the survey lists them.
    columns : dict
        The survey's name of each of our columns that it has.
    """

    table: str
    source: str
    columns: dict[str, str]


def _abundances(symbols: str, value: str, error: str) -> dict[str, str]:
    """Names of [X/Fe] and its error, of elements by their symbols."""
    return {
        ours.format(symbol.lower()): theirs.format(symbol)
        for symbol in symbols.split()
        for ours, theirs in (("{}_fe", value), ("e_{}_fe", error))
    }


APOGEE = Naming(
    "APOGEE allStar DR17",
    "https://data.sdss.org/datamodel/files/APOGEE_ASPCAP/APRED_VERS/ASPCAP_VERS/allStar.html, "
    "VizieR III/286",
    {
        "teff": "TEFF", "e_teff": "TEFF_ERR", "logg": "LOGG", "e_logg": "LOGG_ERR",
        "fe_h": "FE_H", "e_fe_h": "FE_H_ERR", "v_micro": "VMICRO", "v_sini": "VSINI",
        "v_rad": "VHELIO_AVG", "e_v_rad": "VERR", "snr": "SNR",
        **_abundances(
            "C N O NA MG AL SI K CA TI V CR MN CO NI CE", "{}_FE", "{}_FE_ERR"
        ),
    },
)  # fmt: skip

GALAH = Naming(
    "GALAH DR3 main_allstar",
    "https://www.galah-survey.org/dr3/table_schema",
    {
        "teff": "teff", "e_teff": "e_teff", "logg": "logg", "e_logg": "e_logg",
        "fe_h": "fe_h", "e_fe_h": "e_fe_h", "v_micro": "vmic",
        "v_sini": "vbroad", "e_v_sini": "e_vbroad", "v_rad": "rv_galah", "e_v_rad": "e_rv_galah",
        **_abundances(
            "Li C O Na Mg Al Si K Ca Sc Ti V Cr Mn Co Ni Cu Zn Rb Y Mo Ru Ba La Nd Sm Eu",
            "{}_fe", "e_{}_fe",
        ),
    },
)  # fmt: skip

DESI = Naming(
    "DESI MWS RVTAB",
    "https://github.com/desimilkyway/desi-mws-edr-datamodel, docs/mwsall.rst",
    {
        "teff": "TEFF", "e_teff": "TEFF_ERR", "logg": "LOGG", "e_logg": "LOGG_ERR",
        "fe_h": "FEH", "e_fe_h": "FEH_ERR", "v_sini": "VSINI",
        "v_rad": "VRAD", "e_v_rad": "VRAD_ERR", "chi2": "CHISQ_TOT",
    },
)  # fmt: skip

NAMINGS = {"apogee": APOGEE, "galah": GALAH, "desi": DESI}


def rename_columns(table: Any, survey: str) -> Any:
    """A catalogue with the column names of a survey.

    Parameters
    ----------
    table : astropy.table.Table
        As `stellarfit.catalog.make_catalog` or `stellarfit.catalog.read_catalog` gives it.
    survey : {"apogee", "galah", "desi"}

    Returns
    -------
    astropy.table.Table
        Units and header are kept, but for ``COVNAMES``; the header's ``COLNAMES`` says whose
        names these are. A velocity is NaN where its frame is not known to be that of the Sun or
        the barycentre, and GALAH's ``vbroad`` where macroturbulence was a parameter beside it.

    Raises
    ------
    InputError
        Another survey, or a table that is no catalogue of ours.
    """
    if survey not in NAMINGS:
        raise InputError(f"names: {survey!r} is not known; give one of {', '.join(NAMINGS)}")
    naming = NAMINGS[survey]
    if "COLNAMES" in table.meta:
        raise InputError(
            f"catalog: its columns have the names of {table.meta['COLNAMES']} already; give the "
            "catalogue that they were made of"
        )
    if "SCHEMA" not in table.meta or "frame" not in table.colnames:
        raise InputError(
            "catalog: no SCHEMA in its header, so this is no catalogue that stellarfit wrote, or "
            "one of an earlier version; make it again by fit_survey or make_catalog"
        )
    wrong = {name: ~np.isin(table["frame"], _FRAMES) for name in ("v_rad", "e_v_rad")}
    if naming is GALAH and "v_macro" in table.colnames:
        broad = np.asarray(table["v_macro"]) != 0
        wrong |= {"v_sini": broad, "e_v_sini": broad}
    renamed: Any = Table(meta={**table.meta, "COLNAMES": naming.table})
    renamed.meta.pop("COVNAMES", None)
    for name in table.colnames:
        if name in naming.columns or name in _KEPT:
            column = table[name].copy()
            if name in wrong:
                column[wrong[name]] = np.nan
            renamed[naming.columns.get(name, name)] = column
    return renamed
