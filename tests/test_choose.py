"""The size chooser against dense algebra, drawn residuals and known biases."""

import json
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from matplotlib.figure import Figure
from tiny import LABELS, STEP, AnalyticModel, tiny_emulator, tiny_error_model, tiny_grid

from emulators.emulator import Emulator
from emulators.errors import InputError
from emulators.physics.formation import Synthesis
from emulators.physics.synthesizer import Synthesizer
from scaling.choose import THRESHOLD, choose_emulator
from scaling.choose_figure import draw_choice
from scaling.label_bias import (
    Covariance,
    Design,
    make_design,
    make_pixels,
    make_weights,
    observed_covariance,
    response,
    scatter,
)
from scaling.local_error import by_comparison, by_synthesis, synthesize_stars
from stellarfit.cli import main

STAR = {"teff": 5500.0, "logg": 3.5, "fe_h": -0.5, "mg_fe": 0.1}
POINT = np.array(list(STAR.values()))
GRID = tiny_grid()
RANGE = (float(GRID[0]), float(GRID[-1]))
SETTING: dict[str, Any] = {
    "stars": [STAR],
    "snr": 100.0,
    "resolution": 30_000.0,
    "synthesize": False,
}


class WrongModel(AnalyticModel):
    """The closed form with an error that is a smooth wave over the pixels."""

    def __call__(self, labels, wavelength):
        wave = jnp.sin(2.0 * wavelength) * (1.0 + 0.3 * self.label_space.to_unit(labels)[0])
        return super().__call__(labels, wavelength) + 1e-3 * wave


def emulator(name="good", *, mse=1e-6):
    return Emulator(AnalyticModel(), RANGE, STEP, tiny_error_model(GRID, mse), name=name)


@pytest.fixture(scope="module")
def pixels():
    return make_pixels(RANGE, 30_000.0, 3.0, STEP)


@pytest.fixture(scope="module")
def design(pixels):
    return make_design(emulator(), POINT, pixels)


@pytest.fixture(scope="module")
def single():
    """The choice with one emulator, far better than the photon noise."""
    return choose_emulator([emulator(mse=1e-10)], sizes={"twice": 2e-10}, **SETTING)


def made_up(seed=0):
    """A design, what the fit knows and what the errors are, without any physics in them."""
    rng = np.random.default_rng(seed)
    columns = rng.normal(size=(60, 4)) * [1.0, 100.0, 0.01, 1.0]
    known = Covariance(rng.uniform(0.5, 2, 60) * 1e-4, 0.02 * rng.normal(size=(60, 5)))
    errors = Covariance(rng.uniform(0.5, 2, 60) * 1e-4, 0.02 * rng.normal(size=(60, 3)))
    return Design(("a", "b"), columns, np.array([1.0, 4.0, 0.0, 0.0])), known, errors


def dense(covariance):
    return np.diag(covariance.variance) + covariance.modes @ covariance.modes.T


def test_algebra_against_dense_matrices():
    design, known, errors = made_up()
    total = np.linalg.inv(np.eye(60) / 50.0**2 + dense(known))
    weights = make_weights(known, 50.0)
    np.testing.assert_allclose(weights.apply(design.columns), total @ design.columns, rtol=1e-8)
    inverse = np.linalg.inv(design.columns.T @ total @ design.columns + np.diag(design.precision))
    answer, covariance = response(design, weights)
    np.testing.assert_allclose(covariance, inverse, rtol=1e-8)
    np.testing.assert_allclose(answer, inverse @ design.columns.T @ total, rtol=1e-7)
    expected = np.sqrt(np.diagonal(answer @ dense(errors) @ answer.T))
    np.testing.assert_allclose(scatter(answer, errors), expected)


def test_scatter_is_that_of_least_squares_fits_to_drawn_residuals():
    design, known, errors = made_up(1)
    rng = np.random.default_rng(2)
    draws = 4000
    residuals = np.sqrt(errors.variance) * rng.normal(size=(draws, 60))
    residuals += rng.normal(size=(draws, 3)) @ errors.modes.T
    # Whitened, and with the prior as further data, it is an ordinary least-squares problem.
    whiten = np.linalg.inv(np.linalg.cholesky(np.eye(60) / 50.0**2 + dense(known)))
    rows = np.concatenate([whiten @ design.columns, np.diag(np.sqrt(design.precision))])
    data = np.concatenate([whiten @ residuals.T, np.zeros((4, draws))])
    found = np.linalg.lstsq(rows, data, rcond=None)[0]
    predicted = scatter(response(design, make_weights(known, 50.0))[0], errors)
    np.testing.assert_allclose(found.std(axis=1), predicted, rtol=0.05)


