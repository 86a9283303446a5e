"""The synthesiser through its public call: derivatives, shifts, molecules, refusals."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from emulators.errors import InputError
from emulators.labels import LabelSpace
from emulators.physics import data_path
from emulators.physics.formation import LineFormation, Synthesis
from emulators.physics.linelist import LineList
from emulators.physics.star import LabelledStar
from emulators.physics.synthesizer import LTESynthesizer

NAMES = ("teff", "logg", "vmic", "fe_h", "mg_fe", "c_fe")
SPACE = LabelSpace(NAMES, (4500, 3.5, 0.5, -0.5, -0.3, -0.3), (6000, 5.0, 2.0, 0.5, 0.3, 0.3))
SUN = jnp.array([5772.0, 4.44, 1.0, 0.0, 0.0, 0.0])
NEARBY = SUN + jnp.array([-60.0, -0.07, 0.13, -0.11, 0.05, 0.04])
STEPS = jnp.diag(jnp.array([2.0, 2e-3, 2e-3, 2e-3, 2e-3, 2e-3]))
HALF_PIXEL = 0.5e-5
# Every star that the tests look at, in one batch: compiling costs far more than computing.
STARS = {
    "sun": SUN,
    "sun, moved": SUN,
    "nearby": NEARBY,
    "rich in magnesium": SUN.at[4].set(0.3),
    "hotter than the grid": SUN.at[0].set(9000.0),
    **{f"more {name}": NEARBY + step for name, step in zip(NAMES, STEPS, strict=True)},
    **{f"less {name}": NEARBY - step for name, step in zip(NAMES, STEPS, strict=True)},
}


def grid(first: float, last: float, step: float = 1e-5) -> np.ndarray:
    return np.exp(np.arange(np.log(first), np.log(last), step))


def star(synth: LTESynthesizer, labels: jax.Array) -> Synthesis:
    """The spectrum of one star, compiled with the tables as arguments: as constants XLA would
    fold them."""
    return Synthesis(*(x[0] for x in synth.batch(labels[None], jnp.zeros(1))))


@pytest.fixture(scope="module")
def synth() -> LTESynthesizer:
    """A Mg b line among C2 and MgH lines, profiles in float64."""
    return LTESynthesizer.build(grid(5167.6, 5169.2), SPACE, dtype=np.dtype("float64"))


@pytest.fixture(scope="module")
def spectra(synth) -> dict[str, Synthesis]:
    shift = jnp.array([HALF_PIXEL if name == "sun, moved" else 0.0 for name in STARS])
    flux, continuum = synth.batch(jnp.stack(list(STARS.values())), shift)
    return {name: Synthesis(flux[row], continuum[row]) for row, name in enumerate(STARS)}


@pytest.fixture(scope="module")
def differentiated(synth) -> tuple[Synthesis, np.ndarray]:
    """The spectrum of the star "nearby" on its own, and d(normalised flux)/d(label)."""

    def normalized(labels, synth):
        spectrum = synth(labels)
        return spectrum.normalized, spectrum

    slopes, spectrum = eqx.filter_jit(jax.jacfwd(normalized, has_aux=True))(NEARBY, synth)
    return spectrum, np.asarray(slopes)


@pytest.mark.parametrize("column", range(len(NAMES)), ids=NAMES)
def test_derivatives_equal_central_differences(spectra, differentiated, column):
    """In every label, wherever the derivative matters, to 1e-3 (the issue's bar)."""
    exact, name = differentiated[1][:, column], NAMES[column]
    change = spectra[f"more {name}"].normalized - spectra[f"less {name}"].normalized
    numeric = np.asarray(change / (2 * STEPS[column, column]))
    matters = np.abs(numeric) > 0.05 * np.abs(numeric).max()
    assert np.max(np.abs(exact - numeric)[matters] / np.abs(numeric)[matters]) < 1e-3


def test_a_batch_equals_single_stars(spectra, differentiated):
    np.testing.assert_allclose(spectra["nearby"].flux, differentiated[0].flux, rtol=1e-9)


def test_a_shift_moves_the_grid(synth, spectra):
    """Evaluated at half a pixel, the flux is that of a synthesiser built for those wavelengths."""
    moved = LTESynthesizer.build(
        np.asarray(synth.wavelength) * np.exp(HALF_PIXEL), SPACE, dtype=np.dtype("float64")
    )
    # the weakest wings end at other pixels there
    np.testing.assert_allclose(spectra["sun, moved"].flux, star(moved, SUN).flux, rtol=1e-4)


def test_magnesium_moves_the_continuum(spectra):
    """Not only its lines: its electrons make H-."""
    change = spectra["rich in magnesium"].continuum / spectra["sun"].continuum
    assert np.all(np.asarray(change) < 0.9999)


def test_float32_profiles_are_enough(synth, spectra):
    single = star(LTESynthesizer.build(np.asarray(synth.wavelength), SPACE), SUN)
    np.testing.assert_allclose(single.normalized, spectra["sun"].normalized, atol=2e-5)


@pytest.mark.slow
def test_the_lines_left_out_do_not_matter():
    """At the worst corners of the shipped emulator's box, where C2 has its head: dwarfs whose
    metals give few electrons, and stars with more carbon than oxygen. The bar is 0.001 rms."""
    names = ("teff", "logg", "vmic", "fe_h", "mg_fe", "c_fe", "o_fe")
    lower, upper = (4000, 1, 0.5, -2.5, -0.5, -0.5, -0.5), (7000, 5, 3, 0.5, 0.8, 0.5, 0.5)
    corners = [
        [4000, 5, 0.5, 0.5, -0.5, -0.5, -0.5],
        [4000, 1, 0.5, 0.5, -0.5, 0.5, -0.5],
        [4000, 5, 3.0, 0.5, -0.5, 0.5, -0.5],
    ]
    wavelength = grid(5165.0, 5167.0)
    synth = LTESynthesizer.build(wavelength, LabelSpace(names, lower, upper))
    labels = jnp.array(corners)
    lines = LineList.load(data_path("lines.h5")).select(5110.0, 5220.0)
    stars = [synth.star(row) for row in labels]
    every_line = LineFormation.build(wavelength, lines, stars, 1e-6)
    both = [
        eqx.tree_at(lambda s: s.formation, synth, formation).batch(labels, jnp.zeros(3)).normalized
        for formation in (synth.formation, every_line)
    ]
    rms = np.sqrt(np.mean((both[0] - both[1]) ** 2, axis=1))
    assert rms.max() < 1e-3, rms


def test_the_g_band_is_made_of_molecules(synth):
    """Turbospectrum's solar mean at 4290-4330 A: 0.776 with atoms alone, 0.612 with CH, C2, CN,
    MgH (shared/notes/physics.md); the bar is 0.03."""
    lines = LineList.load(data_path("lines.h5")).select(4270.0, 4350.0)
    atoms = lines.take(lines.species < 10000)
    molecules = lines.take(
        (lines.species < 10000) | np.isin(lines.species, [10600, 60600, 60700, 11200])
    )
    wavelength, sun = grid(4290, 4330, 2e-5), synth.star(SUN)
    spectrum = eqx.filter_jit(LineFormation.__call__)
    means = [
        float(np.mean(spectrum(LineFormation.build(wavelength, x, [sun], 1e-4), *sun).normalized))
        for x in (atoms, molecules)
    ]
    assert abs(means[0] - 0.776) < 0.03, means
    assert abs(means[1] - 0.612) < 0.03, means


def test_a_label_over_hydrogen_is_the_one_over_iron_and_iron():
    """[Mg/H] = [Mg/Fe] + [Fe/H]: the same abundances, whatever iron is."""
    over_hydrogen = LabelSpace(
        ("teff", "logg", "fe_h", "mg_h"), (4500, 3.5, -0.5, -0.8), (6000, 5.0, 0.5, 0.8)
    )
    over_iron = LabelSpace(
        ("teff", "logg", "fe_h", "mg_fe"), (4500, 3.5, -0.5, -0.3), (6000, 5.0, 0.5, 0.3)
    )
    ours, theirs = (
        LabelledStar.build(space, data_path("atmospheres.h5"), 1.0)
        for space in (over_hydrogen, over_iron)
    )
    found = ours.abundances(jnp.array([5772.0, 4.44, -0.3, -0.1]))
    expected = theirs.abundances(jnp.array([5772.0, 4.44, -0.3, 0.2]))
    np.testing.assert_allclose(found, expected, atol=1e-12)


def test_outside_the_atmospheres_is_nan_not_a_number(spectra):
    assert np.all(np.isnan(np.asarray(spectra["hotter than the grid"].flux)))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"names": ("teff", "logg", "vmic")}, "fe_h"),
        ({"names": (*NAMES[:5], "xx_fe")}, "xx_fe"),
        ({"names": (*NAMES[:5], "xx_h")}, "xx_h"),
        ({"names": (*NAMES[:5], "mg_h")}, "both 'mg_h' and 'mg_fe'; give one"),
        ({"upper": (9000, 5.0, 2.0, 0.5, 0.3, 0.3)}, "teff"),
    ],
)
def test_a_box_it_cannot_serve_is_refused(change, message):
    names = change.get("names", NAMES)
    upper = change.get("upper", SPACE.upper)[: len(names)]
    space = LabelSpace(names, SPACE.lower[: len(names)], upper)
    with pytest.raises(InputError, match=message):
        LTESynthesizer.build(grid(5163.0, 5164.0), space)


def test_wavelengths_outside_the_line_list_are_refused():
    with pytest.raises(InputError, match="line list"):
        LTESynthesizer.build(grid(6000.0, 6001.0), SPACE)
