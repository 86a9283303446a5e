"""The joint scaling law on ledgers drawn from a known one."""

import hashlib
import json
import math

import numpy as np
import pytest
from fake_ledger import BUDGETS, TRUTH, UNIQUE, by_words, fake_rows
from scipy.optimize import least_squares

from emulators.emulator import load_emulator
from emulators.errors import InputError
from emulators.ledger import read_rows
from scaling import ScalingLaw
from scaling.cross_validation import cross_validate
from scaling.law import SHIPPED
from scaling.law_fit import ABSENT, log_mse
from scaling.runs import draw_trunks, read_runs
from scaling.sizes import PAPER_SIZES

EXPONENTS = {
    "parameters": TRUTH[2],
    "spectra_seen": TRUTH[6],
    "unique_spectra": TRUTH[4],
}


@pytest.fixture(scope="module")
def rows():
    return fake_rows(0)


@pytest.fixture(scope="module")
def law(rows):
    return ScalingLaw.fit(rows, draws=100)


def test_law_is_the_one_in_words(rows):
    runs = read_runs(rows)
    arguments = (runs.parameters, runs.unique, runs.seen)
    np.testing.assert_allclose(log_mse(TRUTH, *arguments), by_words(TRUTH, *arguments), rtol=1e-12)


def test_unique_spectra_matter_only_where_they_are_repeated():
    once = [float(log_mse(TRUTH, 1e6, unique, 1e5)) for unique in (1e5, 1e6, 1e15)]
    assert once[0] == once[1] == once[2] < float(log_mse(TRUTH, 1e6, 9e4, 1e5))
    # many passes: a power of the unique spectra alone
    many = [
        float(log_mse(np.array([ABSENT, *TRUTH[1:]]), 1e15, unique, 1e16)) for unique in (1e4, 1e5)
    ]
    slope = (many[0] - many[1]) / math.log(10)
    assert slope == pytest.approx(EXPONENTS["unique_spectra"], abs=0.02)


def test_passes_help_until_what_spectra_do_not_tell_is_left(law):
    passes = law.useful_passes(np.array([1e6, 1e7]), 1e4)
    for size, number in zip((1e6, 1e7), passes.value, strict=True):
        p, u, s = math.log(size / 1e6), 0.0, math.log(number * 1e4 / 1e6)
        _, _, _, ln_b, b, ln_g, g, h, *_ = law.theta
        assert ln_g - g * s - h * p == pytest.approx(ln_b - b * u)
    assert (passes.low95 < passes.value).all() and (passes.value < passes.high95).all()


def test_no_network_is_worse_than_the_mean_spectrum():
    ends = [float(log_mse(TRUTH, 1e4, 10.0, seen)) for seen in (10.0, 1.0)]
    assert ends == pytest.approx([TRUTH[8]] * 2, abs=0.01)


def covered(law):
    found = law.exponents
    return [found[name].low95 <= truth <= found[name].high95 for name, truth in EXPONENTS.items()]


def test_exponents_of_a_few_ledgers_are_recovered():
    hits = [covered(ScalingLaw.fit(fake_rows(seed), seed=seed, draws=100)) for seed in range(5, 8)]
    assert np.sum(hits) >= 8  # of 9 at 95%


@pytest.mark.slow
def test_exponents_are_recovered_in_nine_of_ten_ledgers():
    hits = [covered(ScalingLaw.fit(fake_rows(seed), seed=seed)) for seed in range(100)]
    assert (np.mean(hits, axis=0) >= 0.9).all()


def test_fit_is_that_of_another_optimiser(rows, law):
    runs = read_runs(rows)

    def residual(theta):
        found = by_words([ABSENT, *theta], runs.parameters, runs.unique, runs.seen)
        return found - np.log(runs.test)

    assert law.floor.value == 0.0
    theirs = least_squares(
        residual, TRUTH[1:], loss="huber", f_scale=0.1, xtol=1e-14, ftol=1e-14, gtol=1e-14
    )
    np.testing.assert_allclose(law.theta[1:], theirs.x, atol=1e-5)


def test_exact_rows_give_the_law_exactly():
    truth = TRUTH.copy()
    truth[0] = math.log(1e-5)
    law = ScalingLaw.fit(fake_rows(noise=0.0, theta=truth), draws=100)
    np.testing.assert_allclose(law.theta, truth, atol=1e-4)
    np.testing.assert_allclose(law.draws, np.tile(truth, (len(law.draws), 1)), atol=1e-2)
    assert law.floor.low95 == pytest.approx(1e-5, rel=1e-2)


def test_irreducible_error_is_kept_where_the_ledger_shows_it(law):
    truth = TRUTH.copy()
    truth[0] = math.log(3e-5)
    floor = ScalingLaw.fit(fake_rows(3, theta=truth), draws=100).floor
    assert floor.low95 < 3e-5 < floor.high95 and floor.low95 > 1e-5
    # and where it does not, the bootstrap says how large it may be
    assert law.floor.high95 > math.exp(TRUTH[0])


