"""Line lists in the formats of VALD, Turbospectrum and MOOG, written from their documentation."""

import gzip

import numpy as np
import pytest

from emulators.errors import InputError
from emulators.physics.isotopes import isotopic_fraction
from emulators.physics.linelist_readers import (
    read_lines,
    read_moog,
    read_turbospectrum,
    read_vald,
)
from emulators.wavelength import air_to_vacuum

# ruff: noqa: E501

# In the layout of real answers: levels in quotes or not, the isotopes in the last word of the
# references, the model and its abundances before the footnotes.
VALD = """\
 5100.00000, 5200.00000, 4, 1000, 1.0 Wavelength region, lines selected, lines processed, Vmicro
                                                                     Lande factors       Damping parameters  Central
Spec Ion       WL_air(A)  log gf* E_low(eV) J lo E_up(eV)  J up  lower   upper    mean   Rad.   Stark  Waals  depth
'Fe 1',       5166.28200,  -4.195,  0.0000,  4.0,  2.3992,  5.0,  1.500,  1.400,  1.450, 3.610,-6.320,-7.840, 0.950,
  LS                                                                   3d6.4s2 a5D
  LS                                                     3d6.(5D).4s.4p.(3P*) z7D*
'_          Fe I             1 wl:K14   1 gf:BWL   1 K14   1 K14   1 K14   1 K14   1 K14   1 K14   1 K14    Fe'
'Mg 1',       5183.60420,  -0.239,  2.7166,  2.0,  5.1078,  1.0,  1.500,  2.000,  1.250, 8.020,-5.420,730.239, 0.970,
'  LS                                                                         3s.3p 3P*'
'  LS                                                                          3s.4s 3S'
'_      B   Mg I             2 wl:K10   2 gf:K10   2 K10   2 K10   2 K10   2 K10   2 K10   3 BA-J   2 K10    Mg'
'Ba 2',       5190.00000,  -1.000,  1.8480,  1.5,  4.2000,  2.5, 99.000, 99.000, 99.000, 0.000, 0.000, 0.000, 0.100,
'  LS                                                                              5d 2D'
'  LS                                                                             6p 2P*'
'_          Ba II            4 wl:MW    4 gf:MW    4 MW    4 MW    4 MW    4 MW    4 MW    4 MW    4 MW    (137)Ba+'
'CN 1',       5170.00000,  -3.000,  0.5000,  4.5,  2.8980,  5.5, 99.000, 99.000, 99.000, 0.000, 0.000, 0.000, 0.100,
'  Hb                                                                   X'
'  Hb                                                                   A'
'_          CN               5 wl:Bro   5 gf:Bro   5 Bro   5 Bro   5 Bro   5 Bro   5 Bro   5 Bro   5 Bro    (13)CN'
'04000G45.KRZ',
'H :  0.92','He: -1.11','Li:-10.88','Be:-10.89','B : -9.44','C : -3.48','N : -3.99',
'Es:-20.00','END'
{footnote}
 References:
  1. Kurucz obs. energy level: Fe 1
  3. Barklem, Anstee & O'Mara broadening
"""
SCALED = "* oscillator strengths were scaled by the solar isotopic ratios."
UNSCALED = "* oscillator strengths were NOT scaled by the solar isotopic ratios."


def write(tmp_path, text, name="list.txt"):
    path = tmp_path / name
    path.write_text(text)
    return path


def test_vald_long_format(tmp_path):
    lines = read_vald(write(tmp_path, VALD.format(footnote=SCALED)))
    np.testing.assert_array_equal(lines.species, [2600, 60700, 1200, 5601])
    air = np.array([5166.2820, 5170.0, 5183.6042, 5190.0])
    np.testing.assert_allclose(lines.wavelength, air_to_vacuum(air), rtol=1e-12)
    np.testing.assert_allclose(lines.loggf, [-4.195, -3.0, -0.239, -1.0])
    np.testing.assert_allclose(lines.e_low, [0.0, 0.5, 2.7166, 1.848])
    np.testing.assert_allclose(lines.gamma_rad[[0, 2]], [10**3.61, 10**8.02])
    np.testing.assert_allclose(lines.log_gamma_stark[[0, 2]], [-6.32, -5.42])
    assert lines.log_gamma_vdw[0] == -7.84
    assert lines.log_gamma_vdw[2] == pytest.approx(-7.27, abs=0.02)  # ABO 730.239
    assert lines.vdw_exponent[2] == pytest.approx((1 - 0.239) / 2)


