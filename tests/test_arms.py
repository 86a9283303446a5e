"""Several arms in one fit: each with its resolution, unit of flux, continuum and zero point."""

import json
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
from astropy.table import Table
from fake_star import TRUTH, C, fake_star
from numpyro.infer.util import log_density
from scipy.special import logsumexp
from tiny import LABELS, tiny_emulator
from unpadded import unpad, unpadded

from emulators.errors import InputError
from stellarfit.arms import Arms
from stellarfit.catalog import make_catalog
from stellarfit.cli import main
from stellarfit.emulator_error import amplitude_prior
from stellarfit.fitting import fit
from stellarfit.flags import BAD, Flag
from stellarfit.model import stellar_model
from stellarfit.priors import make_prior
from stellarfit.sampling import sample
from stellarfit.setup import Setup
from stellarfit.spectrum import Spectrum
from stellarfit.trial import fit_batch

ZERO = 4.0  # km/s
FREE = {"zero_point_red": dist.Normal(0.0, 5.0)}
WHOLE = TRUTH | {"zero_point_red": ZERO}


def combined(v_rad: float, zero_point: float) -> float:
    """The velocity that a wavelength scale in error by `zero_point` shows."""
    return C * ((1 + v_rad / C) * (1 + zero_point / C) - 1)


def red_arm(zero_point: float = ZERO, **changes: Any) -> Spectrum:
    """Coarser, in another unit of flux and on a wavelength scale of its own."""
    given: dict[str, Any] = {
        "start": 5156.0,
        "stop": 5162.0,
        "width": 0.05,
        "resolution": 28_000.0,
        "level": 3e-3,
    }
    velocity = {"v_rad": combined(TRUTH["v_rad"], zero_point)}
    return fake_star(velocity, seed=2, **(given | changes))


def two_arms(zero_point: float = ZERO) -> dict[str, Spectrum]:
    """The red arm overlaps the blue one by an Angstrom."""
    return {"blue": fake_star(stop=5157.0), "red": red_arm(zero_point)}


def far_arm() -> Spectrum:
    """Nothing that the emulator knows."""
    wavelength = np.linspace(6000, 6100, 500)
    return Spectrum(wavelength, np.ones(500), np.full(500, 1e4), resolution=47_000.0)


@pytest.fixture(scope="module")
def emulator():
    return tiny_emulator(analytic=True, pixels=400)


@pytest.fixture(scope="module")
def found(emulator):
    return fit(two_arms(), emulator, continuum_degree=2, priors=FREE, robust=False)


@pytest.fixture(scope="module")
def single(emulator):
    return fit(fake_star(), emulator, continuum_degree=2)


def values_of(found, truth=WHOLE):
    return jnp.asarray([truth[name] for name in found.names])


def test_star_and_zero_point_are_recovered(found):
    assert found.names == (*LABELS.names, "v_rad", "v_sini", "zero_point_red")
    assert np.all(np.abs((found.values - values_of(found)) / found.error) < 3)
    assert found.flags & BAD == 0
    # Well known: a shift between the arms is not taken for anything else.
    assert found.error[-1] < 0.3 and found.fixed == {"v_mac": 0.0}
    assert 0.6 < found.chi2 / found.dof < 1.2
    assert found.dof == found.spectrum.good.sum() - len(found.names) - 2 * 3


def test_model_of_each_arm_is_in_its_own_unit(found):
    model = found.spectrum.split(found.model_flux)
    truth = {
        "blue": fake_star(stop=5157.0, noise_free=True).flux,
        "red": red_arm(noise_free=True).flux,
    }
    for name, level in (("blue", 800.0), ("red", 3e-3)):
        good = np.isfinite(model[name])
        assert good.sum() > 50
        np.testing.assert_allclose(model[name][good], truth[name][good], atol=0.02 * level)


def dense(problem, covariance, values):
    """Log normal density of the data, the continuum of a problem marginalised, by one matrix."""
    columns = np.asarray(problem.star(values))[:, None] * np.asarray(problem.continuum.basis)
    residual = np.asarray(problem.flux) - columns @ np.asarray(problem.continuum.mean)
    covariance = covariance + (columns * np.asarray(problem.continuum.variance)) @ columns.T
    quadratic = residual @ np.linalg.solve(covariance, residual)
    log_det = np.linalg.slogdet(covariance)[1]
    return -0.5 * (quadratic + log_det + len(residual) * np.log(2 * np.pi))


