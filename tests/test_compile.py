"""Compiled emulators: the parent's spectra, through the spectrograph, and the parent's fits."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
from fake_star import TRUTH, fake_star
from scipy.interpolate import make_interp_spline
from scipy.optimize import least_squares
from tiny import LABELS, tiny_emulator

import stellarfit as sf
from emulators.compiled_spectra import evaluate_spline, fit_spline
from emulators.emulator import Emulator
from emulators.errors import InputError
from emulators.precision import project
from stellarfit.compile import Recipe, compile_emulator
from stellarfit.compiled import CompiledEmulator
from stellarfit.flags import Flag
from stellarfit.instrument import Instrument, Velocities, log_shift

RECIPE = Recipe((48, 48), 24, 768, 256, 128, 1500, 0.01, 32)
LABELS_OF_A_STAR = jnp.array([TRUTH[name] for name in LABELS.names])


@pytest.fixture(scope="module")
def parent():
    return tiny_emulator(analytic=True)


@pytest.fixture(scope="module")
def compiled(parent):
    return compile_emulator(fake_star(), parent, recipe=RECIPE, cache=None, progress=False)


def pixels(compiled, labels, star, v_rad):
    encoding = compiled.encode(jnp.asarray(star.wavelength))
    return np.asarray(compiled.flux_at(labels, encoding, log_shift(v_rad)))


def normalized(star):
    """Without the continuum that `fake_star` gives it, from its usual start to its usual stop."""
    middle = (star.wavelength - 5151.8) / (5162.0 - 5151.8) * 2 - 1
    return star.flux / (1 + 0.08 * middle - 0.03 * middle**2)


def inside(compiled, star):
    low, high = compiled.wavelength_range
    return (star.wavelength > low + 0.2) & (star.wavelength < high - 0.2)


def test_a_spline_is_scipys():
    x = np.arange(120.0)
    y = np.exp(-0.5 * ((x - 60.2) / 2.5) ** 2)
    place = np.linspace(30, 90, 500)
    found = evaluate_spline(fit_spline(jnp.asarray(y)), jnp.asarray(place))
    np.testing.assert_allclose(found, make_interp_spline(x, y)(place), atol=3e-7)
    beyond = evaluate_spline(jnp.asarray(y), jnp.asarray([-1.0, 0.5, 1.0, 117.9, 118.1]))
    assert np.isnan(np.asarray(beyond)).tolist() == [True, True, False, False, True]


def test_slopes_of_a_product_are_those_of_a_matrix():
    """By the input, and by the weights, for which training asks; in TF32 where there is one."""
    shapes = jnp.zeros((3, 5), jnp.float32), jnp.zeros((5, 7), jnp.float32)
    products = str(jax.make_jaxpr(lambda *x: jax.jvp(project, x, x))(*shapes)).count
    assert products("Precision.HIGHEST, Precision.HIGHEST") == 1
    assert products("Precision.DEFAULT, Precision.DEFAULT") == 2
    rng = np.random.default_rng(0)
    x, weight, seed = (rng.normal(size=shape) for shape in ((3, 5), (5, 7), (3, 7)))
    x, weight = x.astype(np.float32), weight.astype(np.float32)
    _, pull = jax.vjp(project, jnp.asarray(x), jnp.asarray(weight))
    by_x, by_weight = pull(jnp.asarray(seed, jnp.float32))
    np.testing.assert_allclose(by_x, seed @ weight.T, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(by_weight, x.T @ seed, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("v_rad", [-31.7, 0.0, 23.4])
def test_anchored_it_is_what_a_spectrograph_sees_of_the_parent(compiled, v_rad):
    star = fake_star({"v_sini": 0.01, "v_rad": v_rad}, noise_free=True, level=1.0)
    seen = normalized(star)
    # Whatever the network errs by: here by a line of one per cent.
    bump = 0.01 * jnp.exp(-0.5 * ((compiled.network.wavelength - 5155.0) / 0.5) ** 2)
    mean = (compiled.network.mean + bump).astype(jnp.float32)
    wrong = eqx.tree_at(lambda c: c.network.mean, compiled, mean)
    anchored = pixels(
        wrong.anchored(wrong.anchor_at(LABELS_OF_A_STAR)), LABELS_OF_A_STAR, star, v_rad
    )
    where = inside(compiled, star)
    assert np.sqrt(np.mean((anchored - seen)[where] ** 2)) < 1e-4
    loose = pixels(wrong, LABELS_OF_A_STAR, star, v_rad)
    assert np.sqrt(np.mean((loose - seen)[where] ** 2)) > 2e-3


def test_anchored_its_derivatives_are_the_parents(compiled):
    """By finite differences of it, of a network that knows nothing of temperature as well."""
    weight = compiled.network.weights[0].at[0].set(0.0)
    wrong = eqx.tree_at(lambda c: c.network.weights[0], compiled, weight)
    there = wrong.anchored(wrong.anchor_at(LABELS_OF_A_STAR))
    low, high = compiled.wavelength_range
    place = compiled.encode(jnp.linspace(low, high, 400))
    scale = np.array(LABELS.upper) - np.array(LABELS.lower)

    def slopes(flux):
        steps = 0.01 * np.diag(scale)
        ends = [[flux(LABELS_OF_A_STAR + sign * step) for step in steps] for sign in (1, -1)]
        return (np.array(ends[0]) - np.array(ends[1])) / 0.02

    exact = slopes(lambda labels: 1 - evaluate_spline(compiled.exact(labels), place))
    found = np.asarray(jax.jacfwd(lambda x: there.flux_at(x, place))(LABELS_OF_A_STAR)).T
    alone = np.asarray(jax.jacfwd(lambda x: wrong.flux_at(x, place))(LABELS_OF_A_STAR)).T
    parts = zip(exact, found * scale[:, None], alone * scale[:, None], strict=True)
    off = np.array([[np.std(one - of) / np.std(of) for one in others] for of, *others in parts])
    assert off[:, 0].max() < 0.01
    assert off[0, 1] > 0.5 and np.median(off[:, 1]) > 0.01


def test_the_error_told_is_that_of_stars_it_did_not_see(compiled):
    labels = LABELS.sobol(64, seed=99)
    exact = np.stack([np.asarray(compiled.exact(jnp.asarray(one))) for one in labels])
    error = np.asarray(compiled.network.coefficients(jnp.asarray(labels))) - exact
    found = np.sqrt(np.mean(error**2))
    told = np.sqrt(np.mean(np.asarray(compiled.rms) ** 2))
    assert 0.7 * found < told < 1.4 * found
    assert told < 0.02


def test_the_displacement_told_is_that_of_a_fit(parent, compiled):
    """A least-squares fit of the network, not anchored, to the parent's spectra."""
    star = fake_star({"v_sini": 0.01, "v_rad": 0.0}, noise_free=True, level=1.0)
    low, high = compiled.wavelength_range
    wavelength = star.wavelength[(star.wavelength > low) & (star.wavelength < high)]
    places = compiled.encode(jnp.asarray(wavelength))
    x = np.linspace(-1, 1, len(wavelength))
    basis = np.polynomial.chebyshev.chebvander(x, 2)
    labels = LABELS.sobol(RECIPE.spectra + RECIPE.unseen, seed=0)[RECIPE.spectra :]
    flux = eqx.filter_jit(lambda values: compiled.network.flux_at(values[:4], places, values[4]))
    checked = 0
    for one, told in zip(labels, np.asarray(compiled.shift), strict=True):
        inside_box = np.all(np.abs(np.asarray(LABELS.to_unit(one)) - 0.5) < 0.4)
        if checked == 4 or not inside_box or np.abs(told).max() < 0.1:
            continue
        exact = 1 - np.asarray(evaluate_spline(compiled.exact(jnp.asarray(one)), places))
        width = np.array(LABELS.upper) - np.array(LABELS.lower)
        scale = np.append(width, compiled.step)

        def off(x, one=one, exact=exact, scale=scale):
            free = x - 1
            values = jnp.asarray(np.append(one, 0.0) + free[:5] * scale)
            residual = 100 * (np.asarray(flux(values)) * (1 + basis @ free[5:]) - exact)
            # The box of a label counts as a normal prior of its variance.
            return np.append(residual, free[:4] * np.sqrt(12))

        # The network is in single precision: a step of a thousandth of the box, from 1.
        best = least_squares(off, np.ones(8), diff_step=1e-3)
        sigma = np.sqrt(np.diagonal(np.linalg.inv(best.jac.T @ best.jac)))
        found = (best.x[:4] - 1) / sigma[:4]
        np.testing.assert_allclose(found, told, atol=0.05 + 0.1 * np.abs(told).max())
        checked += 1
    assert checked == 4