def test_scaling_every_covariance_scales_the_errors():
    design, known, errors = made_up(3)
    answer, covariance = response(design, make_weights(known, 50.0))
    quieter = design._replace(precision=design.precision / 4)
    same, larger = response(quieter, make_weights(known.scaled(4.0), 25.0))
    np.testing.assert_allclose(same, answer, rtol=1e-8)
    np.testing.assert_allclose(larger, 4 * covariance, rtol=1e-8)
    np.testing.assert_allclose(scatter(same, errors.scaled(4.0)), 2 * scatter(answer, errors))


def test_pixels_stay_inside_and_pad_nothing(pixels):
    assert np.allclose(pixels.spread.sum(axis=1), 1.0)
    np.testing.assert_allclose(np.diff(np.log(pixels.wavelength)), 1 / 90_000, rtol=1e-6)
    reach = (0.5 / 3 + 5 / 2.3548) / 30_000
    assert np.log(pixels.wavelength[0] / pixels.fine[0]) >= reach
    assert np.log(pixels.fine[-1] / pixels.wavelength[-1]) >= reach
    # A straight line keeps its shape up to both ends.
    ln = np.log(pixels.fine)
    np.testing.assert_allclose(
        pixels.spread @ (ln - ln[0]), np.log(pixels.wavelength) - ln[0], atol=1e-9
    )


def test_line_spread_has_the_width_of_the_resolution(pixels):
    ln, centre = np.log(pixels.fine), np.log(5160.0)
    narrow = 1.2e-5
    seen = pixels.spread @ np.exp(-0.5 * ((ln - centre) / narrow) ** 2)
    at = np.log(pixels.wavelength) - centre
    width = np.sqrt(np.sum(seen * at**2) / np.sum(seen) - (np.sum(seen * at) / np.sum(seen)) ** 2)
    pixel = 1 / 90_000
    sigma = 1 / (np.sqrt(8 * np.log(2)) * 30_000)
    expected = np.sqrt(narrow**2 + sigma**2 + pixel**2 / 12)
    np.testing.assert_allclose(width, expected, rtol=2e-3)


def test_patterns_are_spread_like_the_spectrum_and_are_the_variance(pixels):
    model = tiny_error_model(GRID)
    seen = observed_covariance(emulator(mse=2e-5), POINT, pixels)
    curves = [np.interp(np.log(pixels.fine), np.log(GRID), one) for one in model.patterns]
    spread = np.array([pixels.spread @ curve for curve in curves])
    np.testing.assert_allclose(seen.variance, 2e-5 * np.mean(spread**2, axis=0), rtol=1e-6)
    # Of labels, a shift and a broadening; all far above what white noise has in one direction.
    white = seen.modes / np.sqrt(seen.variance)[:, None]
    energy = np.linalg.svd(white, compute_uv=False) ** 2
    assert white.shape == (len(pixels.wavelength), 12)
    assert np.all(energy[:6] > 2) and np.all(energy[6:] < 1e-9)


def test_derivatives_against_differences(pixels, design):
    def flux(labels, v_rad=0.0):
        rest = jnp.asarray(pixels.fine / (1 + v_rad / 299_792.458))
        return pixels.spread @ np.asarray(AnalyticModel()(jnp.asarray(labels), rest))

    for column, step in enumerate((1.0, 1e-3, 1e-3, 1e-3)):
        move = step * np.eye(4)[column]
        slope = (flux(POINT + move) - flux(POINT - move)) / (2 * step)
        np.testing.assert_allclose(design.columns[:, column], slope, atol=1e-5 * abs(slope).max())
    slope = (flux(POINT, 0.01) - flux(POINT, -0.01)) / 0.02
    np.testing.assert_allclose(design.columns[:, 4], slope, atol=1e-5 * abs(slope).max())
    assert design.columns.shape[1] == 4 + 1 + 3  # labels, velocity, continuum of degree 2
    np.testing.assert_allclose(design.columns[:, 5], flux(POINT))


