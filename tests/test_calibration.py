"""Calibration: the statistics on known ranks, and the whole path with an exact emulator."""

import json
from dataclasses import replace
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from analytic_synthesizer import AnalyticSynthesizer
from matplotlib.figure import Figure
from scipy.stats import norm
from tiny import LABELS, tiny_emulator

from emulators.errors import InputError
from stellarfit.batch import BatchDraws, fit_batch, sample_batch
from stellarfit.calibration import Calibration, identity, read_parts
from stellarfit.calibration_figure import draw_calibration
from stellarfit.cli import main
from stellarfit.fitting import fit
from stellarfit.recalibrate import recalibrate
from stellarfit.spectrum import Spectrum
from stellarfit.trial import WHITE, Trial

NAMES = (*LABELS.names, "v_rad")


def made_up(stars=4000, wide=1.0, shift=0.0, snr=100.0, noise="law", seed=0, of="one"):
    """Posteriors of Gaussian data under a Gaussian prior.

    Their sigma is `wide` times the true one, their mean off by `shift` true sigma.
    """
    rng = np.random.default_rng(seed)
    truth = rng.normal(size=(stars, 5))
    right = np.sqrt(0.5)
    mean = 0.5 * (truth + rng.normal(size=truth.shape)) + shift * right
    sigma = np.full_like(mean, wide * right)
    draws = mean[:, None] + sigma[:, None] * rng.normal(size=(stars, 40, 5))
    return Calibration(
        names=NAMES,
        noise=noise,
        emulator=of,
        snr=np.full(stars, snr),
        truth=truth,
        rank=norm.cdf((truth - mean) / sigma),
        mean=mean,
        sigma=sigma,
        draws=draws,
        converged=np.ones(stars, bool),
        diverging=np.zeros(stars),
    )


def test_right_posteriors_cover_what_they_say():
    found = made_up()
    for level in (0.5, 0.68, 0.95):
        np.testing.assert_allclose(found.coverage(level), level, atol=0.03)
    assert np.all(found.uniformity > 1e-3) and np.all(np.abs(found.bias) < 0.06)
    coverage, credibility = found.joint_coverage()
    np.testing.assert_allclose(coverage, credibility, atol=0.05)


@pytest.mark.parametrize(
    ("wide", "shift", "expected"),
    [(0.5, 0.0, 2 * norm.cdf(0.5) - 1), (2.0, 0.0, 2 * norm.cdf(2.0) - 1), (1.0, 1.0, None)],
)
def test_wrong_posteriors_show(wide, shift, expected):
    found = made_up(wide=wide, shift=shift)
    assert np.all(found.uniformity < 1e-6)
    if expected is not None:
        # The central 68% are one sigma of the claim.
        np.testing.assert_allclose(found.coverage(0.6827), expected, atol=0.03)
        coverage, credibility = found.joint_coverage()
        assert np.max(np.abs(coverage - credibility)) > 0.1
    else:
        np.testing.assert_allclose(found.bias, 1.0, atol=0.06)


def test_parts_are_saved_joined_and_drawn(tmp_path):
    for place, (noise, snr) in enumerate([("law", 50.0), ("law", 300.0), ("none", 50.0)]):
        made_up(60, snr=snr, noise=noise, seed=place).save(tmp_path / f"{place}.h5")
    found = read_parts(tmp_path)
    assert list(found) == ["law", "none"] and len(found["law"].snr) == 120
    one = made_up(60, snr=300.0, seed=1)
    again = found["law"].at(300.0)
    np.testing.assert_array_equal(again.rank, one.rank)
    np.testing.assert_allclose(again.draws, one.draws, rtol=1e-6)
    figure = Figure(figsize=(10, 7))
    draw_calibration(figure, found)
    assert len(figure.axes) == 5
    with pytest.raises(InputError, match="different parameters or noise"):
        Calibration.join(list(found.values()))
    made_up(60, snr=300.0, of="another").save(tmp_path / "9.h5")
    with pytest.raises(InputError, match="two emulators or error models, one and another"):
        read_parts(tmp_path)
    with pytest.raises(InputError, match="no results in"):
        read_parts(tmp_path / "nowhere")


