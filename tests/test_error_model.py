"""The error model against errors that are drawn from a known one, and against dense algebra."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import LABELS, AnalyticModel, tiny_data, tiny_error_model

from emulators import coherent_error, fit_coherent
from emulators.error_amplitude import fit_error_amplitude
from emulators.error_model import ErrorModel, fit_error_model
from emulators.errors import InputError
from emulators.training_data import TrainingData

MODEL = AnalyticModel()
HALF = 0.5 * (np.asarray(LABELS.upper) - np.asarray(LABELS.lower))


def steepness(labels):
    """ln of the mean squared error of made-up stars: a polynomial of the labels."""
    unit = 2 * np.asarray(LABELS.to_unit(labels)) - 1
    return -11.0 - 1.0 * unit[:, 0] + 0.5 * unit[:, 2] ** 2 + 0.7 * unit[:, 0] * unit[:, 3]


def derivatives(data: TrainingData):
    """[star, pixel, label] per half the box, by finite differences."""

    def flux(labels):
        shifted = jnp.asarray(data.wavelength) * jnp.exp(data.dither * data.step)[:, None]
        return np.asarray(jax.vmap(MODEL)(jnp.asarray(labels), shifted))

    moves = 1e-4 * np.diag(HALF)
    columns = [(flux(data.labels + m) - flux(data.labels - m)) / 2e-4 for m in moves]
    return np.stack(columns, axis=-1)


def wrong(num=400, coherent=0.0, scatter=0.0, seed=5):
    """Spectra that the closed form misses by white noise, and by a change of the labels."""
    data = tiny_data(num, seed=seed, pixels=300)
    rng = np.random.default_rng(seed)
    noise = rng.normal(size=data.flux.shape)
    if coherent:
        # A Gaussian amount along every direction that the labels can move the spectrum to.
        for star, matrix in enumerate(derivatives(data)):
            u = np.linalg.svd(matrix, full_matrices=False)[0]
            size = np.exp(scatter * rng.normal() - 0.5 * scatter**2)
            amount = np.sqrt(coherent * noise.shape[1] * size)
            noise[star] += u @ (amount * rng.normal(size=u.shape[1]))
    error = noise * np.exp(0.5 * steepness(data.labels))[:, None]
    return data._replace(flux=np.asarray(data.flux - error, np.float64))


def test_amplitude_follows_the_labels():
    labels = LABELS.sobol(400, seed=2)
    rng = np.random.default_rng(1)
    found = fit_error_amplitude(
        np.exp(steepness(labels) + 0.3 * rng.normal(size=400) - 0.045), labels, LABELS
    )
    fresh = LABELS.sobol(200, seed=9)
    expected = np.array([float(found(jnp.asarray(star))) for star in fresh])
    assert np.std(np.log(expected) - steepness(fresh)) < 0.1
    assert abs(np.mean(np.log(expected) - steepness(fresh))) < 0.05
    assert float(found.scatter) == pytest.approx(0.3, abs=0.04)
    # Beyond the box it stays as on the edge, rather than run away.
    beyond = jnp.asarray(LABELS.upper) + 10 * HALF
    assert float(found(beyond)) == pytest.approx(float(found(jnp.asarray(LABELS.upper))))


def test_few_stars_have_one_amplitude():
    labels = LABELS.sobol(20, seed=2)
    found = fit_error_amplitude(np.linspace(1e-6, 3e-6, 20), labels, LABELS)
    for star in labels[:3]:
        assert float(found(jnp.asarray(star))) == pytest.approx(2e-6)
    assert float(found.scatter) == 1.0


def test_every_pixel_keeps_its_mean_square():
    data = wrong(200)
    data.flux[:, 100:120] += 0.01 * np.random.default_rng(0).normal(size=(200, 20))
    model = fit_error_model(MODEL, data, num_patterns=40)
    assert model.patterns.shape == (40, 300)
    truth = np.asarray(tiny_data(200, seed=5, pixels=300).flux)
    residuals = truth - data.flux
    assert float(model.mse) == pytest.approx(np.mean(residuals**2), rel=1e-3)
    expected = np.array([float(model.amplitude(jnp.asarray(star))) for star in data.labels])
    mean_square = np.mean(residuals**2 / expected[:, None], axis=0)
    np.testing.assert_allclose(model.variance(model.patterns), mean_square, rtol=2e-3)


def label_pulls(model: ErrorModel, data: TrainingData, coherent: bool):
    """What the errors do to a least-squares fit of each star, over what the model says, [star, 4].

    By dense matrices of numpy: label, continuum, shift and broadening are free.
    """
    matrices = derivatives(data)
    truth = tiny_data(len(data.labels), seed=6, pixels=300).flux
    pulls = []
    for star, labels in enumerate(data.labels):
        residual = np.asarray(truth[star] - data.flux[star], np.float64)
        at = jnp.asarray(labels)
        variance = np.asarray(model.amplitude(at) * model.variance(model.patterns))
        by_shift = np.gradient(np.asarray(truth[star], np.float64))
        velocity = np.stack([by_shift, np.gradient(by_shift)], axis=1)
        continuum = np.asarray(truth[star])[:, None] * np.vander(np.linspace(-1, 1, 300), 4)
        columns = np.hstack([matrices[star], velocity, continuum])
        off = model.coherent.displacements(
            at, jnp.asarray(variance), jnp.asarray(matrices[star] / HALF),
            jnp.asarray(velocity), jnp.asarray(continuum), float(model.coherent.resolved),
        )  # fmt: skip
        modes, resolved = np.asarray(off.modes), float(model.coherent.resolved)
        floor = float(model.coherent.floor(300, resolved)) if coherent else 1.0
        covariance = np.diag(floor * variance) + (modes @ modes.T if coherent else 0.0)
        weighted = columns / variance[:, None]
        answer = np.linalg.solve(columns.T @ weighted, weighted.T)
        said = np.sqrt(np.diagonal(answer @ covariance @ answer.T))
        pulls.append((answer @ residual / said)[:4])
    return np.array(pulls)


@pytest.mark.parametrize("share", [0.0, 0.01])
def test_says_how_far_other_stars_labels_are_moved(share, monkeypatch):
    """Errors that look like labels, of stars that the error model was not measured on."""
    monkeypatch.setattr(fit_coherent, "LINE_SPREAD", 1e-3)  # no spectrograph
    model = fit_error_model(MODEL, wrong(600, coherent=share, scatter=0.5))
    others = wrong(300, coherent=share, scatter=0.5, seed=6)
    rms = np.sqrt(np.mean(label_pulls(model, others, coherent=True) ** 2, axis=0))
    np.testing.assert_allclose(rms, 1.0, atol=0.2)
    naive = np.sqrt(np.mean(label_pulls(model, others, coherent=False) ** 2, axis=0))
    assert naive.max() > 1.5 if share else np.all(np.abs(naive - 1) < 0.2)


def test_white_errors_have_no_coherent_part():
    """Less than one more white variance along any direction, where the real ones have fifty."""
    model = fit_error_model(MODEL, wrong(seed=8))
    pixels = np.full(300, 1e-6)
    star = np.asarray(LABELS.sobol(1, seed=3))
    by_label = derivatives(tiny_data(1, seed=3, pixels=300))[0] / HALF
    by_velocity = np.random.default_rng(0).normal(size=(300, 2))
    off = model.coherent.displacements(
        jnp.asarray(star[0]), jnp.asarray(pixels), jnp.asarray(by_label),
        jnp.asarray(by_velocity), jnp.ones((300, 1)), float(model.coherent.resolved),
    )  # fmt: skip
    largest = np.linalg.eigvalsh(np.asarray(off.modes) @ np.asarray(off.modes).T)[-1]
    assert largest < 8e-6


def test_modes_have_the_shares_of_their_directions():
    """Against numpy's singular vectors of the whitened, projected derivatives."""
    rng = np.random.default_rng(4)
    coherent = tiny_error_model(np.linspace(5150, 5160, 120)).coherent
    variance = rng.uniform(0.5, 2, 120) * 1e-5
    variance[[7, 8, 50]] = 0.0  # not used
    by_label = rng.normal(size=(120, 4)) / HALF
    by_velocity, continuum = rng.normal(size=(120, 2)), rng.normal(size=(120, 3))
    unstretched = eqx.tree_at(lambda c: c.stretch, coherent.first_order, jnp.ones(4))
    resolved = 0.25 * float(coherent.resolved)
    found = unstretched.displacements(
        jnp.asarray(LABELS.lower),
        jnp.asarray(variance),
        jnp.asarray(by_label),
        jnp.asarray(by_velocity),
        jnp.asarray(continuum),
        resolved,
    )
    modes, directions = np.asarray(found.modes), np.asarray(found.directions)
    good = variance > 0
    assert np.all(modes[~good] == 0)
    white = 1 / np.sqrt(variance[good])[:, None]
    nuisance = np.linalg.qr(white * np.hstack([continuum, by_velocity])[good])[0]
    projected = white * by_label[good] * HALF
    projected -= nuisance @ (nuisance.T @ projected)
    u = np.linalg.svd(projected, full_matrices=False)[0]
    inside = u.T @ (white * modes[good])
    beyond = float(coherent.share_beyond)
    floor = 117 * 4**0.3 * beyond
    assert floor > 3 and float(coherent.floor(117, resolved)) == pytest.approx(floor)
    expected = 117 * 4**0.3 * np.asarray(coherent.share) - floor
    np.testing.assert_allclose(np.sum(inside**2, axis=1), expected, rtol=1e-8)
    np.testing.assert_allclose(inside @ inside.T, np.diag(expected), atol=1e-8)
    # Nothing that the continuum could take up.
    flat = np.linalg.qr(white * continuum[good])[0]
    np.testing.assert_allclose(flat.T @ (white * modes[good]), 0.0, atol=1e-8)
    unit = white * directions[good]
    np.testing.assert_allclose(unit.T @ unit, np.eye(6), atol=1e-8)
    np.testing.assert_allclose(np.sum((u.T @ unit) ** 2, axis=1), 1.0, rtol=1e-8)