def build(spectrum, emulator, fixed, noise="none"):
    zero_points = spectrum.zero_points if isinstance(spectrum, Arms) else ()
    prior, held = make_prior(LABELS, fixed, None, zero_points)
    amplitude = amplitude_prior(emulator, noise)
    return Setup.build(spectrum, emulator, prior, held, continuum_degree=2, amplitude=amplitude)


def test_without_emulator_error_the_arms_are_independent(emulator):
    """Log likelihood of both against the sum of two dense densities, each of one arm alone."""
    arms = Arms.gather(two_arms())
    both = build(arms, emulator, {"v_rad": TRUTH["v_rad"], "zero_point_red": ZERO})
    blue = build(arms.spectra["blue"], emulator, {"v_rad": TRUTH["v_rad"]})
    red = build(arms.spectra["red"], emulator, {"v_rad": combined(TRUTH["v_rad"], ZERO)})
    values = jnp.asarray([TRUTH[name] for name in both.prior.names])
    apart = [
        dense(unpadded(one).photons, np.diag(1 / one.spectrum.ivar[one.keep]), values)
        for one in (blue, red)
    ]
    assert float(both.photons.log_likelihood(values)) == pytest.approx(sum(apart), rel=1e-9)


def test_with_emulator_error_it_is_one_dense_matrix(found):
    """The emulator errs in the same labels in both arms, so the blocks between them count."""
    problem, values = unpad(found.problem, found.setup), values_of(found)
    number = int(found.spectrum.spectra["blue"].good.sum())
    weights = np.exp(np.asarray(problem.noise.log_weight))
    whole, blocks = [], []
    for node in range(len(weights)):
        noise = jax.tree.map(
            lambda leaf, node=node: np.asarray(leaf[node]), problem.noise.components
        )
        inverse = np.diag(noise.inverse_variance) - noise.factor @ noise.factor.T
        covariance = np.linalg.inv(inverse)
        whole.append(dense(problem, covariance, values))
        covariance[:number, number:] = 0
        covariance[number:, :number] = 0
        blocks.append(dense(problem, covariance, values))
    likelihood = float(found.problem.log_likelihood(values))
    assert likelihood == pytest.approx(logsumexp(whole, b=weights), rel=1e-7)
    assert abs(likelihood - logsumexp(blocks, b=weights)) > 1e-3


def test_a_spectrum_cut_in_two_gives_the_same_star(emulator, single):
    star = fake_star()
    pieces = []
    for inside in (star.wavelength < 5157.0, star.wavelength >= 5157.0):
        row = star.wavelength[inside], star.flux[inside], star.ivar[inside]
        pieces.append(Spectrum(*row, resolution=47_000.0))
    cut = fit(pieces, emulator, continuum_degree=2)
    assert cut.names == single.names and cut.fixed == {"v_mac": 0.0, "zero_point_2": 0.0}
    assert np.all(np.abs(cut.values - single.values) < 0.5 * single.error)
    # A second continuum over five Angstrom each costs a little.
    ratio = cut.error / single.error
    assert np.all((ratio > 0.99) & (ratio < 1.4))


def test_missing_arms_are_flagged_and_change_nothing(emulator, single):
    arms = {"blue": fake_star(), "far": far_arm(), "dead": red_arm()}
    dead = {"dead": np.ones(len(arms["dead"]))}
    result = fit(arms, emulator, continuum_degree=2, mask=dead)
    assert result.flags & Flag.ARM_UNUSED and not single.flags & Flag.ARM_UNUSED
    assert result.spectrum.unused == ("far", "dead")
    np.testing.assert_allclose(result.values, single.values, atol=1e-6 * single.error.min())
    np.testing.assert_allclose(result.error, single.error, rtol=1e-6)
    assert result.to_dict()["arms"]["far"]["masked_pixels"] == {"outside": 500}
    assert {panel.get_ylabel() for panel in result.plot().axes[::2]} == {"flux, blue"}


def test_first_guess_finds_a_wide_zero_point(emulator):
    arms = Arms.gather(two_arms(zero_point=-21.0))
    prior, held = make_prior(
        LABELS, None, {"zero_point_red": dist.Uniform(-40.0, 40.0)}, arms.zero_points
    )
    start = dict(zip(prior.names, Setup.build(arms, emulator, prior, held).starts[0], strict=True))
    assert start["zero_point_red"] == pytest.approx(-21.0, abs=4.0)
    assert start["v_rad"] == pytest.approx(TRUTH["v_rad"], abs=4.0)


