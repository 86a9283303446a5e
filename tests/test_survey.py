"""Surveys: a row a star whatever happens, and the same catalogue however often a run was killed."""

import json
import os
import resource
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet
import pytest
from astropy.io import fits
from astropy.table import Table
from fake_results import fake_fit
from fake_star import fake_star
from tiny import tiny_emulator

import stellarfit as sf
from emulators.errors import InputError
from stellarfit.catalog import make_catalog, read_catalog, result_row, widen_row, write_catalog
from stellarfit.cli import main
from stellarfit.flags import Flag
from stellarfit.readers import read_spectrum
from stellarfit.sources import Source
from stellarfit.survey import run_survey
from stellarfit.survey_folder import SurveyFolder

READING = {"medium": "vacuum", "resolution": 47_000}
# Whatever a process compiles, the others of this file load.
CACHE = {
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
}
FAILED = {1: "cut short", 3: "wavelength", 5: "no such file"}  # place in the catalogue: why


@pytest.fixture(scope="module")
def emulator():
    return tiny_emulator(analytic=True)


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    """Eight stars: three good files, three bad ones, and a file of two stars."""
    folder = tmp_path_factory.mktemp("spectra")
    paths = [folder / f"star{i}.fits" for i in range(6)]
    for seed, path in enumerate(paths[:5]):
        star = fake_star(seed=seed)
        shift = 2000.0 if seed == 4 else 0.0
        table = {"wave": star.wavelength + shift, "flux": star.flux, "ivar": star.ivar}
        Table(table).write(path)
    paths[3].write_bytes(paths[3].read_bytes()[:8000])
    many = folder / "two.h5"
    sf.write_spectra(many, [fake_star({"teff": teff}, seed=7) for teff in (5000.0, 5500.0)])
    return [*(paths[i] for i in (0, 3, 1, 4, 2, 5)), many]


@pytest.fixture(scope="module")
def whole(sources, emulator, tmp_path_factory):
    """The catalogue of a run that nothing disturbed, in parts of three stars."""
    out = tmp_path_factory.mktemp("whole") / "catalog.fits"
    sf.fit_survey(sources, emulator, out=out, part_size=3, progress=False, **READING)
    return out


def parts(out):
    return sorted(path.name for path in Path(f"{out}.parts").glob("part-*.parquet"))


def copy_parts(whole, out, *numbers):
    """A survey that was stopped with these parts there."""
    target = Path(f"{out}.parts")
    target.mkdir(parents=True)
    for name in ("manifest.json", "stars.parquet", *(f"part-{i:05d}.parquet" for i in numbers)):
        (target / name).write_bytes((Path(f"{whole}.parts") / name).read_bytes())
    return target


def test_a_row_a_star_with_the_numbers_of_its_fit(whole, sources, emulator):
    table = read_catalog(whole)
    assert table["source"].tolist() == [str(path) for path in [*sources, sources[-1]]]
    assert table["row"].tolist() == [-1] * 6 + [0, 1]
    assert parts(whole) == [f"part-{i:05d}.parquet" for i in range(3)]
    one, other = (
        sf.fit(read_spectrum(sources[2], **READING), emulator),
        sf.fit(read_spectrum(sources[-1], row=1, resolution=47_000), emulator),
    )
    expected = make_catalog([one, other])
    found = table[[2, 7]]
    for name in expected.colnames:
        np.testing.assert_array_equal(found[name], expected[name], name)
    assert found["reason"].tolist() == ["", ""]
    assert abs(table["teff"][6] - 5000) < 5 * table["e_teff"][6]
    assert abs(table["teff"][7] - 5500) < 5 * table["e_teff"][7]