def test_command_reads_a_folder(tmp_path, capsys):
    folder = tmp_path / "parts"
    folder.mkdir()
    made_up(500).save(folder / "a.h5")
    arguments = ["calibrate", "--out", str(folder), "--plot", str(tmp_path / "a.png")]
    assert main([*arguments, "--json"]) == 0
    (row,) = json.loads(capsys.readouterr().out)["rows"]
    assert row["stars"] == 500 and row["mean"]["68"] == pytest.approx(0.68, abs=0.03)
    assert set(row["labels"]) == set(NAMES) and row["stuck"] == 0
    assert (tmp_path / "a.png").stat().st_size > 10_000
    assert main(["calibrate", "--out", str(tmp_path / "none")]) == 2
    assert "no results" in capsys.readouterr().err


def far_off(emulator, factor, stars=2000):
    """Fits whose truths scatter `factor` times as wide as they say."""
    space, rng = emulator.label_space, np.random.default_rng(8)
    lower, upper = np.asarray(space.lower), np.asarray(space.upper)
    truth = rng.uniform(lower, upper, (stars, len(space)))
    # From a hundredth of the box to half of it: the box, too, keeps an error in bounds.
    right = 0.01 * 50 ** rng.uniform(size=(stars, 1)) * (upper - lower)
    mean = truth + right * rng.normal(size=truth.shape)
    # A posterior in a box has its mean in it; given the mean, the truth is as it says.
    inside = np.all((mean > lower) & (mean < upper), axis=1)
    found = made_up(int(inside.sum()), of=identity(emulator))
    sigma = np.broadcast_to(right / np.asarray(factor), truth.shape)
    for name, array in {"truth": truth, "mean": mean, "sigma": sigma}.items():
        getattr(found, name)[:, : len(space)] = array[inside]
    return found


def test_recalibration_is_what_the_truths_say():
    emulator = tiny_emulator(analytic=True)
    factor = np.array([2.0, 1.0, 0.7, 5.0])
    calibration = far_off(emulator, factor)
    found = recalibrate(emulator, calibration)
    about = found.record["error_model"]["recalibrated_by"]
    assert about["stars"] == len(calibration.snr)
    np.testing.assert_allclose([about["factor"][name] for name in LABELS.names], factor, rtol=0.08)
    models: list[Any] = [one.error_model for one in (emulator, found)]
    before, after = (model.coherent for model in models)
    np.testing.assert_allclose(after.widening / before.widening, factor, rtol=0.08)
    assert float(after.share_beyond / before.share_beyond) == pytest.approx(1.5**2, rel=0.15)


def test_labels_that_fits_leave_open_say_nothing():
    """Posteriors as wide as the box are right, whatever factor a wider Gaussian would allow."""
    emulator = tiny_emulator(analytic=True)
    calibration = far_off(emulator, [2.0, 1.0, 0.7, 1.0])
    lower, upper = (float(end[3]) for end in (LABELS.lower, LABELS.upper))
    calibration.mean[:, 3] = 0.5 * (lower + upper)
    calibration.sigma[:, 3] = (upper - lower) / 12**0.5
    found = recalibrate(emulator, calibration).record["error_model"]["recalibrated_by"]
    assert found["factor"][LABELS.names[3]] == 1.0
    np.testing.assert_allclose(found["factor"][LABELS.names[0]], 2.0, rtol=0.08)


def test_recalibration_refuses_other_fits():
    emulator = tiny_emulator(analytic=True)
    calibration = far_off(emulator, 2.0)
    # Not again by the same fits, nor by fits that did without the emulator's error.
    with pytest.raises(InputError, match="with another error model"):
        recalibrate(recalibrate(emulator, calibration), calibration)
    with pytest.raises(InputError, match="noise 'none' do not use"):
        recalibrate(emulator, replace(calibration, noise="none"))


def test_a_stuck_chain_is_counted_and_left_out(trial, monkeypatch):
    """Rounding gives a constant a deviation of 1e-16 of its value, which is no error bar."""
    spread = 1 + 1e-3 * np.random.default_rng(0).normal(size=(24, 300, 1))
    samples = trial.truth[:, None] * spread
    samples[1] = samples[1, :1]
    still = BatchDraws(jnp.asarray(samples), jnp.zeros(24), jnp.ones(24))
    monkeypatch.setattr("stellarfit.trial.sample_batch", lambda *_, **__: still)
    found = trial.run("none", 100.0, slice(0, 24), num_samples=300)
    assert found.stuck.tolist() == [star == 1 for star in range(24)]
    assert np.all(np.isfinite(found.bias))