def test_held_parameters_are_no_columns(pixels, design):
    fewer = make_design(emulator(), POINT, pixels, held=("logg", "v_rad"), continuum_degree=0)
    assert fewer.names == ("teff", "fe_h", "mg_fe")
    np.testing.assert_allclose(fewer.columns, design.columns[:, [0, 2, 3, 5]])
    weights = make_weights(observed_covariance(emulator(), POINT, pixels), 100.0)
    free, held = (np.diagonal(response(one, weights)[1])[0] for one in (design, fewer))
    assert held < free


def test_small_errors_scale_with_the_mse_and_not_with_the_noise(single):
    twice, once = single.systematic  # the larger error first
    np.testing.assert_allclose(twice**2, 2 * once**2, rtol=1e-3)
    # A hopeless emulator is one, however little its fits then trust the pixels.
    worst = choose_emulator([emulator(mse=1e-10)], sizes={"worst": 1e4}, **SETTING)
    assert worst.chosen == "good" and np.min(worst.ratio[0]) > 100
    louder = choose_emulator([emulator(mse=1e-10)], **{**SETTING, "snr": 50.0})
    np.testing.assert_allclose(louder.statistical, 2 * single.statistical, rtol=0.02)
    np.testing.assert_allclose(louder.systematic[0], once, rtol=0.02)


def test_chooses_the_smallest_that_is_good_enough(single):
    needed = single.needed_mse
    sizes = {"poor": 10 * needed, "just": 0.98 * needed, "better": 0.1 * needed}
    choice = choose_emulator([emulator(mse=1e-10)], sizes=sizes, **SETTING)
    assert [size.name for size in choice.sizes] == ["poor", "just", "better", "good"]
    assert choice.chosen == "just" and choice.needed_mse == pytest.approx(needed, rel=1e-6)
    assert np.max(choice.ratio[1]) == pytest.approx(THRESHOLD, rel=0.02)
    poor = choose_emulator([emulator(mse=10 * needed)], **SETTING)
    assert poor.chosen is None and poor.needed_mse == pytest.approx(needed, rel=1e-2)


def test_table_says_everything(single):
    rows = single.table()
    assert [row["label"] for row in rows] == list(LABELS.names) and rows[0]["unit"] == "K"
    assert rows[2]["systematic"]["good"] == single.systematic[1, 0, 2]
    found = json.loads(json.dumps(single.to_dict()))
    assert found["rows"] == rows and found["stars"] == [STAR] and found["threshold"] == THRESHOLD
    named = choose_emulator(
        [emulator(mse=1e-10)], labels=["mg_fe", "teff"], **{**SETTING, "stars": [POINT]}
    )
    np.testing.assert_allclose(named.statistical, single.statistical[:, [3, 0]])


def test_a_better_emulator_shows_the_errors_near_the_star(pixels, design):
    """Half of the covariance is that of the true errors, which are a smooth wave."""
    wrong = Emulator(WrongModel(), RANGE, STEP, tiny_error_model(GRID, 1e-5), name="bad")
    pair = [wrong, emulator("best", mse=1e-7)]
    models = [observed_covariance(one, POINT, pixels) for one in pair]
    bad, best = by_comparison(pair, models, POINT, pixels)
    np.testing.assert_allclose(bad.variance, 0.5 * models[0].variance)
    unit = LABELS.to_unit(POINT)[0]
    wave = pixels.spread @ (1e-3 * (1 + 0.3 * float(unit)) * np.sin(2.0 * pixels.fine))
    waves = bad.modes[:, models[0].modes.shape[1] :]
    assert np.sum(waves**2) == pytest.approx(0.5 * np.sum(wave**2), rel=0.03)
    answer = response(design, make_weights(models[0], 100.0))[0]
    from_waves = Covariance(0 * bad.variance, waves)
    np.testing.assert_allclose(scatter(answer, from_waves), abs(answer @ wave) / 2**0.5, rtol=0.03)
    # The best one is taken to err like the other, by as much less as their mean squares say.
    np.testing.assert_allclose(best.modes[:, models[1].modes.shape[1] :], 0.1 * waves, rtol=1e-6)


class ClosedForm(Synthesizer):
    """Spectra in closed form, in the place of the synthesiser."""

    wavelength: Any
    label_space: Any

    def __init__(self, wavelength):
        self.wavelength, self.label_space = jnp.asarray(wavelength), LABELS

    def __call__(self, labels, shift=0.0):
        flux = AnalyticModel()(labels, self.wavelength * jnp.exp(shift))
        return Synthesis(flux, jnp.ones_like(flux))

    def batch(self, labels, shift):
        return jax.vmap(self)(labels, shift)

    def provenance(self):
        return {"synthesizer": "closed form", "vmic": None, "sha256_lines": "none"}