def test_stars_that_fail_are_rows_with_a_reason(whole):
    table = read_catalog(whole)
    failed = (table["result_flags"] & int(Flag.FAILED)) != 0
    assert np.flatnonzero(failed).tolist() == list(FAILED)
    for place, reason in FAILED.items():
        row = table[place]
        assert reason in row["reason"] and row["flag_bad"]
        assert np.isnan([row["teff"], row["e_teff"], row["mg_h"], row["chi2"]]).all()
        assert np.isnan(row["covariance"]).all() and row["num_pixels"] == 0
    assert table.meta["NFAILED"] == 3


def test_the_file_is_that_of_write_catalog(whole, sources, emulator, tmp_path):
    expected = make_catalog([sf.fit(read_spectrum(sources[0], **READING), emulator)])
    write_catalog(expected, tmp_path / "one.fits")
    with fits.open(tmp_path / "one.fits") as one, fits.open(whole) as many:
        many.verify("exception")
        unit: Any = many[1]
        other: Any = one[1]
        mine, theirs = unit.columns, other.columns
        assert mine.names == [*theirs.names, "source", "row", "reason"]
        for name in theirs.names:
            assert mine[name].unit == theirs[name].unit
            if name != "name":
                assert mine[name].format == theirs[name].format
        assert {key: unit.header[key] for key in expected.meta} == dict(expected.meta)
    assert whole.stat().st_size % 2880 == 0


def test_parquet_has_the_same_rows(whole, sources, emulator, tmp_path):
    out = tmp_path / "catalog.parquet"
    copy_parts(whole, out, 0, 1, 2)
    found, expected = read_catalog(sf.merge_survey(out)), read_catalog(whole)
    assert found.colnames == expected.colnames and found["teff"].unit == "K"
    for name in found.colnames:
        np.testing.assert_array_equal(np.asarray(found[name]), np.asarray(expected[name]), name)
    assert found.meta == {key: expected.meta[key] for key in found.meta}


@pytest.mark.parametrize("suffix", [".fits", ".parquet"])
def test_parts_of_longer_texts_and_other_groups_are_joined_as_they_are(
    tmp_path, monkeypatch, suffix
):
    monkeypatch.setattr("stellarfit.merge._GROUP", 3)  # of Parquet: two parts, and one
    rows = [row for row, _ in (result_row(fake_fit(seed)) for seed in range(5))]
    own = result_row(fake_fit())[1]
    names = ["a", "b", "a longer name", "d\N{LATIN SMALL LETTER E WITH ACUTE}", "e"]
    for i, row in enumerate(rows):
        row |= {"name": names[i], "source": f"{i}.fits", "row": -1, "reason": "why " * (i == 4)}
        row |= {"flag_bad": i == 3, "chi2": float(i), "dof": 10 + i}
    folder = SurveyFolder(tmp_path / f"catalog{suffix}")
    folder.begin({"part_size": 2}, {"CREATOR": "stellarfit"}, own,
                 [Source(row["source"], -1) for row in rows], resume=False)  # fmt: skip
    for part in range(3):
        folder.write_part(part, rows[2 * part : 2 * part + 2], own, int(part == 2))
    table = read_catalog(sf.merge_survey(folder.out))
    names[3] = {".fits": r"d\xe9", ".parquet": names[3]}[suffix]
    assert table["name"].tolist() == names
    assert table["reason"].tolist() == [
        "",
        "",
        "",
        "",
        {".fits": "why", ".parquet": "why "}[suffix],
    ]
    assert table["flag_bad"].tolist() == [False, False, False, True, False]
    for name in ("chi2", "dof", "teff", "covariance"):
        np.testing.assert_array_equal(table[name], [row[name] for row in rows])
    if suffix == ".parquet":
        assert pyarrow.parquet.ParquetFile(folder.out).num_row_groups == 2