def test_first_guess_takes_a_zero_point_tied_to_the_velocity(emulator):
    """The velocity of the prior is far off: what ties the two leaves room for both."""
    arms = Arms.gather(two_arms(zero_point=-21.0))
    joint = dist.MultivariateNormal(np.zeros(2), np.array([[900.0, -800.0], [-800.0, 900.0]]))
    prior, held = make_prior(LABELS, None, {("v_rad", "zero_point_red"): joint}, arms.zero_points)
    start = dict(zip(prior.names, Setup.build(arms, emulator, prior, held).starts[0], strict=True))
    assert start["zero_point_red"] == pytest.approx(-21.0, abs=4.0)
    assert start["v_rad"] == pytest.approx(TRUTH["v_rad"], abs=4.0)


def test_a_tight_joint_prior_of_velocity_and_zero_point_is_followed(emulator, found):
    """Their sum is what the red arm tells; their difference is pulled 2 km/s off."""
    sign = np.array([1.0, -1.0])
    covariance = 25.0 * np.ones((2, 2)) + 1e-4 * np.outer(sign, sign)
    given = dist.MultivariateNormal(np.array([TRUTH["v_rad"] + 1.0, ZERO - 1.0]), covariance)
    pulled = fit(
        two_arms(), emulator, continuum_degree=2, robust=False,
        priors={("v_rad", "zero_point_red"): given},
    )  # fmt: skip
    place = [found.names.index(name) for name in ("v_rad", "zero_point_red")]
    assert pulled.values[place] @ sign == pytest.approx(TRUTH["v_rad"] - ZERO + 2.0, abs=0.2)
    assert abs(found.values[place] @ sign - (TRUTH["v_rad"] - ZERO)) < 1.0


def test_goodness_counts_the_continuum_of_every_arm(emulator):
    """With photon noise alone every parameter and every coefficient is well measured."""
    fitted = fit(
        two_arms(), emulator, continuum_degree=2, priors=FREE, robust=False, noise="none"
    )  # fmt: skip
    assert fitted.dof <= fitted.dof_effective < fitted.dof + 0.5
    assert 1e-3 < fitted.p_value <= 1
    assert fitted.chi2 == pytest.approx(
        np.nansum((fitted.spectrum.flux - fitted.model_flux) ** 2 * fitted.spectrum.ivar), rel=1e-6
    )
    assert f"/{fitted.dof_effective:.0f}" in repr(fitted)
    held = fit(two_arms(), emulator, continuum_degree=2, robust=False, noise="none",
               fixed={"zero_point_red": ZERO})  # fmt: skip
    assert held.dof_effective - fitted.dof_effective == pytest.approx(1.0, abs=0.05)


def test_tables_and_pictures(found, single):
    table = make_catalog([found, single])
    assert table["zero_point_red"].unit == "km/s" and table["e_zero_point_red"].unit == "km/s"
    assert table["zero_point_red"][0] == pytest.approx(ZERO, abs=1.0)
    assert np.isnan(table["zero_point_red"][1])
    assert table["num_pixels"][0] == found.spectrum.good.sum()
    text = json.loads(json.dumps(found.to_dict()))
    assert set(text["labels"]) == set(LABELS.names)
    assert set(text["zero_point_red"]) == set(text["v_rad"])
    assert text["arms"]["blue"]["num_pixels"] + text["arms"]["red"]["num_pixels"] == sum(
        found.spectrum.good
    )
    assert "arms" not in single.to_dict()
    tops = found.plot().axes[::2]
    assert [top.get_ylabel() for top in tops] == ["flux, blue", "flux, red"]
    drawn = [line for top in tops for line in top.lines[:1]]
    assert sum(np.size(line.get_xdata()) for line in drawn) == found.spectrum.good.sum()
    assert tops[0].get_ylim()[1] > 500 and tops[1].get_ylim()[1] < 0.01


@pytest.mark.filterwarnings("ignore:.*sample longer")
def test_sampled_as_any_other_star(found, emulator):
    posterior = sample(found.spectrum, emulator, fit=found, num_chains=2, num_samples=100, seed=1)
    assert posterior.names == found.names
    assert np.all(np.abs(posterior.mean - found.values) < found.error)
    assert posterior.sigma[-1] == pytest.approx(found.error[-1], rel=0.5)


