"""Posterior predictive checks: uniform where the model is right, tiny where it is not."""

from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from fake_star import TRUTH, fake_star
from scipy.stats import kstest
from tiny import LABELS, tiny_emulator
from unpadded import unpadded

from emulators.errors import InputError
from stellarfit.emulator_error import amplitude_prior
from stellarfit.fitting import fit
from stellarfit.priors import make_prior
from stellarfit.sampling import Posterior
from stellarfit.sampling.predictive import Window, predict
from stellarfit.setup import Setup
from stellarfit.spectrum import Spectrum

STARS = 50


@pytest.fixture(scope="module")
def emulator():
    return tiny_emulator(analytic=True, pixels=400)


@pytest.fixture(scope="module")
def parts(emulator):
    """Noise-free star of the emulator, its photon variance and the emulator's error in it."""
    prior, held = make_prior(LABELS)
    amplitude = amplitude_prior(emulator, "validation")
    clean = fake_star(noise_free=True)
    setup = unpadded(
        Setup.build(clean, emulator, prior, held, continuum_degree=2, amplitude=amplitude)
    )
    values = np.array([TRUTH[name] for name in prior.names])
    flux, _ = setup.predict(setup.photons, values)
    return clean, setup, flux, setup.emulator_error(values)


def drawn_star(parts, seed, spoil=None):
    """A spectrum drawn by dense matrices from everything that the noise model says."""
    clean, setup, flux, error = parts
    rng = np.random.default_rng(seed)
    _, sigma, coherent = setup.amplitude
    size = rng.lognormal(-0.5 * sigma**2, sigma)
    modes = np.asarray(error.seen) * rng.lognormal(-0.25 * coherent**2, 0.5 * coherent)
    covariance = size * (np.diag(np.asarray(error.variance)) + modes @ modes.T)
    covariance += np.diag(1 / clean.ivar[setup.keep])
    seen = flux.copy()
    seen[setup.keep] += rng.multivariate_normal(np.zeros(len(setup.keep)), covariance)
    if spoil is not None:
        seen *= spoil(clean.wavelength)
    return Spectrum(clean.wavelength, seen, clean.ivar, resolution=47_000.0)


def laplace_posterior(spectrum, emulator, seed=0) -> Posterior:
    """What a sampler would give, without one: these posteriors are Gaussian."""
    found = fit(spectrum, emulator, continuum_degree=2)
    position = found.laplace.draws(jax.random.key(seed), 400)
    samples = np.asarray(jax.vmap(found.problem.prior.values)(position)).reshape(2, 200, -1)
    rng = np.random.default_rng(seed)
    stats = {"diverging": np.zeros((2, 200), bool), "energy": rng.normal(size=(2, 200))}
    return Posterior(found.names, samples, stats, found, "laplace", seed, 0, 1.0, 0.0)


@pytest.fixture(scope="module")
def checks(parts, emulator):
    return [
        laplace_posterior(drawn_star(parts, seed), emulator, seed).predictive(seed=seed)
        for seed in range(STARS)
    ]


def test_p_values_are_uniform_or_cautious_where_the_model_is_right(checks):
    by_chi2, by_peak = (
        np.array([getattr(check, name) for check in checks]) for name in ("p_chi2", "p_peak")
    )
    assert kstest(by_chi2, "uniform").pvalue > 0.02
    for chances in (by_chi2, by_peak):
        assert np.mean(chances) == pytest.approx(0.5, abs=3 / np.sqrt(12 * STARS))
    # The largest of many residuals is nearer to that of its replicate than chance has it (240
    # stars: 2.5% below 0.1), so that it cries wolf less often than it says, never more.
    assert np.mean(by_peak < 0.1) <= 0.1