@pytest.fixture(scope="module")
def emulator():
    return tiny_emulator(analytic=True, pixels=400)


@pytest.fixture(scope="module")
def trial(emulator):
    return Trial(
        emulator, AnalyticSynthesizer, resolution=40_000.0, wavelength_range=(5150.1, 5160.3),
        stars=24, seed=4,
    )  # fmt: skip


def test_an_exact_emulator_is_calibrated_without_error_and_too_wide_with(trial, tmp_path):
    """The whole path: synthesise, add noise, fit and sample in lockstep, count."""
    exact = trial.run("none", 100.0, slice(0, 24), num_warmup=40, num_samples=100)
    assert exact.diverging.mean() < 0.02 and not exact.stuck.any()
    # 120 correlated intervals: three standard errors of their mean.
    assert exact.coverage(0.68).mean() == pytest.approx(0.68, abs=0.17)
    assert exact.coverage(0.95).mean() > 0.85
    # Five times the true variance, by an error that is not there.
    errors = eqx.tree_at(lambda m: m.mse, trial.emulator.error_model, jnp.asarray(4e-4))
    wide = trial.of(eqx.tree_at(lambda e: e.error_model, trial.emulator, errors))
    white = wide.run(WHITE, 100.0, slice(0, 24), num_warmup=40, num_samples=100)
    assert white.coverage(0.68).mean() > 0.9
    # Pieces that are there are not made again.
    trial.run_all(tmp_path, ["none"], [100.0], num_warmup=5, num_samples=10)
    (path,) = tmp_path.glob("*.h5")
    stamp = path.stat().st_mtime_ns
    trial.run_all(tmp_path, ["none"], [100.0], num_warmup=5, num_samples=10)
    assert path.stat().st_mtime_ns == stamp
    with pytest.raises(InputError, match="24 stars for 5 S/N"):
        trial.run_all(tmp_path, ["none"], [1.0, 2.0, 3.0, 4.0, 5.0])
    with pytest.raises(InputError, match="noise: 'flat'"):
        trial.run("flat", 100.0, slice(0, 2))
    with pytest.raises(InputError, match="snr: 0; give a positive"):
        trial.run("none", 0.0, slice(0, 2))
    bare = trial.of(eqx.tree_at(lambda e: e.error_model, trial.emulator, None))
    with pytest.raises(InputError, match="no error model for 'white'"):
        bare.run(WHITE, 100.0, slice(0, 2))
    # Another emulator's results have other names.
    wide.run_all(tmp_path, ["none"], [100.0], num_warmup=5, num_samples=10)
    assert len(list(tmp_path.glob("*.h5"))) == 2


def test_a_batch_is_its_single_stars(trial):
    """Lockstep against `stellarfit.fit`, whose starts and rounds are others."""
    setup = trial.setup("validation")
    rng = np.random.default_rng(8)
    flux = trial.flux[:3] + rng.normal(size=trial.flux[:3].shape) / 200.0
    ivar = np.full_like(flux, 200.0**2)
    candidates = np.column_stack([LABELS.sobol(64, seed=1), np.zeros(64)])
    many = fit_batch(setup, flux, ivar, candidates)
    draws = sample_batch(many, jax.random.key(0), num_warmup=40, num_samples=120)
    for star in range(3):
        spectrum = Spectrum(
            trial.empty.wavelength[setup.keep], flux[star], ivar[star], resolution=40_000.0
        )
        one = fit(
            spectrum, trial.emulator, fixed={"v_sini": 0.0}, priors=trial.priors,
            noise="validation", robust=False,
        )  # fmt: skip
        np.testing.assert_array_less(np.abs(many.values[star] - one.values), 0.1 * one.error)
        mean = np.asarray(draws.samples[star]).mean(axis=0)
        # On the edge of its box a mean lies inside of the maximum.
        low, high = np.asarray(setup.prior.lower), np.asarray(setup.prior.upper)
        inside = np.minimum(one.values - low, high - one.values) > 4 * one.error
        assert inside.sum() >= 3
        assert np.all((np.abs(mean - one.values) < 0.5 * one.error) | ~inside)