def test_labels_may_be_held(parent, tmp_path):
    star = fake_star({"v_sini": 0.01}, start=5152.6, stop=5161.2)
    held = {"logg": 3.0}
    compiled = compile_emulator(
        star, parent, fixed=held, recipe=RECIPE, cache=tmp_path, progress=False
    )
    assert compiled.held == (("logg", 3.0),) and compiled.shift.shape[1] == 3
    fit = sf.fit(star, compiled, fixed={"v_sini": 0.0})
    assert fit.fixed["logg"] == 3.0 and "logg" not in fit.names
    other = sf.fit(star, parent, fixed={"v_sini": 0.0} | held, mask=~fit.spectrum.good)
    names = ["teff", "fe_h", "mg_fe"]
    where, there = ([f.names.index(name) for name in names] for f in (fit, other))
    shift = (fit.values[where] - other.values[there]) / other.error[there]
    assert np.abs(shift).max() < 0.1
    np.testing.assert_allclose(fit.error[where], other.error[there], rtol=0.1)
    # Its derivative by a label that is held is known: the error model asks for it.
    place = compiled.encode(jnp.asarray(star.wavelength[40:-40]))

    def slope(coefficients):
        step = jnp.zeros(4).at[1].set(0.1)
        ends = [coefficients(LABELS_OF_A_STAR + sign * step) for sign in (1, -1)]
        return np.asarray(evaluate_spline(ends[0] - ends[1], place))

    exact, found = slope(compiled.exact), slope(compiled.network.coefficients)
    assert np.std(found - exact) < 0.15 * np.std(exact)
    wrong: list[dict[str, Any]] = [
        {"fixed": {"logg": 2.0}}, {"priors": {"logg": dist.Uniform(2.0, 4.0)}}
    ]  # fmt: skip
    for options in wrong:
        with pytest.raises(InputError, match="compiled with logg held at 3"):
            sf.fit(star, compiled, **options)
    again = compile_emulator(
        star, parent, fixed=held, recipe=RECIPE, cache=tmp_path, progress=False
    )
    assert again.fingerprint == compiled.fingerprint and again.held == compiled.held
    np.testing.assert_array_equal(again.shift, compiled.shift)
    with pytest.raises(InputError, match="logg = 9 is outside"):
        compile_emulator(star, parent, fixed={"logg": 9.0}, recipe=RECIPE, cache=None)
    with pytest.raises(InputError, match="unknown label 'v_sini'"):
        compile_emulator(star, parent, fixed={"v_sini": 0.0}, recipe=RECIPE, cache=None)


