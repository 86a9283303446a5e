"""[X/H] from [X/Fe] and [Fe/H]."""

import numpy as np

from stellarfit.abundances import over_hydrogen


def test_the_sum_in_every_draw_with_what_is_held():
    iron, magnesium = np.array([[-1.0, -0.9]]), np.array([[0.3, 0.1]])
    found = over_hydrogen(
        {"fe_h": iron, "mg_fe": magnesium, "teff": iron}, {"ca_fe": 0.2, "v_mac": 0.0}
    )
    assert list(found) == ["ca_h", "mg_h"]
    np.testing.assert_allclose(found["mg_h"], [[-0.7, -0.8]])
    np.testing.assert_allclose(found["ca_h"], [[-0.8, -0.7]])
    # Iron held, and everything held.
    np.testing.assert_allclose(
        over_hydrogen({"mg_fe": magnesium}, {"fe_h": -2.0})["mg_h"], [[-1.7, -1.9]]
    )
    assert over_hydrogen({"teff": iron}, {"fe_h": -2.0, "mg_fe": 0.0}) == {}
    assert over_hydrogen({"mg_fe": magnesium}, {}) == {}