def test_runs_that_went_wrong_weigh_little(rows, law):
    spoiled = [dict(row) for row in rows]
    for row in spoiled[::40]:
        row["mse_test"] *= 30.0
    robust = ScalingLaw.fit(spoiled, draws=20)
    for name, interval in law.exponents.items():
        moved = abs(robust.exponents[name].value - interval.value)
        assert moved < 2 * (interval.high95 - interval.low95), name


def test_descent_that_stops_early_is_told(rows, law, monkeypatch):
    monkeypatch.setattr("scaling.law_fit._STEPS", 4)
    with pytest.raises(InputError, match="the fit did not converge .* starts agree"):
        ScalingLaw.fit(rows, draws=100)
    monkeypatch.undo()
    monkeypatch.setattr("scaling.law_fit._REFITS", 1)
    monkeypatch.setattr("scaling.law_fit._ROUNDS", 1)
    with pytest.raises(InputError, match="of 100 bootstrap fits did not converge"):
        ScalingLaw.fit(rows, draws=100)


def test_intervals_cover_runs_that_nobody_trained(law):
    # sizes between those of the ledger, and two that are larger; other noise
    sizes = ((48, 6), (80, 8), (112, 10), (192, 12), (256, 20), (320, 16), (384, 16))
    fresh = read_runs(fake_rows(77, sizes=sizes, unique=(3e3, 3e4, 1e15)))
    found = law.predict(fresh.parameters, fresh.unique, fresh.seen)
    in68 = np.mean((found.low68 < fresh.test) & (fresh.test < found.high68))
    in95 = np.mean((found.low95 < fresh.test) & (fresh.test < found.high95))
    assert 0.58 < in68 < 0.78 and 0.9 < in95 < 0.99
    assert np.median(np.abs(np.log(found.value / fresh.test))) < 0.08
    assert law.noise == pytest.approx(0.07, rel=0.2)


def test_predictions_broadcast_and_widen_beyond_the_ledger(law):
    found = law.predict(np.array([[1e6], [1e9]]), np.array([1e4, 1e5, np.inf]), 1e7)
    assert found.value.shape == found.low95.shape == (2, 3)
    assert (found.low95 < found.low68).all() and (found.high68 < found.high95).all()
    width = np.log(found.high95 / found.low95)
    assert width[1, 2] > 1.5 * width[0, 2]
    single = law.predict(1e6, 1e4, 1e7)
    assert single.value == pytest.approx(found.value[0, 0]) and np.ndim(single.low68) == 0


def test_decades_beyond_the_ledger(law):
    low, high = law.ranges["parameters"]
    beyond = law.decades_beyond(np.array([low, 10 * high, low / 100]), np.inf, 1e6, 1e19)
    np.testing.assert_allclose(beyond["parameters"], [0, 1, 2], atol=1e-12)
    assert beyond["spectra_seen"] == beyond["unique_spectra"] == 0
    assert beyond["flops"] == pytest.approx(2.0, abs=0.01)


def test_runs_of_one_trunk_are_drawn_together(rows, law):
    trunk = read_runs(rows).trunk
    counts = draw_trunks(trunk, 50, 0, 0.5)
    first = np.unique(trunk, return_index=True)[1]
    assert len(first) == 54 and (counts[:, first].sum(axis=1) == 27).all()
    for number in range(trunk.max() + 1):
        assert (counts[:, trunk == number] == counts[:, trunk == number][:, :1]).all()
    # Half of the variance is common to a trunk: runs drawn one by one would seem to say more.
    lonely = [{key: value for key, value in row.items() if key != "trunk"} for row in rows]
    alone = ScalingLaw.fit(lonely, draws=100)
    assert alone.record["trunks"] == len(rows) > law.record["trunks"]
    spread = [np.std(each.draws[:, 2]) for each in (law, alone)]
    assert spread[0] > 1.2 * spread[1]


def test_ledger_without_repeats_says_nothing_of_them():
    law = ScalingLaw.fit(fake_rows(0, unique=(1e15,)), draws=20)
    assert law.exponents["parameters"].value == pytest.approx(TRUTH[2], abs=0.1)
    assert "unique_spectra" not in law.exponents
    law.predict(1e6, np.inf, 1e5)
    with pytest.raises(InputError, match="no run of its ledger repeats spectra"):
        law.predict(1e6, 1e3, 1e5)


def test_law_predicts_the_runs_that_are_left_out():
    budgets = np.geomspace(1e14, 9e16, 6)
    rows = fake_rows(1, unique=(3e3, 3e4, 1e15), budgets=budgets)
    for name, found in cross_validate(rows, draws=20).items():
        assert found.median_factor < 1.1, name
        assert 0.55 < found.coverage68 < 0.8, name
        assert len(found.measured) == len(rows)
    assert found.held == "flops" and set(found.group) == {14, 15, 16, 17}