def test_broadening_is_that_of_the_parent(parent, compiled):
    star = fake_star({"v_rad": 0.0}, noise_free=True, level=1.0)
    seen = normalized(star)
    instrument = Instrument.interpolating(
        star.wavelength, step=compiled.step, velocities=Velocities(0.0, 0.0, 20.0, 0.0)
    )
    usable = (np.asarray(instrument.wavelength) > compiled.wavelength_range[0]) & (
        np.asarray(instrument.wavelength) < compiled.wavelength_range[1]
    )
    assert usable.mean() > 0.8
    anchored = compiled.anchored(compiled.anchor_at(LABELS_OF_A_STAR))
    fine = np.asarray(anchored.flux_at(LABELS_OF_A_STAR, anchored.encode(instrument.wavelength)))
    depth = jnp.asarray(np.where(usable, 1 - fine, 0.0))
    found = 1 - np.asarray(instrument(depth, jnp.asarray(TRUTH["v_sini"]), jnp.asarray(0.0)))
    where = inside(compiled, star) & (star.wavelength > 5153) & (star.wavelength < 5160.5)
    assert np.sqrt(np.mean((found - seen)[where] ** 2)) < 1e-4


@pytest.mark.parametrize(
    ("v_sini", "options"),
    [(12.0, {"priors": {"v_sini": dist.Uniform(0.0, 30.0)}}), (0.01, {"fixed": {"v_sini": 0.0}})],
    ids=["broadened", "still"],
)
def test_a_fit_is_the_parents(parent, compiled, v_sini, options):
    star = fake_star({"v_sini": v_sini}, start=5152.6, stop=5161.2)
    # The compiled emulator reaches a little less far: both shall see the same pixels.
    far = (star.wavelength < 5154.0) | (star.wavelength > 5160.0)
    one, other = (sf.fit(star, e, mask=far, **options) for e in (parent, compiled))
    assert (one.names, one.dof) == (other.names, other.dof)
    labels = slice(0, len(LABELS))
    shift = (other.values - one.values) / one.error
    assert np.abs(shift[labels]).max() < 0.1
    np.testing.assert_allclose(other.error[labels], one.error[labels], rtol=0.1)
    np.testing.assert_allclose(other.error_stat[labels], one.error_stat[labels], rtol=0.1)
    assert other.chi2 == pytest.approx(one.chi2, rel=0.01)
    assert other.flags == one.flags