def test_vald_isotopes_are_scaled_once(tmp_path):
    scaled = read_vald(write(tmp_path, VALD.format(footnote=SCALED)))
    unscaled = read_vald(write(tmp_path, VALD.format(footnote=UNSCALED)))
    difference = unscaled.loggf - scaled.loggf
    expected = [0, np.log10(0.0107), 0, np.log10(0.11232)]
    np.testing.assert_allclose(difference, expected, atol=1e-4)


def test_vald_list_of_one_element_without_depths_or_footnote(tmp_path):
    """An "extract element" answer: no first line, no depth, nothing said of isotopes."""
    rows = VALD.replace(" 0.950,", "").splitlines()[1:7]
    lines = read_vald(write(tmp_path, "\n".join(rows).replace("Spec Ion", "Elm Ion ")))
    assert (lines.species.tolist(), lines.loggf.tolist()) == ([2600], [-4.195])


def test_vald_vacuum_and_wavenumber_energies(tmp_path):
    text = VALD.format(footnote=SCALED).replace("WL_air(A)", "WL_vac(A)")
    assert read_vald(write(tmp_path, text)).wavelength[0] == 5166.2820
    text = text.replace("E_low(eV)", "E_low(cm^-1)").replace("2.7166", "21911.18")
    assert read_vald(write(tmp_path, text)).e_low[2] == pytest.approx(2.7166, abs=1e-4)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("WL_air", "lambda", "line 1: no VALD header"),
        ("E_up(eV)", "Vmic", "line 3: VALD short format"),
        ("-0.239,", "xx,", r"line 8: ' *xx' is not a number|line 8: 'xx' is not a number"),
        ("'Mg 1'", "'Qq 1'", "line 8: species 'Qq 1'"),
        ("WL_air(A)", "WL_air(nm)", "line 3: wavelengths must be in Angstrom"),
        (SCALED, "", "line 15: an isotope, but no footnote"),
    ],
)
def test_broken_vald_names_file_and_line(tmp_path, old, new, message):
    path = write(tmp_path, VALD.format(footnote=SCALED).replace(old, new, 1))
    with pytest.raises(InputError, match=message) as error:
        read_vald(path)
    assert "list.txt" in str(error.value) and "\n" not in str(error.value)


TURBOSPECTRUM = """\
'  26.000            '    1         2
'Fe I    LTE'
  5166.282  0.000 -4.195   -7.840   11.0  4.10E+03 's' 'p'   0.0    1.0 'Fe I LS:a5D LS:z7D*'
  5171.596  1.485 -1.793  281.253    9.0  1.00E+05 's' 'p'   0.0    1.0 'Fe I LS:a3F LS:z3F*'
'  56.137            '    2         1
'Ba II'
  5180.000  2.512 -0.500    2.500    4.0  1.00E+05 'p' 'd'   0.0    1.0 'Ba II'
' 607.012014         '    1         1
'CN     '
  5190.000  0.500 -1.500    0.000   20.0  1.10E+07 'X' 'B'   0.0    1.0 'CN'
"""


def test_turbospectrum(tmp_path):
    lines = read_turbospectrum(write(tmp_path, TURBOSPECTRUM))
    np.testing.assert_array_equal(lines.species, [2600, 2600, 5601, 60700])
    np.testing.assert_allclose(lines.wavelength[0], air_to_vacuum(5166.282))
    share = isotopic_fraction(((56, 137),))
    assert share == pytest.approx(0.1123, abs=2e-4)
    assert lines.loggf[2] == pytest.approx(-0.5 + np.log10(share))
    assert lines.loggf[3] == pytest.approx(-1.5 + np.log10(0.9893 * 0.99632), abs=1e-4)
    np.testing.assert_allclose(lines.gamma_rad[[0, 3]], [4.1e3, 1.1e7])
    assert lines.gamma_rad[1] == pytest.approx(0.2223e16 / lines.wavelength[1] ** 2)
    assert lines.log_gamma_vdw[0] == -7.84
    assert lines.vdw_exponent[1] == pytest.approx((1 - 0.253) / 2)


