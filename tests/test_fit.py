"""From a spectrum to labels with errors."""

from typing import Any

import equinox as eqx
import jax
import numpy as np
import numpyro.distributions as dist
import pytest
from fake_star import TRUTH, fake_star
from tiny import LABELS, tiny_emulator

import stellarfit as sf
from emulators.errors import InputError
from stellarfit.fitting import fit
from stellarfit.flags import BAD, HARMLESS, SENTENCES, WARN, Flag, describe
from stellarfit.spectrum import MaskBit, Spectrum

KEYS = {"value", "error", "error_stat", "error_sys", "error_emulator", "error_mismatch"}


@pytest.fixture(scope="module")
def emulator():
    return tiny_emulator(analytic=True, pixels=400)


@pytest.fixture(scope="module")
def found(emulator):
    return fit(fake_star(), emulator, continuum_degree=2)


def pulls(result, truth=TRUTH):
    expected = np.array([truth[name] for name in result.names])
    return (result.values - expected) / result.error


def test_truth_lies_within_the_errors(found):
    assert np.all(np.abs(pulls(found)) < 3)
    assert found.flags & BAD == 0
    # This emulator is exact but says it errs by 0.003, so chi^2 is below its degrees of freedom.
    assert 0.6 < found.chi2 / found.dof < 1.1


def test_error_is_the_root_of_the_diagonal_and_of_its_two_parts(found):
    np.testing.assert_allclose(found.error, np.sqrt(np.diag(found.covariance)))
    parts = found.error_stat, found.error_emulator, found.error_mismatch
    np.testing.assert_allclose(found.error**2, np.sum(np.square(parts), axis=0))
    np.testing.assert_allclose(found.error**2, found.error_stat**2 + found.error_sys**2)
    assert np.all(found.error_emulator > 0)
    # Nothing is wrong with this star; a few pixels in a hundred weigh a little less by chance.
    assert np.all(found.error_mismatch < 0.3 * found.error)


def test_errors_scatter_as_they_say(emulator):
    """Over noise realisations the pulls have unit width; photon noise only."""
    exact = eqx.tree_at(lambda e: e.error_model, emulator, None)
    found = [fit(fake_star(seed=seed), exact, continuum_degree=2) for seed in range(10, 26)]
    scatter = np.array([pulls(result) for result in found])
    assert np.sqrt(np.mean(scatter**2)) == pytest.approx(1.0, abs=0.25)
    assert np.abs(scatter.mean(axis=0)).max() < 1.0
    assert np.mean([result.chi2 / result.dof for result in found]) == pytest.approx(1, abs=0.05)
    assert all(result.flags & Flag.NO_ERROR_MODEL for result in found)
    assert all(np.all(result.error_sys < 0.4 * result.error_stat) for result in found)


def test_systematic_error_survives_any_exposure(emulator):
    short = fit(fake_star(snr=100), emulator, continuum_degree=2)
    long = fit(fake_star(snr=20_000), emulator, continuum_degree=2)
    index = short.names.index("teff")
    assert long.error_stat[index] < 0.02 * short.error_stat[index]
    assert long.error_sys[index] > 0.3 * short.error_sys[index]
    assert long.flags & Flag.SYSTEMATIC


@pytest.mark.parametrize("v_rad", [-250.0, 180.0])
def test_velocity_is_found_over_the_whole_prior(v_rad):
    wide = tiny_emulator(analytic=True, pixels=4000)
    start = 5165 * (1 + v_rad / 299792.458)
    star = fake_star({"v_rad": v_rad}, start=start - 16, stop=start)
    result = fit(star, wide, continuum_degree=2)
    assert abs(pulls(result, TRUTH | {"v_rad": v_rad})[result.names.index("v_rad")]) < 3
    assert result.flags & BAD == 0


def test_scale_of_the_flux_does_not_matter(emulator, found):
    star = fake_star()
    tiny_units = Spectrum(star.wavelength, star.flux * 1e-17, star.ivar * 1e34, resolution=47_000.0)
    result = fit(tiny_units, emulator, continuum_degree=2)
    np.testing.assert_allclose(result.values, found.values, atol=1e-3 * found.error.max())
    np.testing.assert_allclose(result.error, found.error, rtol=1e-3)


