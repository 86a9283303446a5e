"""A catalogue of made-up stars with the columns, header and failures of a survey's."""

from typing import Any

import numpy as np
from astropy.table import Table

from stellarfit.catalog import blank_row, covariance_names, failed_row, unit_of
from stellarfit.flags import BAD, WARN, Flag

PARAMETERS = ("teff", "logg", "vmic", "fe_h", "mg_fe", "v_rad", "v_sini")
SIGMA = {
    "teff": 1200.0,
    "logg": 3.0,
    "v_micro": 1.0,
    "fe_h": 1.0,
    "mg_fe": 1.2,
    "v_rad": 2.0,
    "v_sini": 60.0,
}  # error by photon noise times S/N


def fake_catalog(num: int = 400, *, seed: int = 0, width: float = 1.0, failed: int = 7) -> Any:
    """Dwarfs and giants at S/N 15 to 300; from row 100 on, each is the star 100 rows before.

    Parameters
    ----------
    num
        Of rows.
    width
        Scatter of repeats over what `e_..._stat` says.
    failed
        The first rows have no result.
    """
    rng = np.random.default_rng(seed)
    star = np.arange(num) % 100
    truths = np.random.default_rng(seed + 1).uniform(size=(100, len(SIGMA)))[star]
    giant = (truths[:, 0] < 0.4)[:, None]
    teff = np.where(giant, 4200 + 1000 * truths[:, 1:2], 5000 + 1500 * truths[:, 1:2])[:, 0]
    logg = np.where(giant[:, 0], (teff - 4200) / 400 + 1.0, 4.6 - 0.6 * truths[:, 2])
    truth = {
        "teff": teff, "logg": logg, "v_micro": 1 + truths[:, 2], "fe_h": -1.5 + 1.8 * truths[:, 3],
        "mg_fe": 0.4 * truths[:, 4], "v_rad": 100 * (truths[:, 5] - 0.5),
        "v_sini": 3 + 9 * truths[:, 6],
    }  # fmt: skip
    snr = np.exp(rng.uniform(np.log(15), np.log(300), num))
    blank = blank_row(PARAMETERS)
    covariance = blank.pop("covariance")
    columns: dict[str, Any] = {name: np.full(num, value) for name, value in blank.items()}
    columns["name"] = np.array([f"star {i}" for i in star])
    columns["medium"] = np.full(num, "vacuum")
    for name, scale in SIGMA.items():
        stat, rest = scale / snr, np.full(num, scale / 150)
        columns[name] = truth[name] + width * stat * rng.normal(size=num)
        columns |= {
            f"e_{name}": np.hypot(stat, rest),
            f"e_{name}_stat": stat,
            f"e_{name}_sys": rest,
        }
    columns["mg_h"] = columns["fe_h"] + columns["mg_fe"]
    columns["dof_effective"] = np.full(num, 3000.0)
    columns["chi2"] = rng.chisquare(3000, num)
    columns["chi2"][-1] = 60_000.0
    columns["p_value"] = rng.uniform(size=num)
    columns["snr"] = snr
    flags = np.where(snr < 20, int(Flag.LOW_SNR), 0) | np.where(star == 50, int(Flag.EDGE_TEFF), 0)
    columns["covariance"] = np.tile(covariance, (num, 1))
    columns |= {
        "source": np.array([f"/data/{i:04d}.fits" for i in range(num)]),
        "row": np.full(num, -1),
    }
    columns["reason"] = np.array(
        ["no flux column" if i % 3 else f"only {i} pixels" for i in range(num)]
    )
    columns["reason"][failed:] = ""
    for name, value in failed_row("", PARAMETERS).items():
        if name in columns and name not in ("name", "result_flags"):
            columns[name][:failed] = value
    flags[:failed] = int(Flag.FAILED)
    columns |= {
        "result_flags": flags,
        "flag_warn": (flags & int(WARN)) != 0,
        "flag_bad": (flags & int(BAD)) != 0,
    }
    table: Any = Table(columns)
    for name in table.colnames:
        if (unit := unit_of(name)) is not None:
            table[name].unit = unit
    table.meta = {
        "CREATOR": "stellarfit 0.0", "EMULATOR": "fake", "EMUHASH": "0123abcd",
        "SOLSCALE": "Asplund 2021", "WAVEMED": "vacuum", "COVNAMES": covariance_names(PARAMETERS),
        "NFAILED": failed,
    }  # fmt: skip
    return table