def test_synthesis_shows_the_errors_near_the_star(pixels, monkeypatch):
    """The true errors are a smooth wave, whatever the error model says of them."""
    record = {"grid": {"synthesizer": ClosedForm(GRID).provenance()}}
    wrong = Emulator(WrongModel(), RANGE, STEP, tiny_error_model(GRID, 1e-9), record, "bad")
    monkeypatch.setattr("scaling.choose.LTESynthesizer.build", lambda fine, space: ClosedForm(fine))
    setting: dict[str, Any] = SETTING | {"synthesize": True}
    choice = choose_emulator([wrong], sizes={"quarter": 2.5e-10}, **setting)
    # Labels move by what least squares makes of the wave in stars like this one.
    rng = np.random.default_rng(3)
    box = np.array(LABELS.upper) - np.array(LABELS.lower)
    weights = make_weights(observed_covariance(wrong, POINT, pixels), 100.0)
    moved = []
    for star in POINT + 0.1 * box * rng.uniform(-1, 1, (40, 4)):
        size = 1e-3 * (1 + 0.3 * float(LABELS.to_unit(star)[0]))
        wave = pixels.spread @ (size * np.sin(2.0 * pixels.fine))
        moved.append(response(make_design(wrong, star, pixels), weights)[0][:4] @ wave)
    expected = np.sqrt(np.mean(np.square(moved), axis=0))
    np.testing.assert_allclose(choice.systematic[0, 0], expected, rtol=0.25)
    np.testing.assert_allclose(choice.systematic[1], choice.systematic[0] / 2, rtol=1e-2)
    assert choice.settings["errors"] == "synthesis"
    # Of spectra that others made it would measure how codes differ.
    record["grid"]["synthesizer"]["sha256_lines"] = "others"
    other = Emulator(WrongModel(), RANGE, STEP, tiny_error_model(GRID, 1e-9), record, "bad")
    for one, told in ((other, "sha256_lines is others"), (emulator(), "synthesizer is None")):
        with pytest.raises(InputError, match=f"learned from spectra whose {told}, .*=False"):
            choose_emulator([one], **setting)


def test_errors_of_a_synthesised_star_are_the_wave(pixels):
    wrong = Emulator(WrongModel(), RANGE, STEP, tiny_error_model(GRID, 1e-9), name="bad")
    stars = np.tile(POINT, (8, 1))
    truth = synthesize_stars(ClosedForm(pixels.fine), stars)
    first, *_ = by_synthesis(
        wrong, stars, truth, pixels, partial(make_design, wrong, pixels=pixels)
    )
    wave = 1e-3 * (1 + 0.3 * float(LABELS.to_unit(POINT)[0])) * np.sin(2.0 * pixels.fine)
    np.testing.assert_allclose(first.errors.modes[:, 0], pixels.spread @ wave, atol=1e-6)
    np.testing.assert_array_equal(first.design.columns, make_design(wrong, POINT, pixels).columns)