def test_an_unanswered_label_errs_by_what_is_left_of_its_response():
    """Against the inverse of numpy's normal equations, of labels tied to each other."""
    rng = np.random.default_rng(5)
    coherent = tiny_error_model(np.linspace(5150, 5160, 120)).coherent
    # No floor, and the error model's other factors out of the way.
    coherent = eqx.tree_at(
        lambda c: (c.stretch, c.share_beyond), coherent, (jnp.ones(4), jnp.zeros(()))
    )
    by_label = rng.normal(size=(120, 4)) / HALF
    by_label[:, 3] += 0.8 * by_label[:, 2] * HALF[2] / HALF[3]
    rest = jnp.zeros((120, 2)), jnp.zeros((120, 1)), float(coherent.resolved)

    def covariance(response, variance=1e-5):
        known = eqx.tree_at(lambda c: c.response, coherent, jnp.asarray(response))
        pixels = jnp.full(120, variance)
        off = known.displacements(jnp.asarray(LABELS.lower), pixels, jnp.asarray(by_label), *rest)
        modes = np.asarray(off.modes)[:, :4]
        changes = np.linalg.lstsq(by_label * HALF, modes, rcond=None)[0]
        labels = np.asarray(off.labels) / HALF[:, None]
        np.testing.assert_allclose(labels @ labels.T, changes @ changes.T, rtol=1e-6, atol=1e-9)
        return labels @ labels.T

    matrix = by_label * HALF / np.sqrt(1e-5)
    tied = np.linalg.inv(matrix.T @ matrix)  # of the pixels' own variance
    before = covariance(np.zeros(4)) + tied
    # The third label: of its response across the others 0.4 is the emulator's error.
    share = 0.4
    response = np.array([0.0, 0.0, share / (120 * tied[2, 2]), 0.0])
    after = covariance(response) + tied
    assert after[2, 2] == pytest.approx(before[2, 2] / (1 - share) ** 2, rel=0.02)
    along = tied[:, 2] / tied[2, 2]
    added = before[2, 2] * ((1 - share) ** -2 - 1) * np.outer(along, along)
    np.testing.assert_allclose(after - before, added, atol=0.02 * added.max())
    # Where all of it is, the label may be off by its box and no more.
    everything = covariance(np.array([0.0, 0.0, 1e9, 0.0]), variance=1e-3)
    assert 2.0 < np.sqrt(everything[2, 2]) < 2.01