def test_rows_of_other_parameters_are_widened():
    one, other = fake_fit(0), fake_fit(1, fixed={"vmic": 1.0, "zero_point_red": 0.3})
    expected = make_catalog([one, other])
    row, own = result_row(one)
    wider = [*own, "zero_point_red"]
    found = widen_row(row, own, wider)
    assert list(found) == expected.colnames
    for name in expected.colnames:
        np.testing.assert_array_equal(found[name], expected[name][0], name)
    # also where the order differs
    back = widen_row(found | {"covariance": found["covariance"]}, wider, wider[::-1])
    size = len(wider)
    straight, turned = np.full((size, size), np.nan), np.full((size, size), np.nan)
    straight[np.triu_indices(size)] = found["covariance"]
    turned[np.triu_indices(size)] = back["covariance"]
    np.testing.assert_array_equal(turned, straight[::-1, ::-1].T)


def script(sources, out, hold):
    """Python that goes on with the survey of `whole`; once `hold` is there, no fit ends."""
    return (
        f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r})\n"
        "import pathlib, signal, time\n"
        "import conftest\n"
        "from tiny import tiny_emulator\n"
        "import stellarfit as sf\n"
        "import stellarfit.fit_stars\n"
        # Ignored by what is started in the background, and so by its children.
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "def fit(*args, **options):\n"
        f"    if pathlib.Path({str(hold)!r}).exists():\n"
        "        time.sleep(600)\n"
        "    return sf.fit(*args, **options)\n"
        "stellarfit.fit_stars.fit = fit\n"
        f"sf.fit_survey({[str(path) for path in sources]!r}, tiny_emulator(analytic=True), "
        f"out={str(out)!r}, resume=True, part_size=3, **{READING!r})\n"
    )


def stop_after(part, sources, out, sent, cache):
    """Run until a part is there, then send a signal; what the run said on stderr, its status."""
    hold = Path(f"{out}.parts") / f"part-{part:05d}.parquet"
    process = subprocess.Popen(
        [sys.executable, "-c", script(sources, out, hold)],
        stderr=subprocess.PIPE,
        env=os.environ | CACHE | {"JAX_COMPILATION_CACHE_DIR": str(cache)},
        text=True,
    )
    while not hold.exists():
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.002)
    process.send_signal(sent)
    return process.communicate(timeout=60)[1], process.returncode


def test_interrupted_and_killed_runs_end_with_the_same_bytes(whole, sources, emulator, tmp_path):
    out, cache = tmp_path / "catalog.fits", tmp_path / "cache"
    said, _ = stop_after(0, sources, out, signal.SIGINT, cache)
    assert "--resume" in said and "KeyboardInterrupt" in said
    assert parts(out) == ["part-00000.parquet"] and not out.exists()
    _, status = stop_after(1, sources, out, signal.SIGKILL, cache)
    assert status == -signal.SIGKILL
    assert parts(out) == ["part-00000.parquet", "part-00001.parquet"] and not out.exists()
    # what a kill in the middle of writing leaves
    half = (Path(f"{whole}.parts") / "part-00002.parquet").read_bytes()[:3000]
    (Path(f"{out}.parts") / ".part-00002.parquet.abc.tmp").write_bytes(half)
    before = (Path(f"{out}.parts") / "part-00000.parquet").stat().st_mtime_ns
    run_survey(sources, emulator, out=out, resume=True, part_size=3, progress=False, **READING)
    assert (Path(f"{out}.parts") / "part-00000.parquet").stat().st_mtime_ns == before
    assert out.read_bytes() == whole.read_bytes()


def test_shards_share_a_folder_and_the_last_merges(whole, sources, emulator, tmp_path):
    out = tmp_path / "catalog.fits"
    options = {"part_size": 3, "progress": False, **READING}
    first = run_survey(sources, emulator, out=out, shard=(0, 2), **options)
    assert (first.catalog, first.parts, first.missing, first.fitted) == (None, 3, 1, 5)
    assert not out.exists()
    with pytest.raises(InputError, match=r"1 of 3 parts are missing.*part-00001.*--allow-missing"):
        sf.merge_survey(out)
    sf.merge_survey(out, allow_missing=True)
    partial = read_catalog(out)
    assert len(partial) == 5 and partial.meta["NMISSING"] == 3
    last = run_survey(sources, emulator, out=out, shard=(1, 2), **options)
    assert (last.catalog, last.stars, last.failed, last.fitted) == (out.absolute(), 8, 3, 3)
    assert out.read_bytes() == whole.read_bytes()