def test_a_star_without_a_spectrum_is_refused(pixels):
    stars = np.tile(POINT, (8, 1))
    stars[3, 0] = np.nan  # what lies outside of the atmospheres has no spectrum either
    with pytest.raises(InputError, match="no spectrum of teff=nan, logg=3.5, .*=False"):
        synthesize_stars(ClosedForm(pixels.fine), stars)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"synthesize": True}, "cannot be synthesised .*vmic.*; give synthesize=False"),
        ({"labels": ["teff", "ba_fe"]}, "unknown label 'ba_fe'"),
        ({"labels": ["teff"], "held": ["teff"]}, "both wanted and held"),
        ({"held": ["v_sini"]}, "unknown label 'v_sini'"),
        ({"held": list(LABELS.names)}, "no label is wanted"),
        ({"stars": [STAR | {"teff": 9000.0}]}, "teff = 9000 is outside 4000 .. 7000 K"),
        ({"stars": [{"teff": 5000.0}]}, "the star has no logg"),
        ({"stars": [{"teff": 5000.0, "colour": 1.0}]}, "unknown label 'colour'"),
        ({"stars": [POINT[:2]]}, "expected 4 values"),
        ({"stars": []}, "no star"),
        ({"snr": -10.0}, "snr is -10"),
        ({"resolution": float("nan")}, "resolution is nan"),
        ({"pixels_per_fwhm": 0.0}, "pixels_per_fwhm is 0"),
        ({"wavelength_range": (5000.0, 5160.0)}, "inside 5150.0 .. 5170.6"),
        ({"wavelength_range": (5160.0, 5155.0)}, "inside 5150.0 .. 5170.6"),
        ({"wavelength_range": (5160.0, 5160.5)}, "no ten pixels"),
        ({"sizes": {"big": 0.0}}, "mean squared error of big is 0"),
        ({"sizes": {"good": 1e-8}}, "two candidates are called 'good'"),
        ({"emulators": []}, "no emulator"),
        ({"emulators": [emulator(), emulator()]}, "two candidates are called 'good'"),
        ({"emulators": [Emulator(AnalyticModel(), RANGE, STEP)]}, "no error model"),
    ],
)
def test_refuses_bad_input(changes, message):
    with pytest.raises(InputError, match=message) as caught:
        choose_emulator(**({"emulators": [emulator()]} | SETTING | changes))
    assert "\n" not in str(caught.value)


def test_picture_has_a_line_a_label(single):
    figure = Figure(figsize=(6, 4))
    draw_choice(figure, single)
    (panel,) = figure.axes
    lines = panel.get_lines()
    assert len(lines) == len(LABELS) + 1
    np.testing.assert_allclose(np.asarray(lines[1].get_ydata()), single.ratio[:, 0, 1])
    assert set(np.asarray(lines[-1].get_ydata())) == {THRESHOLD}


def run(capsys, *arguments):
    status = main([str(argument) for argument in arguments])
    out, err = capsys.readouterr()
    return status, out, err


def test_command(tmp_path, capsys):
    path = tmp_path / "tiny.h5"
    tiny_emulator().save(path)
    star = "teff=5500,logg=3.5,fe_h=-0.5"
    options = (
        "--emulator", path, "--no-synthesize", "--snr", 50, "--resolution", 30000, "--star", star,
    )  # fmt: skip
    picture = tmp_path / "choice.png"
    status, text, _ = run(
        capsys, "choose", *options, "--labels", "teff, fe_h", "--hold", "mg_fe",
        "--range", 5152, 5168, "--plot", picture, "--json",
    )  # fmt: skip
    found = json.loads(text)
    assert status == 0 and picture.stat().st_size > 0
    assert [row["label"] for row in found["rows"]] == ["teff", "fe_h"]
    assert found["settings"]["held"] == ["mg_fe"] and found["settings"]["first_pixel"] > 5152
    status, text, _ = run(capsys, "choose", *options, "--size", "xl=1e-12", "--json")
    sizes = json.loads(text)["sizes"]
    assert status == 0 and sizes["xl"] == 1e-12 and list(sizes)[-1] == "xl"
    worst = ("choose", *options, "--snr", 1e5, "--size", "xl=1e-18")
    assert "xl would be good enough: train it to" in run(capsys, *worst)[1]
    status, text, _ = run(capsys, "choose", *options)
    assert status == 0 and "photon noise" in text
    assert "is good enough" in text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--snr", -1, "--resolution", 47000), "snr is -1"),
        (("--snr", 100), "resolution"),
        (("--snr", 100, "--resolution", 47000, "--star", "teff"), "label=value"),
        (("--snr", 100, "--resolution", 47000, "--size", "xl"), "--size xl: give name=mean"),
        (("--snr", 100, "--resolution", 47000, "--size", "=1e-7"), "--size =1e-7: give name"),
        (
            ("--snr", 100, "--resolution", 47000, "--size", "xl=1e-7", "--size", "xl=2e-7"),
            "--size xl=2e-7: there is one of that name",
        ),
        (("--snr", 100, "--resolution", 47000, "--emulator", "none"), "'none'"),
        (("--snr", 100, "--resolution", 47000, "--plot", "no/where.png"), "folder that exists"),
    ],
)
def test_command_refuses_bad_input(tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(tmp_path)
    status, out, err = run(capsys, "choose", *arguments)
    assert status == 2 and out == "" and message in err
    assert err.count("\n") == 1 and list(tmp_path.iterdir()) == []