def bent(num, share, seed):
    """Spectra off by white noise, and by `share` of it along each second difference of theirs."""
    data = tiny_data(num, seed=seed, pixels=300)
    rng = np.random.default_rng(seed)
    noise = rng.normal(size=data.flux.shape)
    step = 0.3 * HALF

    def flux(labels):
        shifted = jnp.asarray(data.wavelength) * jnp.exp(data.dither * data.step)[:, None]
        return np.asarray(jax.vmap(MODEL)(jnp.asarray(labels), shifted), np.float64)

    middle = [np.clip(data.labels, LABELS.lower + one, LABELS.upper - one) for one in np.diag(step)]
    bends = np.stack(
        [
            flux(at + one) + flux(at - one) - 2 * flux(at)
            for at, one in zip(middle, np.diag(step), strict=True)
        ],
        axis=-1,
    )
    for star, (bend, matrix) in enumerate(zip(bends, derivatives(data), strict=True)):
        # Only what labels, velocities and continuum cannot do to first order.
        shift = np.gradient(data.flux[star])
        continuum = data.flux[star][:, None] * np.vander(np.linspace(-1, 1, 300), 4)
        velocity = np.stack([shift, np.gradient(shift)], axis=1)
        known = np.linalg.qr(np.hstack([matrix, continuum, velocity]))[0]
        u = np.linalg.svd(bend - known @ (known.T @ bend), full_matrices=False)[0]
        noise[star] += u @ (np.sqrt(share * 300) * rng.normal(size=u.shape[1]))
    return data._replace(flux=np.asarray(data.flux - 0.003 * noise, np.float64))


