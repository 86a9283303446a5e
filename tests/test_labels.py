"""LabelSpace against closed forms, and its refusals."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from emulators.errors import InputError
from emulators.labels import LabelSpace

SPACE = LabelSpace(("teff", "logg", "vmic", "v_fe"), (4000, 1, 0.5, -0.5), (7000, 5, 3, 0.5))


def test_units_and_index():
    assert SPACE.units == ("K", "dex", "km/s", "dex")
    assert SPACE.index("vmic") == 2
    with pytest.raises(InputError, match=r"'feh'.*teff, logg, vmic, v_fe"):
        SPACE.index("feh")


def test_unit_cube_round_trip_and_gradient():
    labels = jnp.asarray([[4000.0, 3.0, 3.0, 0.0], [5500.0, 1.0, 0.5, 0.5]])
    unit = SPACE.to_unit(labels)
    np.testing.assert_allclose(unit, [[0, 0.5, 1, 0.5], [0.5, 0, 0, 1]], atol=1e-15)
    np.testing.assert_allclose(SPACE.from_unit(unit), labels, rtol=1e-14)
    slope = jax.jacfwd(SPACE.to_unit)(labels[0])
    np.testing.assert_allclose(jnp.diag(slope), [1 / 3000, 1 / 4, 1 / 2.5, 1.0], rtol=1e-12)
    assert SPACE.to_unit(labels.astype(jnp.float32)).dtype == jnp.float32


def test_contains_counts_bounds_in_and_nan_out():
    labels = jnp.asarray(
        [[4000.0, 1.0, 0.5, -0.5], [7000.0, 5.0, 3.0, 0.5], [3999.9, 3, 1, 0], [jnp.nan, 3, 1, 0]]
    )
    assert SPACE.contains(labels).tolist() == [True, True, False, False]


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([8000.0, 4.0, 1.0, 0.0], r"teff = 8000 is outside 4000 \.\. 7000 K"),
        ([5000.0, 4.0, np.nan, 0.0], r"vmic = nan"),
        ([[5000.0, 4.0, 1.0, 0.0], [5000.0, 9.0, 1.0, 0.0]], r"logg = 9 \(row 1\)"),
        ([5000.0, 4.0], r"shape \(2,\), expected 4"),
    ],
)
def test_check_names_the_label(labels, message):
    with pytest.raises(InputError, match=message):
        SPACE.check(np.asarray(labels))


def test_check_accepts_the_box():
    SPACE.check(np.asarray([4000.0, 5.0, 0.5, 0.5]))


def test_sobol_depends_on_seed_and_index_only():
    whole = SPACE.sobol(100, seed=3)
    parts = [SPACE.sobol(37, seed=3), SPACE.sobol(63, seed=3, start=37)]
    np.testing.assert_array_equal(np.concatenate(parts), whole)
    assert not np.array_equal(SPACE.sobol(100, seed=4), whole)
    assert SPACE.contains(whole).all()


def test_sobol_fills_the_box_evenly():
    unit = np.asarray(SPACE.to_unit(SPACE.sobol(256, seed=0)))
    # A scrambled Sobol net of 2^8 points puts exactly one point in each of 256 bins.
    for column in unit.T:
        assert sorted(np.floor(column * 256).astype(int)) == list(range(256))


@pytest.mark.parametrize(
    ("names", "lower", "upper", "message"),
    [
        ((), (), (), "at least one"),
        (("teff", "teff"), (1, 1), (2, 2), "once"),
        (("teff",), (1, 2), (3,), "1 names, 2 lower"),
        (("teff",), (7000,), (4000,), "bounds of teff are 7000"),
        (("teff",), (np.nan,), (4000,), "bounds of teff are nan"),
    ],
)
def test_refuses_a_bad_box(names, lower, upper, message):
    with pytest.raises(InputError, match=message):
        LabelSpace(names, lower, upper)


def test_dict_round_trip_and_hash():
    again = LabelSpace.from_dict(SPACE.to_dict())
    assert again == SPACE and hash(again) == hash(SPACE)
    with pytest.raises(InputError, match="lacks upper"):
        LabelSpace.from_dict({"names": ["teff"], "lower": [1], "solar_scale": "x"})
