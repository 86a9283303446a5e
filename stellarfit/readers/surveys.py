"""The surveys whose layouts are known, and which of them a file has."""

from typing import Any

from .apogee import APSTAR, APVISIT, ASPCAPSTAR
from .desi import DESI
from .fourmost import FOURMOST
from .gaia_rvs import RVS
from .galah import GALAH
from .lamost import LRS, MRS
from .sdss import MWM, SPEC
from .survey import Survey
from .weave import WEAVE

# A coadd of LAMOST MRS has the columns of LRS, and its name besides: MRS is asked first.
SURVEYS = (
    APSTAR, ASPCAPSTAR, APVISIT, SPEC, MWM, DESI, GALAH, MRS, LRS, RVS, FOURMOST, WEAVE,
)  # fmt: skip


def recognise(file: Any) -> Survey | None:
    """The survey of an open FITS file, by its extensions and headers; None if none is known."""
    return next((survey for survey in SURVEYS if survey.recognise(file)), None)


def find_survey(name: str) -> Survey | None:
    """The survey of this name, in any case."""
    return next((one for one in SURVEYS if one.name.lower() == name.lower()), None)