def test_masked_and_nan_pixels_do_not_matter(emulator, found):
    star = fake_star()
    flux = star.flux.copy()
    flux[100:105] = 1e6
    flux[200:203] = np.nan
    mask = np.zeros(len(flux), int)
    mask[100:105] = 4
    broken = Spectrum(star.wavelength, flux, star.ivar, resolution=47_000.0)
    result = fit(broken, emulator, continuum_degree=2, mask=mask)
    assert np.all(np.abs(result.values - found.values) < found.error)
    assert result.spectrum.mask[102] & MaskBit.USER
    assert result.weight[102] == 0 and np.isnan(result.model_flux[102])
    assert result.dof == found.dof - 8


def test_a_line_the_model_lacks_is_down_weighted(emulator):
    """Robust and not: the same spoiled star, and the same star unspoiled."""
    star = fake_star()
    spoiled = star.flux * (1 - 0.3 * np.exp(-0.5 * ((star.wavelength - 5155.9) / 0.08) ** 2))
    spoiled = Spectrum(star.wavelength, spoiled, star.ivar, resolution=47_000.0)
    clean = fit(star, emulator, continuum_degree=2)
    robust = fit(spoiled, emulator, continuum_degree=2)
    naive = fit(spoiled, emulator, continuum_degree=2, robust=False)
    shift, naive_shift = (np.abs(one.values - clean.values) for one in (robust, naive))
    assert np.all(shift < 1.5 * robust.error)
    assert np.max(shift / clean.error) < 0.4 * np.max(naive_shift / clean.error)
    assert robust.flags & Flag.MISMATCH
    assert np.max(robust.error_mismatch / robust.error) > 0.5 and np.all(naive.error_mismatch == 0)
    line = np.abs(spoiled.wavelength - 5155.9) < 0.05
    assert np.all(robust.weight[line] < 0.3)
    assert np.all(naive.weight[line] == 1)
    assert robust.flags & Flag.BAD_CHI2  # down-weighting does not hide the misfit


def test_fixed_and_prior(emulator, found):
    held = fit(fake_star(), emulator, continuum_degree=2, fixed={"logg": 3.0, "v_rad": 23.4})
    assert held.names == ("teff", "fe_h", "mg_fe", "v_sini")
    assert held.fixed == {"logg": 3.0, "v_rad": 23.4, "v_mac": 0.0}
    assert held.error[0] <= found.error[0]
    prior = {"teff": dist.Normal(5400.0, 5.0)}
    pulled = fit(fake_star(), emulator, continuum_degree=2, priors=prior)
    assert 5300 < pulled.values[0] < 5400 and pulled.error[0] < 5


def test_whole_numbers_are_numbers(emulator):
    result = fit(fake_star(), emulator, continuum_degree=2, resolution=47_000, fixed={"logg": 3})
    assert result.fixed["logg"] == 3.0 and "logg" not in result.names


def test_a_star_beyond_the_box_stays_in_it_and_is_flagged(emulator):
    narrow = {"teff": dist.Uniform(4000.0, 5000.0)}
    result = fit(fake_star(), emulator, continuum_degree=2, priors=narrow)
    assert 4990 < result.values[0] <= 5000
    assert result.flags & Flag.EDGE_TEFF and result.flags & BAD
    assert np.isfinite(result.error).all()


def test_an_unconstrained_label_gets_the_width_of_its_box(emulator):
    star = fake_star(start=5152.6, stop=5155.4, snr=15)
    result = fit(star, emulator, continuum_degree=0)
    assert np.isfinite(result.error).all()
    box = np.array(LABELS.upper) - np.array(LABELS.lower)
    assert np.all(result.error[:4] < 0.5 * box)


def test_plain_numbers_for_json(found):
    import json

    text = json.loads(json.dumps(found.to_dict()))
    assert set(text["labels"]) == set(LABELS.names)
    assert set(text["labels"]["teff"]) == KEYS
    for name in ("v_rad", "v_sini", "v_mac"):
        assert set(text[name]) == KEYS
    assert text["v_mac"]["error"] == 0  # held
    for key in ("chi2", "dof", "flags", "emulator", "seconds"):
        assert key in text
    assert text["masked_pixels"].get("outside", 0) > 0 and found.flags & Flag.OUTSIDE
    assert list(found.table["name"]) == list(found.names)


