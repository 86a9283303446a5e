"""Stars in lockstep: the labels that single fits find, whatever else is in the chunk."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
from fake_star import TRUTH, compile_tiny, fake_star
from tiny import LABELS

import stellarfit as sf
from emulators.errors import InputError
from stellarfit.batch import fit_batch
from stellarfit.engine import Engine
from stellarfit.lockstep import anchor

STILL = {"v_sini": 0.0}
SEEN: dict[str, Any] = {"start": 5152.6, "stop": 5161.2, "resolution": 47_000.0}


@pytest.fixture(scope="module")
def compiled():
    return compile_tiny()


@pytest.fixture(scope="module")
def stars():
    """Three stars at very different velocities, and one without a line."""
    found = [
        fake_star({"v_sini": 0.01, "v_rad": v_rad, "teff": teff}, seed=seed, **SEEN)
        for seed, (v_rad, teff) in enumerate([(23.4, 5200.0), (-61.0, 4700.0), (10.0, 6100.0)])
    ]
    flat = fake_star({"v_sini": 0.01}, seed=7, **SEEN)
    noise = np.random.default_rng(0).normal(0, 4.0, len(flat))
    return [*found, sf.Spectrum(flat.wavelength, 800.0 + noise, flat.ivar, resolution=47_000.0)]


@pytest.fixture(scope="module")
def engine(compiled, stars):
    return Engine.build(compiled, stars[0], fixed=STILL)


@pytest.fixture(scope="module")
def data(stars):
    flux, ivar = np.stack([s.flux for s in stars]), np.stack([s.ivar for s in stars])
    # A whole line, so that a label's errors hang on what is masked.
    flux[1, 5:35], ivar[1, 15:25] = np.nan, 0.0
    return flux, ivar


@pytest.fixture(scope="module")
def found(engine, data):
    return engine.fit(*data, chunk=3)


def test_labels_and_errors_are_those_of_single_fits(engine, compiled, stars, data, found):
    flux, ivar = data
    for i, star in enumerate(stars[:3]):
        again = sf.Spectrum(star.wavelength, flux[i], ivar[i], resolution=47_000.0)
        one = sf.fit(again, compiled, fixed=STILL, robust=False)
        assert one.names == engine.names
        sigma = np.sqrt(np.diagonal(found.covariance[i]))
        assert found.dof[i] == pytest.approx(one.dof_effective, abs=0.2)  # the same pixels
        np.testing.assert_array_less(np.abs(found.values[i] - one.values) / one.error, 0.02)
        np.testing.assert_allclose(sigma, one.error, rtol=0.02)
        photons = np.sqrt(np.diagonal(found.photons[i]))
        np.testing.assert_allclose(photons, one.error_stat, rtol=0.02)
        assert found.converged[i] and not found.bad[i]
        assert found.chi2[i] / found.dof[i] == pytest.approx(one.chi2 / one.dof_effective, abs=0.1)


def test_the_network_may_do_alone(compiled, stars, data, found):
    """Quicker, and off by what compiling tells of labels at this S/N."""
    quick = Engine.build(compiled, stars[0], fixed=STILL, anchored=False)
    loose = quick.fit(*data, chunk=3)
    assert loose.state.anchor is None and loose.converged[:3].all()
    sigma = np.sqrt(np.diagonal(found.covariance, axis1=1, axis2=2))
    shift = np.abs(loose.values - found.values)[:3] / sigma[:3]
    told = np.percentile(np.abs(np.asarray(compiled.shift)), 95, axis=0).max()
    assert 1e-3 < shift.max() < 4 * told * 200 / 100
    draws = quick.draw(data[0], data[1], loose.state, num=64, seed=1, chunk=3)
    assert np.isfinite(draws.samples[:3]).all()


def test_a_star_that_moves_on_is_anchored_anew(engine, data, found, monkeypatch):
    rounds = []

    def count(*arguments):
        rounds.append(len(arguments[1]))
        return anchor(*arguments)

    monkeypatch.setattr("stellarfit.engine.anchor", count)
    engine.fit(*(part[:1] for part in data), chunk=1)
    once = len(rounds)
    # However little a star moves, it is too far; and then where it is, too.
    monkeypatch.setattr("stellarfit.engine._ADRIFT", 1e-9)
    engine.fit(*(part[:1] for part in data), chunk=1)
    assert len(rounds) - once > once
    del rounds[once:]
    monkeypatch.setattr("stellarfit.engine._ADRIFT", -1.0)
    never = engine.fit(*(part[:1] for part in data), chunk=1)
    assert 1 <= once <= 2 and len(rounds) - once == 7
    assert found.converged[0] and not never.converged[0]
    sigma = np.sqrt(np.diagonal(found.covariance[0]))
    assert (np.abs(never.values[0] - found.values[0]) < 0.05 * sigma).all()


class Unbounded(eqx.Module):
    """Positions that are values."""

    def values(self, position):
        return position

    def position(self, values):
        return values


class ToAndFro:
    """Stars whose maximum lies on the other side of 3 from where they are anchored, or at 3."""

    slope = np.array([[-0.95], [-0.3], [0.0], [0.5]])

    def __init__(self):
        self.all, self.anchored = np.arange(4), []

    def renew(self, rows, _, active, places):
        self.anchored.append(active.tolist())
        rows = places.copy() if rows is None else rows
        rows[active] = places[active]
        return rows

    def run(self, _, active, positions, v_frame, level, anchors):
        new = (3.0 + self.slope * (anchors - 3.0))[active]
        return new, np.ones(len(active), bool), np.abs(new - positions[active])[:, 0]


def test_stars_that_anchors_send_to_and_fro_are_anchored_halfway(engine):
    prior_of = (lambda e: e.problem.prior, lambda e: e.amplitude)
    bare = eqx.tree_at(
        lambda e: [one(e) for one in prior_of],
        engine,
        [Unbounded(), None],
        is_leaf=lambda leaf: leaf is None,
    )
    stars = ToAndFro()
    state = bare._settle(stars, np.full((4, 1), 5.0), np.zeros(4), np.zeros(4))
    assert state.settled.all()
    # No further from the fixed point than a round may take a settled star.
    assert np.abs(state.positions - 3.0).max() < 0.3
    assert stars.anchored[0] == [0, 1, 2, 3] and 2 <= len(stars.anchored) <= 5


def test_velocities_are_found_wherever_they_are(found):
    np.testing.assert_allclose(found.values[:3, -1], [23.4, -61.0, 10.0], atol=0.5)


def test_truth_lies_within_the_errors(engine, found):
    truth = np.array([TRUTH[name] for name in LABELS.names])
    z = (found.values[0, : len(truth)] - truth) / np.sqrt(np.diagonal(found.covariance[0]))[:-1]
    assert np.abs(z).max() < 3.5


def test_a_star_does_not_depend_on_its_neighbours(engine, data, found):
    flux, ivar = data
    alone = engine.fit(flux[:1], ivar[:1], chunk=3)
    np.testing.assert_allclose(alone.values, found.values[:1], rtol=1e-6)
    np.testing.assert_allclose(alone.covariance, found.covariance[:1], rtol=1e-4)


def test_masked_pixels_are_not_used(engine, data, found):
    flux, ivar = (part.copy() for part in data)
    flux[1, 5:35] = 1e9
    ivar[1, 5:35] = 0.0
    again = engine.fit(flux, ivar, chunk=3)
    np.testing.assert_allclose(again.values[1], found.values[1], rtol=1e-6)
    assert again.pixels.tolist() == found.pixels.tolist()
    assert found.pixels[1] == len(flux[0]) - 30


def test_draws_are_those_of_the_posterior(engine, data, found):
    flux, ivar = data
    draws = engine.draw(flux, ivar, found.state, num=256, seed=3, chunk=3)
    assert draws.samples.shape == (4, 256, len(engine.names))
    # The second star has lost the line of one of its labels, whose posterior is no Gaussian.
    told = [0, 2]
    assert (draws.k_hat[told] < 0.7).all()
    sigma = np.sqrt(np.diagonal(found.covariance, axis1=1, axis2=2))
    assert (np.abs(draws.mean - found.values)[told] < 0.5 * sigma[told]).all()
    np.testing.assert_allclose(draws.sigma[told], sigma[told], rtol=0.3)
    same = engine.draw(flux, ivar, found.state, num=256, seed=3, chunk=3)
    np.testing.assert_array_equal(same.samples, draws.samples)
    other = engine.draw(flux, ivar, found.state, num=256, seed=4, chunk=3)
    assert (other.samples != draws.samples).any()


def test_chains_draw_what_weights_cannot(engine, compiled, stars, data, found, monkeypatch):
    """The star that has lost the line of a label, against a sampler of single stars."""
    monkeypatch.setattr("stellarfit.draws.TRUSTED", -9.0)  # so that no weights are good enough
    lost = [part[1:2] for part in data]
    state = jax.tree.map(lambda rows: rows[1:2], found.state)
    draws = engine.draw(*lost, state, num=64, seed=3, chunk=1)
    assert state.settled.all() and (draws.r_hat < 1.05).all()
    star = sf.Spectrum(stars[1].wavelength, lost[0][0], lost[1][0], resolution=47_000.0)
    fit = sf.fit(star, compiled, fixed=STILL, robust=False)
    long = sf.sample(star, compiled, fit=fit, num_samples=400)
    np.testing.assert_array_less(np.abs(draws.mean[0] - long.mean) / long.sigma, 0.25)
    np.testing.assert_allclose(draws.sigma[0], long.sigma, rtol=0.25)
    # Draws that are kept are some of those whose mean and sigma these are.
    np.testing.assert_allclose(draws.samples[0].std(axis=0), draws.sigma[0], rtol=0.4)
    assert len(np.unique(draws.samples[0], axis=0)) > 32
    # A search without an end leaves chains nowhere to begin.
    astray = state._replace(settled=np.array([False]))
    assert np.isnan(engine.draw(*lost, astray, num=64, seed=3, chunk=1).r_hat).all()


def test_what_the_engine_cannot_do_says_so(compiled, stars):
    with pytest.raises(InputError, match="v_sini=0"):
        Engine.build(compiled, stars[0])
    with pytest.raises(InputError, match="v_rad is fixed"):
        Engine.build(compiled, stars[0], fixed=STILL | {"v_rad": 0.0})
    with pytest.raises(InputError, match="v_rad has one that is not Uniform"):
        Engine.build(compiled, stars[0], fixed=STILL, priors={"v_rad": dist.Normal(0.0, 5.0)})
    other: dict[str, Any] = SEEN | {"resolution": 40_000.0}
    with pytest.raises(InputError, match=r"resolution: 40000 .* compiled for 47000"):
        Engine.build(compiled, fake_star(**other), fixed=STILL)
    setup = sf.fit(stars[0], compiled, fixed=STILL).setup
    flux = np.ones((1, len(setup.keep)))
    with pytest.raises(InputError, match="compiled"):
        fit_batch(setup, flux, flux, np.asarray(setup.starts))


def test_stars_without_data_do_not_converge(engine, data):
    flux, ivar = (part[:2].copy() for part in data)
    ivar[0] = 0.0
    ivar[1, 8:] = 0.0
    dead = engine.fit(flux, ivar, chunk=3)
    assert dead.converged.tolist() == [False, False] and dead.pixels.tolist() == [0, 5]


def test_templates_find_the_lag(engine):
    wavelength = np.asarray(engine.spectrograph.wavelength)
    star = fake_star({"v_sini": 0.01, "v_rad": -200.0}, level=1.0, **SEEN)
    values, velocity = engine.templates.match(jnp.asarray(star.flux), jnp.asarray(star.ivar), 3)
    assert len(wavelength) == len(star) and values.shape == (3, len(engine.names))
    assert float(velocity) == pytest.approx(-200.0, abs=3.0)
