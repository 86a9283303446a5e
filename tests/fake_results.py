"""Stand-ins for `Fit` and `Posterior` with known numbers, for tests of tables and pictures."""

from types import SimpleNamespace

import numpy as np

from emulators.labels import LabelSpace
from stellarfit.abundances import over_hydrogen
from stellarfit.spectrum import Spectrum

LABELS = ("teff", "logg", "vmic", "fe_h", "mg_fe")


def fake_fit(seed: int = 0, fixed: dict | None = None, num_pixels: int = 4000) -> SimpleNamespace:
    """A finished fit of a made-up spectrum with a gap, masked pixels and lines."""
    rng = np.random.default_rng(seed)
    fixed = {} if fixed is None else fixed
    wavelength = np.geomspace(5105.0, 5295.0, num_pixels)
    centers, depths = rng.uniform(5100, 5300, 300), rng.exponential(0.25, 300).clip(0, 0.9)
    model = np.prod(
        1 - depths * np.exp(-0.5 * ((wavelength[:, None] - centers) / 0.08) ** 2), axis=1
    )
    flux = model + 0.01 * rng.normal(size=num_pixels)
    flux[100:103] = np.nan
    mask = np.zeros(num_pixels, int)
    mask[2000:2060] = 1
    spectrum = Spectrum(
        wavelength, flux, np.full(num_pixels, 1e4), mask=mask, resolution=47_000, name="fake star"
    )
    values = {"teff": 5772.0, "logg": 4.44, "vmic": 1.0, "fe_h": -0.02, "mg_fe": 0.05}
    values |= {"v_rad": 12.34, "v_sini": 4.2}
    sigma = {"teff": 14.0, "logg": 0.03, "vmic": 0.04, "fe_h": 0.012, "mg_fe": 0.02}
    sigma |= {"v_rad": 0.02, "v_sini": 0.3}
    names = tuple(name for name in values if name not in fixed)
    scale = np.array([sigma[name] for name in names])
    correlation = 0.4 + 0.6 * np.eye(len(names))
    covariance = scale[:, None] * correlation * scale
    residual = np.abs(np.nan_to_num(flux - model)) / 0.01
    return SimpleNamespace(
        names=names,
        values=np.array([values[name] for name in names]),
        covariance=covariance,
        error=scale,
        error_stat=0.8 * scale,
        error_sys=0.6 * scale,
        error_emulator=0.48 * scale,
        error_mismatch=0.36 * scale,
        fixed=dict(fixed),
        chi2=float(np.nansum(((flux - model) / 0.01) ** 2)),
        dof=num_pixels - len(names) - 63,
        dof_effective=num_pixels - 68.5,
        p_value=0.4,
        flags=0,
        model_flux=model,
        continuum=np.ones(num_pixels),
        spectrum=spectrum,
        emulator=SimpleNamespace(
            name="fake",
            fingerprint="0123abcd",
            label_space=LabelSpace(
                LABELS, (4000.0, 1.0, 0.5, -2.5, -0.5), (7000.0, 5.0, 3.0, 0.5, 0.8)
            ),
        ),
        weight=np.where(residual > 3, 0.5, 1.0),
        seconds=1.0,
    )


def fake_posterior(seed: int = 0, fixed: dict | None = None) -> SimpleNamespace:
    """Gaussian draws around `fake_fit`, 4 chains of 500."""
    fit = fake_fit(seed, fixed)
    rng = np.random.default_rng(seed + 1)
    samples = rng.multivariate_normal(fit.values, fit.covariance, size=(4, 500))
    free = dict(zip(fit.names, np.moveaxis(samples, -1, 0), strict=True))
    draws = free | over_hydrogen(free, fit.fixed)
    return SimpleNamespace(
        names=fit.names, samples=samples, draws=draws, stats={}, fit=fit, flags=0, seed=seed
    )