def test_a_file_gives_the_same_back(parent, compiled, tmp_path):
    path = tmp_path / "fast.h5"
    compiled.save(path)
    back = CompiledEmulator.load(path, parent)
    star = fake_star()
    assert back.fingerprint == compiled.fingerprint
    np.testing.assert_array_equal(
        pixels(back, LABELS_OF_A_STAR, star, 3.0), pixels(compiled, LABELS_OF_A_STAR, star, 3.0)
    )
    with pytest.raises(InputError, match="made from the emulator tiny-0, not from this tiny-1"):
        CompiledEmulator.load(path, tiny_emulator(seed=1))
    with pytest.raises(InputError, match="tiny-0, which is not shipped"):
        CompiledEmulator.load(path)
    path.write_bytes(path.read_bytes()[:-500])
    with pytest.raises(InputError, match="truncated|sha256"):
        CompiledEmulator.load(path, parent)


@pytest.mark.parametrize(
    ("star", "message"),
    [
        ({"resolution": 40_000.0}, r"resolution: 40000 .* compiled for 47000"),
        ({"width": 0.04}, r"width of a pixel: 0\.04 .* compiled for 0\.03"),
    ],
    ids=["resolution", "width"],
)
def test_another_spectrograph_is_refused(compiled, star, message):
    with pytest.raises(InputError, match=message):
        sf.fit(fake_star(**star), compiled)


def test_what_cannot_be_compiled_says_so(parent):
    star = fake_star()
    arms = sf.Arms.gather([star, star])
    with pytest.raises(InputError, match="2 arms"):
        compile_emulator(arms, parent, recipe=RECIPE, cache=None)
    blind = sf.Spectrum(star.wavelength, star.flux, star.ivar)
    with pytest.raises(InputError, match="resolution: the spectrum does not say"):
        compile_emulator(blind, parent, recipe=RECIPE, cache=None)
    wild = RECIPE._replace(learning_rate=1e30, spectra=128, features=8)
    with pytest.raises(InputError, match="lower learning_rate"):
        compile_emulator(star, parent, recipe=wild, cache=None, progress=False)