def test_a_second_fit_with_other_bad_pixels_compiles_nothing(emulator, found):
    compiled, bad = [], np.zeros(len(found.spectrum))
    bad[[100, 150, 151]] = 1

    def listen(event: str, duration_secs: float, **kwargs: str | int):
        if event == "/jax/core/compile/backend_compile_duration":
            compiled.append(duration_secs)

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        other = fit(fake_star(seed=5), emulator, continuum_degree=2, mask=bad)
        quiet = len(compiled)
        jax.jit(lambda x: x * 2.0 + len(compiled))(np.ones(3))
    finally:
        jax.monitoring.clear_event_listeners()
    assert quiet == 0 and other.spectrum.good.sum() == found.spectrum.good.sum() - 3
    assert other.dof == found.dof - 3
    assert len(compiled) > 0  # the listener does hear


def test_public_names_are_the_functions():
    assert sf.sample and callable(sf.fit) and sf.Fit


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"fixed": {"vmic": 1.0}}, "unknown label 'vmic'"),
        ({"fixed": {"teff": 9000.0}}, "outside 4000 .. 7000"),
        ({"noise": "flat"}, "noise: 'flat' is not known; give 'law', 'validation', 'none'"),
        ({"noise": "law"}, "no scaling law for the labels of tiny-0"),
        ({"continuum_degree": -2}, "continuum_degree: -2"),
        ({"resolution": -5.0}, "resolution: give a positive"),
    ],
)
def test_bad_options_are_refused(emulator, options: dict[str, Any], message):
    with pytest.raises(InputError, match=message):
        fit(fake_star(), emulator, **options)


def test_masking_everything_is_refused(emulator):
    star = fake_star()
    with pytest.raises(InputError, match="none of"):
        fit(star, emulator, mask=np.ones(len(star)))


def test_unknown_resolution_is_refused(emulator):
    star = fake_star()
    star = Spectrum(star.wavelength, star.flux, star.ivar)
    with pytest.raises(InputError, match="resolution: the spectrum does not carry"):
        fit(star, emulator)


def test_a_spectrum_elsewhere_is_refused(emulator):
    wavelength = np.linspace(6000, 6100, 500)
    star = Spectrum(wavelength, np.ones(500), np.full(500, 1e4), resolution=47_000.0)
    with pytest.raises(InputError, match="nothing overlaps"):
        fit(star, emulator)


def test_every_flag_has_a_sentence_and_a_verdict():
    assert set(SENTENCES) == set(Flag)
    assert Flag(0) == BAD & WARN
    assert Flag(sum(flag.value for flag in Flag)) == BAD | WARN | HARMLESS
    assert len(describe(BAD | WARN)) == len(Flag) - 2


@pytest.mark.slow
def test_finer_sampling_of_a_wrong_model_buys_no_precision(emulator):
    """Line strengths that the model cannot reach: errors must not fall with the pixel size."""
    errors = []
    for width in (0.03, 0.01):
        star = fake_star(width=width, snr=2000 * np.sqrt(0.01 / width))
        wiggle = 1 + 0.02 * np.sin(2 * np.pi * star.wavelength / 0.35)
        wrong = Spectrum(star.wavelength, star.flux * wiggle, star.ivar, resolution=47_000.0)
        result = fit(wrong, emulator, continuum_degree=2)
        assert result.flags & Flag.MISMATCH and result.mismatch > 0.005
        errors.append(result.error_sys[0])
    assert errors[1] == pytest.approx(errors[0], rel=0.3)


def test_an_emulator_may_be_given_by_its_file(tmp_path):
    emulator = tiny_emulator(pixels=400)
    emulator.save(tmp_path / "tiny.h5")
    fixed = {name: value for name, value in TRUTH.items() if name != "teff"}
    by_file = fit(fake_star(), tmp_path / "tiny.h5", fixed=fixed, noise="none", robust=False)
    by_hand = fit(fake_star(), emulator, fixed=fixed, noise="none", robust=False)
    np.testing.assert_array_equal(by_file.values, by_hand.values)
    with pytest.raises(InputError, match="no shipped emulator 'nothing'"):
        fit(fake_star(), "nothing")
