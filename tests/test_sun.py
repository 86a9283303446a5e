"""The real Sun: what no synthetic star can test.

The rule of `stellarfit.mask` was chosen on simulated stars; nothing here was tuned on the outcome.
"""

import numpy as np
import numpyro.distributions as dist
import pytest

import stellarfit as sf
from emulators.pretrained import available
from stellarfit.flags import Flag
from stellarfit.sampling.diagnostics import r_hat


@pytest.fixture(scope="module")
def sun(shared):
    """All labels free.

    The file does not state its resolving power. UVES does not exceed some 100,000 by much, and
    macroturbulence, free, makes up for what this is too sharp: that way round, unlike the other,
    it can. v sin i of the Sun is 1.6 km/s as seen from the Earth (Pavlenko et al. 2012); beside
    macroturbulence a spectrum does not tell it.
    """
    if not available():
        pytest.skip("no emulator is shipped yet")
    spectrum = sf.read_spectrum(
        shared / "observed" / "sun_uves.fits", medium="air", resolution=100_000, snr=100
    )
    return sf.fit(spectrum, fixed={"v_sini": 1.6}, priors={"v_mac": dist.Uniform(0.0, 8.0)})


@pytest.mark.slow
def test_the_sun_has_the_parameters_of_the_sun(sun):
    values = dict(zip(sun.names, sun.values, strict=True))
    assert values["teff"] == pytest.approx(5772, abs=80)
    assert values["logg"] == pytest.approx(4.44, abs=0.12)
    assert values["fe_h"] == pytest.approx(0.0, abs=0.08)
    assert values["v_rad"] == pytest.approx(0.0, abs=1.0)
    assert not sun.flags & (Flag.NOT_CONVERGED | Flag.BAD_HESSIAN)


@pytest.mark.slow
def test_backends_agree_on_the_sun(sun):
    first, second = (
        sf.sample(sun.spectrum, sun.emulator, backend=backend, fit=sun, num_samples=600, seed=1)
        for backend in ("numpyro", "blackjax")
    )
    assert np.all(np.abs(first.mean - second.mean) < 0.1 * first.sigma)
    np.testing.assert_allclose(first.sigma, second.sigma, rtol=0.1)
    for posterior in (first, second):
        assert np.all(r_hat(posterior.samples) < 1.01)
        assert not posterior.stats["diverging"].any()