def test_replicates_have_the_noise_of_the_dense_matrix(checks, parts):
    """Over all stars and draws: mean zero, and the covariance along a few directions."""
    _, setup, _, error = parts
    modes = np.asarray(error.seen)
    dense = np.diag(np.asarray(error.variance)) + modes @ modes.T
    dense += np.diag(1 / setup.spectrum.ivar[setup.keep])
    noise = np.concatenate([(check.flux - check.model)[:, setup.keep] for check in checks])
    directions = np.linalg.eigh(dense)[1][:, [0, len(dense) // 2, -3, -2, -1]]
    truth = np.einsum("ij,ik,kj->j", directions, dense, directions)
    np.testing.assert_allclose(np.var(noise @ directions, axis=0), truth, rtol=0.08)
    scale = np.sqrt(truth / len(noise))
    assert np.all(np.abs(np.mean(noise @ directions, axis=0)) < 4 * scale)


def line(depth):
    return lambda wavelength: 1 - depth * np.exp(-0.5 * ((wavelength - 5155.4) / 0.06) ** 2)


def test_an_unmodelled_line_is_found(parts, emulator):
    spoiled = laplace_posterior(drawn_star(parts, 3, line(0.25)), emulator).predictive()
    assert spoiled.p_chi2 < 0.01 and spoiled.p_peak < 0.01
    assert spoiled.peak_wavelength == pytest.approx(5155.4, abs=0.12)
    assert "p_peak=0.005 at 5155" in repr(spoiled)


def test_a_faint_line_shows_in_the_peak_alone(parts, emulator):
    found = [
        laplace_posterior(drawn_star(parts, seed, line(0.015)), emulator).predictive()
        for seed in range(100, 106)
    ]
    assert np.median([check.p_peak for check in found]) < 0.02
    assert np.median([check.p_chi2 for check in found]) > 0.02


def test_the_seed_decides(parts, emulator):
    posterior = laplace_posterior(drawn_star(parts, 5), emulator)
    first, again, other = (posterior.predictive(50, seed=seed) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first.flux, again.flux)
    assert not np.array_equal(first.flux, other.flux) and first.seed == 1
    assert first.flux.shape == (50, len(posterior.fit.spectrum))
    assert np.isnan(first.flux[:, ~posterior.fit.spectrum.good]).all()
    for num in (0, 401):
        with pytest.raises(InputError, match=f"num: {num}; the posterior has 400 draws"):
            posterior.predictive(num)


def test_smoothed_residuals_are_weighted_sums_in_sigma():
    """Uneven pixels with a gap, against a loop over pixels."""
    rng = np.random.default_rng(0)
    log = np.sort(rng.uniform(8.5, 8.501, 80))
    log[40:] += 2e-4
    spread, variance = np.full(80, 3e-5), rng.uniform(0.5, 2.0, 80)
    modes, residual = rng.normal(size=(80, 2)), rng.normal(size=80)
    # The last pixel twice more, without weight, counts for nothing.
    places, used = np.minimum(np.arange(82), 79), np.arange(82) < 80
    found = Window.build(
        log[places], spread[places], used / variance[places], modes[places]
    )(jnp.asarray(residual[places]))  # fmt: skip
    covariance = np.diag(variance) + modes @ modes.T
    for i in range(80):
        row = np.where(np.abs(log - log[i]) <= 3e-5, 1 / variance, 0.0)
        expected = row @ residual / np.sqrt(row @ covariance @ row)
        assert float(found[i]) == pytest.approx(expected, rel=1e-8)


def test_pixels_of_different_arms_are_not_smoothed_into_each_other():
    """Arms that overlap in wavelength, in units a factor 1e17 apart, against a loop over pixels."""
    rng = np.random.default_rng(1)
    log = np.concatenate([np.sort(rng.uniform(8.5, 8.501, 60)) for _ in range(3)])
    unit = np.repeat([1e-17, 1.0, 1e-17], 60)
    spread = np.repeat([3e-5, 6e-5, 4e-5], 60)
    variance = rng.uniform(0.5, 2.0, 180) * unit**2
    modes, residual = rng.normal(size=(180, 2)) * unit[:, None], rng.normal(size=180) * unit
    parts = slice(0, 60), slice(60, 120), slice(120, 180)
    found = Window.build(log, spread, 1 / variance, modes, parts)(jnp.asarray(residual))
    covariance = np.diag(variance) + modes @ modes.T
    arm = np.repeat([0, 1, 2], 60)
    for i in range(180):
        near = (np.abs(log - log[i]) <= spread[i]) & (arm == arm[i])
        row = np.where(near, 1 / variance, 0.0)
        expected = row @ residual / np.sqrt(row @ covariance @ row)
        assert float(found[i]) == pytest.approx(expected, rel=1e-8)


def red_arm(depth=0.0, seed=2):
    """Overlaps the star by an Angstrom, coarser and in another unit; may have a line too much."""
    star = fake_star(start=5156.0, width=0.05, resolution=28_000.0, level=3e-3, seed=seed)
    flux = star.flux * (1 - depth * np.exp(-0.5 * ((star.wavelength - 5156.6) / 0.1) ** 2))
    return Spectrum(star.wavelength, flux, star.ivar, resolution=28_000.0)


def test_of_several_arms(emulator):
    arms = {"blue": fake_star(stop=5157.0, seed=1), "red": red_arm()}
    check = laplace_posterior(arms, emulator).predictive()
    assert check.p_chi2 > 0.01 and check.p_peak > 0.01
    star = check.fit.spectrum
    noise = star.split((check.flux - check.model) * np.sqrt(star.ivar))
    for name, one in star.spectra.items():
        # Photons, and an emulator's error that is smaller.
        assert 1.0 < np.std(noise[name][:, one.good]) < 1.6
        assert np.isnan(noise[name][:, ~one.good]).all()
    spoiled = laplace_posterior(arms | {"red": red_arm(0.15)}, emulator).predictive()
    assert spoiled.p_peak < 0.01 and spoiled.peak_arm == "red"
    assert spoiled.peak_wavelength == pytest.approx(5156.6, abs=0.25)
    assert repr(spoiled).endswith("Angstrom of red)")
    tops: Any = spoiled.plot().axes[::2]
    assert [top.get_ylabel() for top in tops] == ["flux, blue", "flux, red"]
    assert [len(top.lines) for top in tops] == [1, 2]  # the peak is marked in its arm alone
    assert tops[0].get_ylim()[1] > 500 and tops[1].get_ylim()[1] < 0.01
    drawn = sum(np.isfinite(top.lines[-1].get_ydata()).sum() for top in tops)
    assert drawn == star.good.sum()


def test_photon_noise_alone_and_the_picture(checks, parts, emulator):
    spectrum = drawn_star(parts, 7)
    posterior = laplace_posterior(spectrum, emulator)
    bare = replace(posterior.fit, setup=replace(posterior.fit.setup, amplitude=None))
    check = predict(replace(posterior, fit=bare), 300, 0)
    keep = posterior.fit.setup.keep
    noise = (check.flux - check.model)[:, keep] * np.sqrt(spectrum.ivar[keep])
    assert np.std(noise) == pytest.approx(1.0, abs=0.02)

    figure = checks[0].plot()
    panels: Any = figure.axes
    data = np.asarray(panels[1].lines[-1].get_ydata())
    star = checks[0].fit.spectrum
    mean = checks[0].model[:, star.good].mean(axis=0)
    expected = (star.flux[star.good] - mean) * np.sqrt(star.ivar[star.good])
    np.testing.assert_allclose(data[np.isfinite(data)], expected)
    band = panels[1].collections[-1].get_paths()[0].vertices[:, 1]
    assert 0.8 < np.median(np.abs(band)) < 1.6  # 68% of the replicates: the data's own scatter
    assert f"= {checks[0].p_chi2:.2g}" in figure.texts[0].get_text()
