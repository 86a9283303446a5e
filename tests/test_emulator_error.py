"""The emulator's error in a star's likelihood: amplitudes, their prior, and the law."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from fake_ledger import fake_rows
from fake_star import TRUTH, fake_star
from scipy.integrate import trapezoid
from tiny import LABELS, AnalyticModel, tiny_emulator, tiny_grid
from unpadded import unpadded

from emulators.errors import InputError
from scaling.law import ScalingLaw
from stellarfit.emulator_error import _along, amplitude_prior, default_noise, mix, push
from stellarfit.fitting import fit
from stellarfit.flags import Flag
from stellarfit.noise import Noise
from stellarfit.priors import make_prior
from stellarfit.setup import Setup

WAVELENGTH = float(tiny_grid()[0]), float(tiny_grid()[-1])
RUN = {"parameters": 1e6, "unique_spectra": 1e5, "spectra_seen": 1e6}


@pytest.fixture(scope="module")
def emulator():
    return tiny_emulator(analytic=True, pixels=400)


@pytest.fixture(scope="module")
def setup(emulator):
    prior, held = make_prior(LABELS)
    amplitude = amplitude_prior(emulator, "validation")
    return unpadded(
        Setup.build(fake_star(), emulator, prior, held, continuum_degree=2, amplitude=amplitude)
    )


def values_of(setup):
    return jnp.asarray([TRUTH[name] for name in setup.prior.names])


@pytest.mark.parametrize("snr", [30.0, 200.0, 3000.0])
def test_mixture_equals_the_integral_over_both_amplitudes(setup, snr):
    """Nine nodes against a fine grid of two dimensions, from no information on them to much.

    Up to a constant, which no sampler sees: the same at the star's labels and a few sigma away.
    """
    values, problem = values_of(setup), setup.photons
    plain = eqx.tree_at(
        lambda model: model.coherent.share_beyond, setup.emulator.error_model, jnp.zeros(())
    )
    error = push(problem, plain, values, setup.sizes)
    assert float(error.floor) == 1.0
    photons = jnp.full(len(problem.flux), (800.0 / snr) ** 2)
    sigma, coherent = 0.4, 0.35
    flux = problem.star(values) * problem.continuum.basis[:, 0]
    rng = np.random.default_rng(2)
    noise = np.sqrt(np.asarray(photons + 2.0 * error.variance)) * rng.normal(size=len(flux))
    problem = eqx.tree_at(lambda p: p.flux, problem, flux + jnp.asarray(noise))
    prior = jnp.asarray(0.3), jnp.asarray(sigma), jnp.asarray(coherent)
    found = mix(problem, error, values, photons, jnp.ones(len(flux)), prior)
    columns = problem.star(values)[:, None] * problem.continuum.basis
    residual = problem.flux - columns @ problem.continuum.mean
    rest = columns, problem.continuum.variance
    information = error.by_free.T @ found.central.solve(error.by_free)
    steps = error.by_free @ jnp.linalg.inv(jnp.linalg.cholesky(information)).T
    residuals = residual + jnp.stack([0 * residual, *(1.5 * steps.T), *(-1.5 * steps.T)])

    @jax.jit
    def densities(log_amplitude, log_coherent):
        variance = photons + jnp.exp(log_amplitude) * error.variance
        modes = jnp.exp(0.5 * (log_amplitude + log_coherent)) * error.modes
        noise = Noise.build(1 / variance, modes)
        return jax.vmap(lambda residual: noise.log_density(residual, *rest))(residuals)

    first = 0.3 - 0.5 * sigma**2 + sigma * np.linspace(-5, 5, 161)
    second = -0.5 * coherent**2 + coherent * np.linspace(-4, 4, 17)
    log = np.array([[densities(a, b) for b in second] for a in first])  # [first, second, residual]
    known = 0.5 * np.linspace(-5, 5, 161)[:, None] ** 2 + 0.5 * np.linspace(-4, 4, 17) ** 2
    log -= known[:, :, None]
    top = log.max()
    inner = trapezoid(np.exp(log - top), second, axis=1)
    truth = np.log(trapezoid(inner, first, axis=0))
    mixture = np.array([float(found.log_density(one, *rest)) for one in residuals])
    assert np.ptp(mixture) > 1
    np.testing.assert_allclose(mixture - mixture[0], truth - truth[0], atol=0.1)


def evidence(noise, residual, columns):
    """Log normal density with unit-variance columns integrated out, by one dense matrix."""
    weight, factor = np.asarray(noise.inverse_variance), np.asarray(noise.factor)
    covariance = np.linalg.inv(np.diag(weight) - factor @ factor.T) + columns @ columns.T
    return -0.5 * (
        residual @ np.linalg.solve(covariance, residual) + np.linalg.slogdet(covariance)[1]
    )


def test_a_floor_does_not_change_how_probable_the_nodes_are(setup):
    """Weights of the nodes with their evidence, dense: those of the same error without a floor."""
    values, problem = values_of(setup), setup.photons
    error = push(problem, setup.emulator.error_model, values, setup.sizes)
    assert float(error.floor) > 3
    photons = jnp.full(len(problem.flux), (800.0 / 1000.0) ** 2)
    prior = jnp.asarray(0.2), jnp.asarray(0.5), jnp.asarray(0.3)
    ones = jnp.ones(len(photons))
    known = problem.prior
    spread = np.linalg.cholesky(np.linalg.inv(np.asarray(known.wide)))
    normalized = problem.star(values)
    nuisance = np.asarray(normalized)[:, None] * np.asarray(problem.continuum.basis)
    wide = np.sqrt(np.asarray(problem.continuum.variance))
    columns = np.hstack([np.asarray(error.by_free) @ spread, nuisance * wide])
    residual = np.asarray(problem.flux) - nuisance @ np.asarray(problem.coefficients(normalized))
    chances, weights = [], []
    for one in (error, error._replace(floor=jnp.ones(()))):
        found = mix(problem, one, values, photons, ones, prior)
        nodes = [jax.tree.map(lambda leaf, i=i: leaf[i], found.components) for i in range(9)]
        log = np.array([evidence(node, residual, columns) for node in nodes])
        log += np.asarray(found.log_weight)
        chances.append(np.exp(log - log.max()) / np.exp(log - log.max()).sum())
        weights.append(np.asarray(found.log_weight))
    np.testing.assert_allclose(*chances, rtol=1e-4)
    # The floor does change the densities, and what makes up for it.
    assert np.ptp(weights[0] - weights[1]) > 1


def test_what_is_left_without_mismatch_has_the_floor_and_what_is_expected_has_not(setup):
    values = values_of(setup)
    error = setup.emulator_error(values)
    assert error is not None and float(error.floor) > 3
    frozen = setup.freeze(values, error).noise
    alone = setup.without_mismatch(error, float(frozen.log_amplitude)).noise.central
    for name in ("inverse_variance", "factor", "log_det"):
        np.testing.assert_allclose(getattr(alone, name), getattr(frozen.central, name), rtol=1e-9)
    expected = setup.expected(error).noise.central
    variance = 1 / setup.spectrum.ivar[setup.keep] + error.variance
    np.testing.assert_allclose(expected.inverse_variance, 1 / variance, rtol=1e-12)


def test_residuals_see_the_floor_along_the_labels_alone(setup):
    """Both covariances are equal along the derivatives, freed of the continuum, and only there."""
    values, problem = values_of(setup), setup.photons
    error = setup.emulator_error(values)
    assert error is not None
    deviation, modes, seen = np.sqrt(error.variance), np.asarray(error.modes), error.seen
    labels = np.diag(np.asarray(error.floor * error.variance)) + modes @ modes.T
    residuals = np.diag(np.asarray(error.variance)) + np.asarray(seen @ seen.T)
    continuum = np.asarray(problem.star(values))[:, None] * np.asarray(problem.continuum.basis)
    known, _ = np.linalg.qr(continuum / deviation[:, None])
    along = np.asarray(error.by_free)[:, : len(LABELS)] / deviation[:, None]
    along = (along - known @ (known.T @ along)) / deviation[:, None]

    def variance(covariance, columns):
        return np.einsum("ij,ik,kj->j", columns, covariance, columns)

    # Velocity is projected out of the directions of the labels, and has one of its own.
    np.testing.assert_allclose(variance(residuals, along), variance(labels, along), rtol=1e-3)
    across = np.random.default_rng(0).normal(size=(len(deviation), 5)) / deviation[:, None]
    ratio = variance(labels, across) / variance(residuals, across)
    assert np.all(ratio > 0.6 * float(error.floor))


def test_residuals_tell_the_amplitude(setup):
    """White errors three times as large as the prior says: at high S/N they show."""
    values, problem = values_of(setup), setup.photons
    error = push(problem, setup.emulator.error_model, values, setup.sizes)
    photons = jnp.full(len(problem.flux), (800.0 / 2000.0) ** 2)
    flux = problem.star(values) * problem.continuum.basis[:, 0]
    draw = np.random.default_rng(3).normal(size=len(flux))
    seen = flux + np.sqrt(np.asarray(photons + 3.0 * error.variance)) * draw
    problem = eqx.tree_at(lambda p: p.flux, problem, jnp.asarray(seen))
    prior = jnp.asarray(0.0), jnp.asarray(0.5), jnp.asarray(0.3)
    found = mix(problem, error, values, photons, jnp.ones(len(flux)), prior)
    amplitude = (1 / found.central.inverse_variance - photons) / (error.floor * error.variance)
    np.testing.assert_allclose(amplitude, 3.0, rtol=0.3)


def test_amplitude_is_judged_with_the_labels_as_free_as_their_prior_leaves_them(setup):
    """Against dense matrices, with a joint prior that lies beside the labels."""
    values = values_of(setup)
    error = push(setup.photons, setup.emulator.error_model, values, setup.sizes)
    photons = jnp.full(len(setup.photons.flux), (800.0 / 200.0) ** 2)
    sigma = np.array([10.0, 0.02])
    covariance = np.outer(sigma, sigma) * np.array([[1.0, 0.7], [0.7, 1.0]])
    precision = np.zeros((6, 6))
    precision[:2, :2] = np.linalg.inv(covariance)
    mean = np.asarray(values) + np.array([60.0, -0.1, 0, 0, 0, 0])
    problem = eqx.tree_at(
        lambda p: (p.prior.precision, p.prior.mean),
        setup.photons,
        (jnp.asarray(precision), jnp.asarray(mean)),
    )
    prior = jnp.asarray(0.2), jnp.asarray(0.5), jnp.asarray(0.3)
    found = mix(problem, error, values, photons, jnp.ones(len(photons)), prior)
    box = np.diag(12 / np.asarray(problem.prior.upper - problem.prior.lower) ** 2)
    spread = np.linalg.inv(precision + box)
    normalized = problem.star(values)
    nuisance = np.asarray(normalized)[:, None] * np.asarray(problem.continuum.basis)
    free = np.asarray(error.by_free)
    residual = np.asarray(problem.flux) - nuisance @ np.asarray(problem.coefficients(normalized))
    residual -= free @ (spread @ precision @ (mean - np.asarray(values)))
    known = (
        free @ spread @ free.T + (nuisance * np.asarray(problem.continuum.variance)) @ nuisance.T
    )
    modes = np.asarray(error.modes)
    grid = 0.2 - 0.125 + 0.5 * np.linspace(-4, 4, 25)
    log = []
    for one in grid:
        dense = known + np.exp(one) * (np.diag(np.asarray(error.variance)) + modes @ modes.T)
        dense += np.diag(np.asarray(photons))
        quadratic = residual @ np.linalg.solve(dense, residual)
        log.append(-0.5 * (quadratic + np.linalg.slogdet(dense)[1] + ((one - 0.075) / 0.5) ** 2))
    chance = np.exp(np.array(log) - np.max(log))
    expected = chance @ grid / chance.sum()
    assert float(found.log_amplitude) == pytest.approx(expected, abs=1e-4)
    flat = mix(setup.photons, error, values, photons, jnp.ones(len(photons)), prior)
    assert abs(float(flat.log_amplitude) - expected) > 0.05  # the prior does matter here


def test_velocities_move_and_broaden_the_error(setup):
    """A shift moves the variance along; rotation averages white patterns down."""
    values = values_of(setup)
    error = push(setup.photons, setup.emulator.error_model, values, setup.sizes)
    place = setup.prior.names.index("v_sini")
    broad = push(setup.photons, setup.emulator.error_model, values.at[place].set(30.0), setup.sizes)
    assert float(jnp.mean(broad.variance) / jnp.mean(error.variance)) < 0.6
    # The error grows along the grid, so a redshift lowers it in a given pixel.
    shift = values.at[setup.prior.names.index("v_rad")].add(40.0)
    red = push(setup.photons, setup.emulator.error_model, shift, setup.sizes)
    assert float(jnp.mean(red.variance)) < float(jnp.mean(error.variance))


def test_modes_along_an_axis_are_the_second_moment_of_spectra_with_wrong_labels():
    """A parabola of the labels, against draws: what is linear alone misses most of it."""
    rng = np.random.default_rng(1)
    axis, labels = jnp.asarray([0.3, -0.1, 0.2]), jnp.asarray([0.1, 0.4, -0.2])
    slope, bend = rng.normal(size=(2, 30))
    place = labels @ axis

    def flux(labels):
        t = (labels @ axis - place) / (axis @ axis)
        return 5.0 + slope * t + bend * t**2

    wide = jnp.full(3, -9.0), jnp.full(3, 9.0)
    modes = np.asarray(_along(flux, labels, axis, wide))
    t = rng.normal(size=(200_000, 1))
    change = slope * t + bend * t**2
    truth = change.T @ change / len(t)
    np.testing.assert_allclose(modes.T @ modes, truth, atol=0.03 * np.abs(truth).max())
    assert np.abs(np.outer(modes[0], modes[0]) - truth).max() > 0.5 * np.abs(truth).max()


def test_a_label_on_an_edge_does_not_shorten_the_way_of_another():
    """The second has nowhere to go; what the first does to half its box is seen all the same."""
    lower, upper = jnp.asarray([-1.0, -1.0]), jnp.asarray([1.0, 1.0])
    labels, axis = jnp.asarray([0.0, 1.0]), jnp.asarray([0.5, 1e-3])

    def flux(labels):
        return jnp.stack([labels[0], labels[0] ** 2, labels[1]])

    slope, bend = np.asarray(_along(flux, labels, axis, (lower, upper)))
    np.testing.assert_allclose(slope, [0.5, 0.0, 0.5e-3], atol=1e-12)
    np.testing.assert_allclose(bend[1], 3**0.5 * 0.25, rtol=1e-12)
    # And however little is known of a label, it is off by its box at most.
    wide = np.asarray(_along(flux, labels, 1e4 * axis, (lower, upper)))
    np.testing.assert_allclose(wide[0, :2], [2.0, 0.0], rtol=1e-6, atol=1e-6)


class NowhereElse(AnalyticModel):
    """No flux outside the box."""

    def flux_at(self, labels, encoding, shift=0.0, precision="float32"):
        unit = self.label_space.to_unit(labels)
        inside = jnp.all((unit >= -1e-9) & (unit <= 1 + 1e-9))
        return jnp.where(inside, super().flux_at(labels, encoding, shift), jnp.nan)


def test_wrong_labels_stay_in_the_box(emulator, setup):
    """The error of the most metal-rich star, by errors of more than a box."""
    model = eqx.tree_at(lambda e: e.model, emulator, NowhereElse())
    problem = eqx.tree_at(lambda p: p.star.emulator, setup.photons, model)
    wide = eqx.tree_at(lambda m: m.coherent.share, emulator.error_model, jnp.full(len(LABELS), 1e4))
    values = values_of(setup).at[setup.prior.names.index("fe_h")].set(LABELS.upper[2])
    error = push(problem, wide, values, setup.sizes)
    assert bool(jnp.all(jnp.isfinite(error.modes)))
    assert float(jnp.linalg.norm(error.modes)) > 10 * float(jnp.sqrt(jnp.sum(error.variance)))


@pytest.fixture(scope="module")
def law():
    return ScalingLaw.fit(
        fake_rows(seed=0),
        draws=20,
        notes={"label_space": LABELS.to_dict(), "wavelength": list(WAVELENGTH)},
    )


def trained(emulator, **changes):
    record = {"training": RUN | changes}
    other = type(emulator)(
        emulator.model, emulator.wavelength_range, emulator.step, emulator.error_model, record, "x"
    )
    return other


def test_law_sets_the_amplitude(emulator, law):
    one = trained(emulator)
    predicted = law.predict(*RUN.values())
    prior = amplitude_prior(one, "law", law)
    measured = float(emulator.error_model.mse)
    assert prior is not None
    assert np.exp(prior.log_factor) == pytest.approx(predicted.value / measured)
    spread = 0.5 * np.log(predicted.high68 / predicted.low68)
    assert prior.sigma == pytest.approx(np.hypot(spread, 0.3), rel=1e-6)
    validated = amplitude_prior(one, "validation")
    assert validated is not None and validated.log_factor == 0.0 and not validated.disagrees
    assert amplitude_prior(one, "none") is None


@pytest.mark.parametrize(("ratio", "flagged"), [(1.5, False), (3.0, True), (1 / 3, True)])
def test_disagreement_of_law_and_held_out_spectra_is_flagged(emulator, law, ratio, flagged):
    measured = jnp.asarray(law.predict(*RUN.values()).value / ratio)
    one = eqx.tree_at(lambda e: e.error_model.mse, trained(emulator), measured)
    found = fit(fake_star(), one, continuum_degree=2, law=law)
    assert bool(found.flags & Flag.LAW_MISMATCH) is flagged


def test_default_is_the_law_where_there_is_one(emulator):
    from emulators.emulator import load_emulator

    assert default_noise(emulator) == "validation"
    shipped = load_emulator("fgk-mgb-s")
    assert default_noise(shipped) == "law"
    prior = amplitude_prior(shipped, "law")
    assert prior is not None and not prior.disagrees


def test_a_law_of_another_box_is_not_taken(emulator, law):
    other = trained(emulator)
    wider = type(emulator)(
        other.model, (5000.0, 5300.0), other.step, other.error_model, other.record, "wide"
    )
    with pytest.raises(InputError, match="of other labels or wavelengths than wide"):
        amplitude_prior(wider, "law", law)
    assert default_noise(wider) == "validation"


def test_refuses_what_has_no_meaning(emulator, law):
    with pytest.raises(InputError, match="does not say how it was trained"):
        amplitude_prior(emulator, "law", law)
    with pytest.raises(InputError, match="which needs none"):
        amplitude_prior(emulator, "validation", law)
    with pytest.raises(InputError, match="no scaling law for the labels"):
        amplitude_prior(emulator, "law")


@pytest.mark.parametrize("number", [200, pytest.param(10_000, marks=pytest.mark.slow)])
def test_never_a_failed_factorisation(setup, number):
    """Random labels, velocities, masks and S/N from 5 to 2,000: density and gradient are finite."""
    problem, errors, sizes = setup.photons, setup.emulator.error_model, setup.sizes
    rng = np.random.default_rng(7)
    lower, upper = np.asarray(setup.prior.lower), np.asarray(setup.prior.upper)
    values = rng.uniform(lower, upper, (number, len(lower)))
    snr = np.exp(rng.uniform(np.log(5.0), np.log(2000.0), number))
    good = rng.uniform(size=(number, len(problem.flux))) > rng.uniform(0, 0.9, (number, 1))
    prior = jnp.asarray(0.5), jnp.asarray(0.4), jnp.asarray(0.4)

    @jax.jit
    def one(values, snr, good):
        photons = jnp.full(len(problem.flux), 1.0) * (800.0 / snr) ** 2
        error = push(problem, errors, values, sizes)
        noise = mix(problem, error, values, photons, good.astype(jnp.float64), prior)
        changed = eqx.tree_at(lambda p: p.noise, problem, noise)
        return jax.value_and_grad(changed.log_likelihood)(values)

    density, gradient = jax.lax.map(
        lambda given: one(*given), (jnp.asarray(values), jnp.asarray(snr), jnp.asarray(good))
    )
    assert np.isfinite(density).all() and np.isfinite(gradient).all()