def test_what_was_compiled_before_is_found_again(parent, compiled, tmp_path, monkeypatch):
    star = fake_star()
    first = compile_emulator(star, parent, recipe=RECIPE, cache=tmp_path, progress=False)
    assert first.fingerprint == compiled.fingerprint
    assert len(list(tmp_path.iterdir())) == 1
    monkeypatch.setattr("stellarfit.compile._train", None)
    again = compile_emulator(star, parent, recipe=RECIPE, cache=tmp_path, progress=False)
    assert again.fingerprint == first.fingerprint
    with pytest.raises(TypeError):
        compile_emulator(star, parent, recipe=RECIPE, seed=1, cache=tmp_path, progress=False)


def test_load_emulator_knows_a_compiled_one(tmp_path):
    parent = sf.load_emulator("fgk-mgb-s")
    wavelength = np.arange(5120.0, 5122.0, 0.1)
    star = sf.Spectrum(wavelength, np.ones(20), snr=100, resolution=20_000.0)
    recipe = Recipe((4,), 2, 8, 8, 4, 250, 0.01, 2)
    fast = compile_emulator(star, parent, recipe=recipe, cache=None, progress=False)
    fast.save(tmp_path / "fast.h5")
    found = sf.load_emulator(tmp_path / "fast.h5")
    assert isinstance(found, CompiledEmulator)
    assert found.fingerprint == fast.fingerprint and found.name == "fgk-mgb-s"
    assert sf.load_emulator(found) is found and sf.load_emulator(parent) is parent
    nothing: Any = 5
    with pytest.raises(InputError, match="emulator: got a int; give an emulator, the name"):
        sf.load_emulator(nothing)


def test_a_survey_takes_it(compiled, tmp_path):
    stars = [fake_star({"v_sini": 0.01}, seed=seed, start=5152.6, stop=5161.2) for seed in (1, 2)]
    sf.write_spectra(tmp_path / "two.h5", stars)
    options = {"fixed": {"v_sini": 0.0}, "progress": False}
    catalog = sf.fit_survey(
        tmp_path / "two.h5", compiled, out=tmp_path / "catalog.fits", resolution=47_000, **options
    )
    assert catalog["reason"].tolist() == ["", ""]
    assert catalog.meta["EMUHASH"] == compiled.fingerprint
    assert (np.abs(catalog["teff"] - TRUTH["teff"]) < 4 * catalog["e_teff"]).all()


def test_the_cache_tells_emulators_of_other_ranges_apart(parent, tmp_path):
    narrow = Emulator(
        parent.model, (5150.5, 5169.0), parent.step, parent.error_model, parent.record, parent.name
    )
    recipe = RECIPE._replace(steps=250, spectra=128, features=8, unseen=16)
    for emulator in (parent, narrow):
        found = compile_emulator(
            fake_star(), emulator, recipe=recipe, cache=tmp_path, progress=False
        )
        low, high = found.wavelength_range
        assert emulator.wavelength_range[0] < low and high < emulator.wavelength_range[1]
    assert len(list(tmp_path.iterdir())) == 2
    found.save(tmp_path / "narrow.h5")
    with pytest.raises(InputError, match="not from this tiny-0"):
        CompiledEmulator.load(tmp_path / "narrow.h5", parent)


def test_wide_spectra_with_broadening_stay_inside_the_spline(compiled):
    star = fake_star(start=5148.0, stop=5172.0)
    fit = sf.fit(star, compiled, fixed={"v_rad": TRUTH["v_rad"]})
    kept = fit.setup.keep
    assert len(kept) > 300 and np.isfinite(fit.chi2) and np.isfinite(fit.values).all()
    assert np.isfinite(fit.model_flux[kept]).all() and not fit.flags & int(Flag.NOT_CONVERGED)