@pytest.mark.parametrize("share", [0.0, 0.03])
def test_share_beyond_first_order_is_found(share, monkeypatch):
    monkeypatch.setattr(fit_coherent, "LINE_SPREAD", 1e-3)  # no spectrograph
    model = fit_error_model(MODEL, bent(200, share, seed=3))
    # White noise has one part in 300 pixels of any direction; all of it is 1 + 4 shares.
    expected = (share + 1 / 300) / (1 + 4 * share)
    assert float(model.coherent.share_beyond) == pytest.approx(expected, rel=0.25)
    floor = float(model.coherent.floor(300, float(model.coherent.resolved)))
    assert floor == pytest.approx(max(300 * expected, 1.0), rel=0.25)


def test_rounding_is_exact_in_float16():
    model = fit_error_model(MODEL, wrong(60), num_patterns=10)
    rounded = model.rounded()
    patterns = np.asarray(rounded.patterns)
    assert np.array_equal(patterns, patterns.astype(np.float16).astype(float))
    np.testing.assert_allclose(patterns, model.patterns, rtol=1e-3, atol=1e-6)


def test_arrays_round_trip():
    from emulators.bundle import tree_to_arrays

    model = tiny_error_model(np.linspace(5150, 5160, 40))
    again = ErrorModel.from_arrays(tree_to_arrays(model))
    assert jax.tree.all(jax.tree.map(lambda a, b: bool(jnp.all(a == b)), model, again))


def test_refuses_nan_and_wrong_shapes():
    data = wrong(60)
    data.flux[3, 4] = np.nan
    with pytest.raises(InputError, match="NaN"):
        fit_error_model(MODEL, data)
    with pytest.raises(InputError, match="give one star or more"):
        fit_error_amplitude(np.ones(2), np.ones((2, 3)), LABELS)
    with pytest.raises(InputError, match="above 0"):
        fit_error_amplitude(np.zeros(2), np.ones((2, 4)), LABELS)


def test_unit_vectors_are_those_of_a_factorisation():
    """Against QR, of a matrix as ill-conditioned as a continuum with velocities; too few rows."""
    x = np.linspace(-1, 1, 300)
    columns = np.polynomial.chebyshev.chebvander(x, 4) * np.exp(3 * x)[:, None]
    columns = np.hstack([columns, columns @ np.ones((5, 1)) + 1e-6 * np.sin(40 * x)[:, None]])
    expected, triangle = np.linalg.qr(columns)
    found = np.asarray(coherent_error._orthonormal(jnp.asarray(columns)))
    np.testing.assert_allclose(found, expected * np.sign(np.diag(triangle)), atol=1e-8)
    np.testing.assert_allclose(found.T @ found, np.eye(6), atol=1e-13)
    few = np.asarray(coherent_error._orthonormal(jnp.asarray(columns[:3])))
    np.testing.assert_allclose(few.T @ few, np.diag([1.0, 1, 1, 0, 0, 0]), atol=1e-13)