def test_a_full_disk_is_one_error_and_the_run_goes_on_afterwards(
    whole, sources, emulator, tmp_path
):
    out = tmp_path / "catalog.fits"
    copy_parts(whole, out, 0, 1)
    options = {"resume": True, "part_size": 3, "progress": False, **READING}
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    # The kernel refuses to let any file grow beyond this, as a full disk would.
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limits[1]))
    try:
        with pytest.raises(InputError, match=r"cannot write there.*--resume"):
            run_survey(sources, emulator, out=out, **options)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert parts(out) == ["part-00000.parquet", "part-00001.parquet"] and not out.exists()
    run_survey(sources, emulator, out=out, **options)
    assert out.read_bytes() == whole.read_bytes()


@pytest.mark.parametrize("damage", ["cut", "foreign"])
def test_a_part_that_is_not_this_surveys_is_never_merged(whole, tmp_path, damage):
    out = tmp_path / "catalog.fits"
    part = copy_parts(whole, out, 0, 1, 2) / "part-00001.parquet"
    if damage == "cut":
        part.write_bytes(part.read_bytes()[:-100])
    else:
        table = pyarrow.parquet.read_table(part)
        about = json.loads(table.schema.metadata[b"stellarfit"]) | {"config": "another"}
        table = table.replace_schema_metadata({"stellarfit": json.dumps(about)})
        pyarrow.parquet.write_table(table, part)
    with pytest.raises(InputError, match=r"part-00001\.parquet: .*remove it"):
        sf.merge_survey(out)
    assert not out.exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"resume": False}, r"was begun there.*--resume"),
        ({"resolution": 40_000}, r"resolution: 40000 now, but .* begun with 47000"),
        ({"snr": 50}, "snr: 50 now, but .* the default"),
        ({"fixed": {"logg": 3.0}}, r"fixed: \{\"logg\": 3.0\} now, but"),
        ({"part_size": 4}, "part_size: 4 now"),
        ({"robust": False}, "robust: false now"),
        ({"fewer": True}, 'sources: "6 files.* begun with "7 files'),
        ({"sharper": True}, "emulator.error_model: "),
    ],
)
def test_another_configuration_is_refused(whole, sources, emulator, change, message):
    options = {"resume": True, "part_size": 3, **READING} | change
    files = sources[1:] if options.pop("fewer", False) else sources
    if options.pop("sharper", False):
        from tiny import tiny_error_model, tiny_grid

        emulator = type(emulator)(
            emulator.model, emulator.wavelength_range, emulator.step,
            tiny_error_model(tiny_grid(), mse=1e-7), emulator.record, name=emulator.name,
        )  # fmt: skip
    before = whole.stat().st_mtime_ns
    with pytest.raises(InputError, match=message):
        run_survey(files, emulator, out=whole, **options)
    assert whole.stat().st_mtime_ns == before


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sources": "none/*.fits"}, "no file matches none"),
        ({"sources": "none.fits"}, "no such file"),
        ({"sources": []}, "no files"),
        ({"sources": "."}, "is a folder"),
        ({"sources": [__file__, __file__]}, "is given twice"),
        ({"out": "catalog.csv"}, r"\.fits or \.parquet"),
        ({"out": "there.fits"}, "the file exists"),
        ({"shard": (2, 2)}, "shard: 2/2"),
        ({"part_size": 0}, "part_size: 0"),
        ({"medium": "water"}, "medium: 'water'"),
        ({"resolution": -1.0}, "resolution: -1.0"),
        ({"snr": float("nan")}, "snr: nan"),
        ({"continuum_degree": -1}, "continuum_degree: -1"),
        ({"columns": {"color": "red"}}, "columns: 'color'"),
        ({"fixed": {"teff": 9000.0}}, "teff"),
        ({"noise": "pink"}, "noise"),
    ],
)
def test_bad_options_are_refused_before_anything_is_written(
    emulator, tmp_path, monkeypatch, change, message
):
    monkeypatch.chdir(tmp_path)
    Path("there.fits").write_text("someone's")
    options = {"sources": __file__, "out": "catalog.fits"} | change
    with pytest.raises(InputError, match=message):
        run_survey(options.pop("sources"), emulator, **options)
    assert [path.name for path in tmp_path.iterdir()] == ["there.fits"]


def test_command_line(whole, sources, tmp_path, capsys, emulator, monkeypatch):
    monkeypatch.setattr("emulators.emulator.load_emulator", lambda name=None: emulator)
    out = tmp_path / "catalog.fits"
    copy_parts(whole, out, 0, 2)
    arguments = ["--out", str(out), "--medium", "vacuum", "--resolution", "47000"]
    arguments += ["--part-size", "3", "--json"]
    files = [str(path) for path in sources]
    assert main(["merge", str(out)]) == 2
    assert "1 of 3 parts are missing" in capsys.readouterr().err
    assert main(["merge", str(out), "--allow-missing", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["missing_stars"] == 3
    assert main(["survey", *files, *arguments]) == 2
    assert "--resume" in capsys.readouterr().err
    assert main(["survey", *files, *arguments, "--shard", "one"]) == 2
    assert "--shard one: give i/n" in capsys.readouterr().err
    assert main(["survey", *files, *arguments, "--shard", "1/3"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["catalog"] == str(out) and found["missing"] == 0 and found["failed"] == 3
    assert found["stars"] == 8 and found["fitted"] == 3
    assert out.read_bytes() == whole.read_bytes()


@pytest.fixture
def cluster(tmp_path, monkeypatch):
    """Two workers, each a process of its own that is begun again where it dies."""
    distributed = pytest.importorskip("distributed", reason="needs dask's distributed")
    for key, value in (CACHE | {"JAX_COMPILATION_CACHE_DIR": str(tmp_path / "cache")}).items():
        monkeypatch.setenv(key, value)
    with (
        distributed.LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as here,
        distributed.Client(here) as client,
    ):
        yield client


@pytest.mark.filterwarnings("ignore")  # of distributed, about the worker that is killed
def test_a_cluster_survives_a_killed_worker(sources, cluster, tmp_path):
    out, alone = tmp_path / "catalog.fits", tmp_path / "alone.fits"
    emulator = tiny_emulator(depth=1)
    options = {"part_size": 1, "progress": False, "robust": False, "noise": "none", **READING}
    options["fixed"] = {"logg": 3.0, "fe_h": -1.0, "mg_fe": 0.1, "v_sini": 12.0}
    files = [path for path in sources if path.name != "star5.fits"]
    cluster.submit(run_survey, files, emulator, out=alone, **options).result()
    pids, found = cluster.run(os.getpid), {}

    def kill():
        while not parts(out):
            time.sleep(0.002)
        busy = next(address for address, tasks in cluster.processing().items() if tasks)
        os.kill(pids[busy], signal.SIGKILL)
        found.update(pid=pids[busy], parts=len(parts(out)))

    killer = threading.Thread(target=kill)
    killer.start()
    summary = run_survey(files, emulator, out=out, client=cluster, **options)
    killer.join()
    assert found["parts"] < summary.parts == 7  # it died at work
    cluster.wait_for_workers(2, timeout=30)
    assert found["pid"] not in cluster.run(os.getpid).values()
    assert (summary.stars, summary.failed, summary.missing) == (7, 2, 0)
    assert out.read_bytes() == alone.read_bytes()