def test_turbospectrum_with_a_stark_column(tmp_path):
    text = TURBOSPECTRUM.replace("4.10E+03 's'", "4.10E+03 -6.320 's'")
    assert read_turbospectrum(write(tmp_path, text)).log_gamma_stark[0] == -6.32


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("'    1         2", "'    1         3", "line 5"),
        ("5171.596", "5171.5x6", "line 4: '5171.5x6'"),
        (" 607.012014 ", " 607.01.2 ", "line 8"),
        ("'    1         1\n'CN", "'    1         9\n'CN", "line 10: file ends before the 9"),
    ],
)
def test_broken_turbospectrum_names_file_and_line(tmp_path, old, new, message):
    with pytest.raises(InputError, match=f"list.txt, {message}"):
        read_turbospectrum(write(tmp_path, TURBOSPECTRUM.replace(old, new, 1)))


MOOG = """\
a title
  5166.282      26.0     0.000    -4.195
  5171.596      26.1     1.485    -1.793    -7.500
  5165.021 606.01213     0.121    -0.443                6.24            00pP2f12
  5170.000 106.00112     0.500    -3.000               3.464
  5175.000   63.1151     0.207     0.220
"""


def test_moog_columns(tmp_path):
    lines = read_moog(write(tmp_path, MOOG))
    np.testing.assert_array_equal(lines.species, [60600, 2600, 10600, 2601, 6301])
    assert lines.loggf[0] == pytest.approx(-0.443 + np.log10(0.9893 * 0.0107), abs=1e-4)
    assert lines.loggf[2] == pytest.approx(-3.0 + np.log10(0.9893 * 0.999885), abs=1e-4)
    assert lines.loggf[4] == pytest.approx(0.22 + np.log10(0.4781), abs=1e-3)
    assert lines.log_gamma_vdw[3] == -7.5
    packed = tmp_path / "list.gz"
    packed.write_bytes(gzip.compress(MOOG.encode()))
    np.testing.assert_array_equal(read_moog(packed).loggf, lines.loggf)


def test_moog_free_format_and_damping_conventions(tmp_path):
    text = "title\n5000 26.0 1.0 -1.0 {}\n"
    widths = [
        read_moog(write(tmp_path, text.format(damping))).log_gamma_vdw[0]
        for damping in ("-7.6", "3e-8", "2.5", "0")
    ]
    np.testing.assert_allclose(widths[:2], [-7.6, np.log10(3e-8)])
    # a factor f on C6 widens by f^0.4; none leaves the default factor 2.5 on the width
    assert widths[2] - widths[3] == pytest.approx(np.log10(2.5**0.4 / 2.5))


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("5171.596", "5171.x", "line 3: '5171.x'"),
        ("63.1151", "63.1150", "no isotope of mass number 150 for element 63"),
        ("      26.1", "      26.9", "species 2609"),
    ],
)
def test_broken_moog_is_one_clear_line(tmp_path, old, new, message):
    with pytest.raises(InputError, match=message):
        read_moog(write(tmp_path, MOOG.replace(old, new, 1)))


def test_unknown_format_medium_file_and_empty_list(tmp_path):
    with pytest.raises(InputError, match="allowed: vald, turbospectrum, moog, stellarfit"):
        read_lines("x", "synspec")
    with pytest.raises(InputError, match=r"none.txt: cannot be read"):
        read_lines(tmp_path / "none.txt", "vald")
    with pytest.raises(InputError, match="'air', 'vacuum'"):
        read_moog(write(tmp_path, MOOG), medium="water")
    with pytest.raises(InputError, match="no lines in it"):
        read_lines(write(tmp_path, "title only\n"), "moog")
