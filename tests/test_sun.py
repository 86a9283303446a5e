"""The real Sun: what no synthetic star can test."""

import pytest

import stellarfit as sf
from emulators.pretrained import available
from stellarfit.flags import Flag


@pytest.mark.slow
def test_the_sun_has_the_parameters_of_the_sun(shared):
    """Default settings throughout; the rule of `stellarfit.mask` knows no label."""
    if not available():
        pytest.skip("no emulator is shipped yet")
    spectrum = sf.read_spectrum(
        shared / "observed" / "sun_uves.fits", medium="air", resolution=47_000, snr=100
    )
    result = sf.fit(spectrum)
    values = dict(zip(result.names, result.values, strict=True))
    assert values["teff"] == pytest.approx(5772, abs=80)
    assert values["logg"] == pytest.approx(4.44, abs=0.12)
    assert values["fe_h"] == pytest.approx(0.0, abs=0.08)
    assert values["v_rad"] == pytest.approx(0.0, abs=1.0)
    assert not result.flags & (Flag.NOT_CONVERGED | Flag.BAD_HESSIAN)
