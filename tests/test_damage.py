"""Damaged files in a survey: each is a row that is right or says what is wrong."""

import re
import time

import numpy as np
import pytest
from damage import Damaged, damaged_files
from fake_star import TRUTH, fake_star
from good_files import Star, good_files
from tiny import tiny_emulator

from stellarfit.catalog import read_catalog
from stellarfit.flags import Flag
from stellarfit.survey import run_survey

NUM, SEED = 300, 0
# Photon noise and three parameters: files are on trial here, and every fit is one of hundreds.
FIT = {"noise": "none", "fixed": {name: TRUTH[name] for name in ("logg", "mg_fe", "v_sini")}}
NAMES = ("teff", "fe_h", "v_rad")
LIMIT = 240.0  # seconds; about 35 on an idle core


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """The damages, the good files by kind, the rows of each file, and how long the survey took."""
    folder = tmp_path_factory.mktemp("damaged")
    seen = fake_star(seed=3, snr=100.0, width=0.0255)
    star = Star(seen.wavelength, seen.flux, seen.ivar)
    good = good_files(folder, star)
    damaged = list(damaged_files(folder, star, NUM, SEED))
    # Good files between bad ones.
    paths = [one.path for one in damaged]
    for place, path in enumerate(good.values()):
        paths.insert(place * NUM // len(good), path)
    began = time.monotonic()
    # A warning is an error here, as everywhere in these tests.
    run_survey(
        paths, tiny_emulator(analytic=True), out=folder / "catalog.parquet",
        resolution=47_000, part_size=70, progress=False, **FIT,
    )  # fmt: skip
    seconds = time.monotonic() - began
    rows = {}
    for row in read_catalog(folder / "catalog.parquet"):
        rows.setdefault(row["source"], []).append(row)
    assert list(rows) == list(map(str, paths))
    return damaged, {kind: str(path) for kind, path in good.items()}, rows, seconds


def judge(row, clean) -> str:
    """What became of a star: refused, flagged, right or wrong."""
    if row["result_flags"] & int(Flag.FAILED):
        assert row["reason"] and np.isnan([row["teff"], row["e_teff"], row["chi2"]]).all()
        return "refused"
    assert not row["reason"]
    if row["result_flags"] & ~clean["result_flags"]:
        return "flagged"
    values, errors, expected, sigma = (
        np.array([one[f"{prefix}{name}"] for name in NAMES])
        for one in (row, clean)
        for prefix in ("", "e_")
    )
    near = np.abs(values - expected) < sigma
    return "right" if near.all() and np.all(np.abs(np.log(errors / sigma)) < 0.2) else "wrong"


def test_good_files_between_bad_ones(found):
    _, good, rows, _ = found
    clean = [row for path in good.values() for row in rows[path]]
    assert len(clean) == 11  # ten files, one of them of two stars
    for row in clean:
        assert not row["flag_bad"] and not row["reason"], row["source"]
        for name in NAMES:
            assert abs(row[name] - TRUTH[name]) < 3 * row[f"e_{name}"], (row["source"], name)


def test_every_damaged_file_ends_as_it_should(found):
    damaged, good, rows, _ = found
    assert len(damaged) == NUM
    ends, mistakes = [], []
    for one in damaged:
        for row in rows[str(one.path)]:
            end = judge(row, rows[good[one.kind]][0])
            ends.append(end)
            allowed = {"right": ("right",), "refused": ("refused",)}
            if end not in allowed.get(one.fate, ("right", "refused", "flagged")):
                mistakes.append((one.kind, one.damage, one.fate, end, row["reason"]))
    assert not mistakes
    # The fuzzer damages in all ways.
    assert min(ends.count("right"), ends.count("flagged"), ends.count("refused")) > 20


def test_reasons_are_ours(found):
    """No exception of a library, and no warning, is all that a user is told."""
    _, _, rows, _ = found
    for one in rows.values():
        for row in one:
            assert not re.match(r"\w*(Error|Exception|Warning)\b", row["reason"]), row["reason"]


def test_nothing_hangs(found):
    assert found[3] < LIMIT


def test_the_fuzzer_is_seeded(tmp_path):
    star = fake_star(seed=3, snr=100.0, width=0.0255)
    star = Star(star.wavelength, star.flux, star.ivar)

    def draw(name: str) -> list[tuple[Damaged, bytes]]:
        folder = tmp_path / name
        folder.mkdir()
        made = [one for one in damaged_files(folder, star, 30, SEED) if one.kind == "text"]
        return [
            (one._replace(path=one.path.relative_to(folder)), one.path.read_bytes()) for one in made
        ]

    assert draw("once") == draw("again")