def test_file_holds_the_whole_law(tmp_path, rows, law):
    law.save(tmp_path / "law.json")
    back = ScalingLaw.load(tmp_path / "law.json")
    np.testing.assert_array_equal(back.theta, law.theta)
    np.testing.assert_array_equal(back.draws, law.draws)
    assert (back.noise, back.ranges, back.recipe) == (law.noise, law.ranges, law.recipe)
    assert back.record == law.record and back.record["runs"] == len(rows)
    text = "".join(json.dumps(row) + "\n" for row in rows).encode()
    assert back.record["ledger_sha256"] == hashlib.sha256(text).hexdigest()


@pytest.mark.parametrize(("name", "runs"), [("paper", 115), ("fgk-mgb", 75)])
def test_shipped_laws_are_those_of_their_ledgers(name, runs):
    law = ScalingLaw.load(name)
    ledger = SHIPPED[name].with_name("runs.jsonl")
    assert law.record["runs"] == len(read_rows(ledger)) == runs
    assert law.record["ledger_sha256"] == hashlib.sha256(ledger.read_bytes()).hexdigest()
    assert law.recipe.learning_rate == 4e-3


def test_shipped_law_predicts_the_shipped_emulators():
    """They are not in its ledger, and were trained longer than any run of it."""
    law = ScalingLaw.load("fgk-mgb")
    for name in ("s", "m", "l"):
        training = load_emulator(f"fgk-mgb-{name}").record["training"]
        size = (training[column] for column in ("parameters", "unique_spectra", "spectra_seen"))
        assert 0.5 < law.predict(*size).value / training["mse_test"] < 2.0


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda contents: "not json", "is no law.json"),
        (lambda contents: json.dumps([1, 2]), "is no law.json"),
        (lambda contents: json.dumps(contents | {"kind": "grid"}), "holds a grid"),
        (lambda contents: json.dumps(contents | {"version": 3}), "of version 3.*update"),
        (lambda contents: json.dumps(contents | {"version": 1}), "of version 1.*fit it again"),
        (lambda contents: json.dumps(contents | {"draws": [[1.0, 2.0]]}), "damaged"),
        (lambda contents: json.dumps(contents | {"draws": []}), "damaged"),
        (lambda contents: json.dumps(contents | {"parameters": {}}), "damaged"),
        (lambda contents: json.dumps(contents | {"record": {}}), "damaged"),
        (lambda contents: json.dumps({k: contents[k] for k in ("kind", "version")}), "damaged"),
    ],
)
def test_files_that_are_no_law_are_refused(tmp_path, law, damage, message):
    path = tmp_path / "law.json"
    law.save(path)
    path.write_text(damage(json.loads(path.read_text())))
    with pytest.raises(InputError, match=message) as caught:
        ScalingLaw.load(path)
    assert "\n" not in str(caught.value)


def test_missing_law_is_refused(tmp_path):
    with pytest.raises(InputError, match="no file"):
        ScalingLaw.load(tmp_path / "none.json")


def test_diverged_runs_are_left_out_and_counted(rows):
    spoiled = rows + [
        rows[0] | {"mse_test": None, "run_id": "a"},
        rows[1] | {"mse_validation": math.nan, "run_id": "b"},
    ]
    law = ScalingLaw.fit(spoiled, draws=20)
    assert (law.record["runs"], law.record["diverged"]) == (len(rows), 2)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda rows: [], "no rows"),
        (lambda rows: [row | {"mse_test": None} for row in rows], "0 finished runs; give 15"),
        (lambda rows: [row for row in rows if row["width"] == 64 and row["depth"] == 4], "1 size;"),
        (lambda rows: rows[::30], "13 finished runs; give 15"),
        (lambda rows: [{k: v for k, v in row.items() if k != "flops"} for row in rows], "no flops"),
        (lambda rows: [row | {"mse_test": -1.0} for row in rows], "mse_test -1"),
        (lambda rows: [row | {"spectra_seen": 1000} for row in rows], "about as many spectra"),
    ],
)
def test_ledgers_that_hold_no_law_are_refused(rows, change, message):
    with pytest.raises(InputError, match=message) as caught:
        ScalingLaw.fit(change(rows))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("argument", "value"), [(0, 0.0), (1, -1.0), (2, np.nan)])
def test_predictions_for_nonsense_are_refused(law, argument, value):
    asked = [1e6, 1e4, 1e5]
    asked[argument] = value
    with pytest.raises(InputError, match="give positive numbers"):
        law.predict(*asked)


def test_fake_ledger_is_what_a_sweep_would_write(rows):
    runs = read_runs(rows)
    assert len(np.unique(runs.parameters)) == len(PAPER_SIZES) - 1
    assert len(np.unique(runs.trunk)) == 9 * len(UNIQUE) and len(rows) > 200
    assert runs.flops.max() / runs.flops.min() == pytest.approx(BUDGETS[-1] / BUDGETS[0], rel=0.1)