def test_numpyro_model_has_the_zero_point(found, emulator):
    values = dict(zip(found.names, np.asarray(found.values), strict=True))
    _, trace = log_density(stellar_model(found.spectrum, emulator, fit=found), (), {}, values)
    assert {"teff", "v_rad", "zero_point_red"} <= set(trace)


def test_command_line(tmp_path, capsys, monkeypatch, emulator):
    monkeypatch.setattr("emulators.emulator.load_emulator", lambda name=None: emulator)
    monkeypatch.setattr(type(emulator), "fingerprint", "0123abcd")
    files = []
    for name, star in two_arms().items():
        files.append(tmp_path / f"{name}.fits")
        columns = {"wave": star.wavelength, "flux": star.flux, "ivar": star.ivar}
        Table(columns).write(files[-1])
    command = ["fit", *map(str, files), "--medium", "vacuum", "--out", str(tmp_path / "out")]
    power = ["--resolution", "47000", "--resolution", "28000"]
    arms = ["--arm", "blue", "--arm", "red"]
    rest = ["--continuum-degree", "2", "--zero-point", "5", "--json"]
    assert main([*command, *power, *arms, *rest]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["zero_point_red"]["value"] == pytest.approx(ZERO, abs=1.0)
    assert shown["name"].endswith("blue.fits") and set(shown["arms"]) == {"blue", "red"}
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["catalog.fits", "fit.png"]
    for wrong, message in (
        ([*power, *rest], "--arm: 0 names for 2 files"),
        ([*power, *arms, "--arm", "green"], "--arm: 3 names for 2 files"),
        ([*power, "--arm", "red", "--arm", "red"], "give every arm a name of its own"),
        ([*power, *power, *arms], "--resolution: 4 values for 2 files"),
        ([*power, *arms, "--zero-point", "-1"], "--zero-point: -1"),
        ([*power, *arms, "--fix", "zero_point_blue=1"], "zero_point_blue"),
        ([*power, *arms, "--window", "4000", "4100"], "no pixel of any arm"),
    ):
        assert main([*command, *wrong]) == 2
        error = capsys.readouterr().err
        assert message in error and error.count("\n") == 1


@pytest.mark.parametrize(
    ("spectra", "options", "message"),
    [
        ({}, {}, "no arm was given"),
        (3.0, {}, "a float; give a Spectrum, or several"),
        ({"blue": "blue.fits"}, {}, "arm blue is a str; give a Spectrum"),
        ({"far red": far_arm()}, {}, "arm 'far red'; use letters"),
        ({"one": far_arm(), "two": far_arm()}, {}, "arm one: .*overlaps; arm two: .*overlaps"),
        (None, {"priors": {"zero_point_blue": dist.Normal(0.0, 1.0)}}, "'zero_point_blue'; known"),
        (None, {"fixed": {"zero_point_red": 200.0}}, "zero_point_red = 200 is outside -100 .. 100"),
        (None, {"resolution": {"green": 2e4}}, "resolution: no arm 'green'; arms: blue, red"),
        (None, {"resolution": {"red": -2e4}}, "arm red: resolution: give a positive"),
        (None, {"continuum_degree": {"red": -2}}, "arm red: continuum_degree: -2"),
        (None, {"mask": np.zeros(10)}, "mask: there are several arms; give a mapping"),
        (None, {"mask": {"red": np.zeros(10)}}, r"arm red: mask: shape \(10,\) does not match"),
        (far_arm(), {"resolution": {"red": 2e4}}, "resolution: a mapping by arm for a single"),
    ],
)
def test_bad_arms_are_refused_by_name(emulator, spectra, options: dict[str, Any], message):
    with pytest.raises(InputError, match=message):
        fit(two_arms() if spectra is None else spectra, emulator, **options)


def test_arms_without_a_usable_pixel_left_are_refused(emulator):
    arms = two_arms()
    everything = {name: np.ones(len(one)) for name, one in arms.items()}
    with pytest.raises(InputError, match="mask: no arm of blue, red has a usable pixel"):
        fit(arms, emulator, mask=everything)


def test_a_batch_is_of_one_arm(emulator):
    setup = build(Arms.gather(two_arms()), emulator, {"v_rad": TRUTH["v_rad"]})
    data = np.ones((1, len(setup.keep)))
    with pytest.raises(InputError, match="setup: 2 arms; a batch is of one"):
        fit_batch(setup, data, data, np.ones((3, len(setup.prior.names))))
