"""Abundances over hydrogen, [X/H] = [X/Fe] + [Fe/H], draw by draw."""

from collections.abc import Mapping

import numpy as np
from jaxtyping import Float64

IRON = "fe_h"


def hydrogen_name(parameter: str) -> str:
    """``mg_h`` of ``mg_fe``."""
    return parameter.removesuffix("_fe") + "_h"


def over_hydrogen(
    draws: Mapping[str, Float64[np.ndarray, "*draw"]], fixed: Mapping[str, float]
) -> dict[str, Float64[np.ndarray, "*draw"]]:
    """[X/H] of every [X/Fe]; the two are correlated, so it is their sum in each draw that counts.

    Parameters
    ----------
    draws
        Of the free parameters, by name [dex].
    fixed
        Values of the ones held. A sum of two that are held is not in the result, nor is anything
        where [Fe/H] is no label.
    """
    known = {**fixed, **draws}
    return {
        hydrogen_name(name): np.asarray(known[name] + known[IRON])
        for name in known
        if name.endswith("_fe") and IRON in known and (name in draws or IRON in draws)
    }
