"""The emulator bundle: round trip, damage, checks, and the shipped names."""

import json

import equinox as eqx
import h5py
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import LABELS, tiny_emulator, tiny_grid

from emulators import pretrained
from emulators.emulator import Emulator, load_emulator
from emulators.errors import InputError

STAR = np.asarray([5200.0, 3.1, -0.7, 0.2])


@pytest.fixture
def saved(tmp_path):
    emulator = tiny_emulator()
    path = tmp_path / "tiny.h5"
    emulator.save(path)
    return emulator, path


def test_round_trip_is_exact(saved):
    emulator, path = saved
    again = Emulator.load(path)
    assert eqx.tree_equal(again.model, emulator.model)
    assert eqx.tree_equal(again.error_model, emulator.error_model)
    assert again.record == emulator.record and again.fingerprint == emulator.fingerprint
    assert again.wavelength_range == emulator.wavelength_range and again.step == emulator.step
    grid = tiny_grid(pixels=50)
    np.testing.assert_array_equal(again(STAR, grid), emulator(STAR, grid))
    assert load_emulator(path).name == "tiny"


def test_no_error_model_round_trip(tmp_path):
    emulator = tiny_emulator()
    bare = Emulator(emulator.model, emulator.wavelength_range, emulator.step)
    bare.save(tmp_path / "bare.h5")
    again = Emulator.load(tmp_path / "bare.h5")
    assert again.error_model is None and again.name == "bare"


def test_truncated_file_is_refused(saved):
    _, path = saved
    content = path.read_bytes()
    for keep in (len(content) // 2, 100, 0):
        path.write_bytes(content[:keep])
        with pytest.raises(InputError, match=r"tiny\.h5 is truncated"):
            Emulator.load(path)


def test_changed_weight_is_refused(saved):
    _, path = saved
    with h5py.File(path, "r+") as file:
        weights = file["model.up"]
        assert isinstance(weights, h5py.Dataset)
        weights[0, 0, 0] += 1e-6
    with pytest.raises(InputError, match="sha256"):
        Emulator.load(path)


def test_changed_record_is_refused(saved):
    _, path = saved
    with h5py.File(path, "r+") as file:
        record = json.loads(np.asarray(file["record"]).tobytes())
        record["wavelength_range"] = [1000.0, 9000.0]
        del file["record"]
        file["record"] = np.frombuffer(json.dumps(record).encode(), np.uint8)
    with pytest.raises(InputError, match="sha256"):
        Emulator.load(path)


def test_other_evaluation_is_refused(saved, monkeypatch):
    # A later version whose formula differs: here, one that forgets the depth scaling.
    _, path = saved
    monkeypatch.setattr("emulators.transformer_payne._Stored.branch_scale", lambda *_: 1.0)
    with pytest.raises(InputError, match="evaluates differently"):
        Emulator.load(path)


def test_other_kinds_of_file_are_refused(tmp_path):
    with pytest.raises(InputError, match=r"no file .*absent\.h5"):
        Emulator.load(tmp_path / "absent.h5")
    with h5py.File(tmp_path / "grid.h5", "w") as file:
        file.attrs["kind"] = "grid"
    with pytest.raises(InputError, match="kind 'grid', expected 'emulator'"):
        Emulator.load(tmp_path / "grid.h5")


@pytest.mark.parametrize(
    ("labels", "wavelength", "message"),
    [
        ([9000.0, 3.0, 0.0, 0.0], 5151.0, "teff = 9000"),
        ([np.nan, 3.0, 0.0, 0.0], 5151.0, "teff = nan"),
        (STAR, 5100.0, r"wavelength 5100\.000 is outside 5150"),
        (STAR, np.nan, "NaN"),
    ],
)
def test_call_checks(labels, wavelength, message):
    with pytest.raises(InputError, match=message):
        tiny_emulator()(np.asarray(labels), np.asarray([5151.0, wavelength]))


def test_extrapolation_must_be_asked_for():
    emulator = tiny_emulator()
    labels = np.asarray([9000.0, 3.0, 0.0, 0.0])
    assert np.isfinite(emulator(labels, np.asarray([5000.0]), extrapolate=True)).all()
    with pytest.raises(InputError, match="NaN"):
        emulator(np.asarray([np.nan, 3, 0, 0]), np.asarray([5151.0]), extrapolate=True)


@pytest.mark.parametrize("analytic", [False, True])
def test_flux_at_is_flux_of_shifted_wavelengths_inside_jit(analytic):
    emulator = tiny_emulator(analytic=analytic)
    grid, shift = jnp.asarray(tiny_grid(pixels=100)), jnp.asarray(2e-4)

    @eqx.filter_jit
    def both(emulator, labels, shift):
        encoding = emulator.encode(grid)
        return emulator.flux_at(labels, encoding, shift), emulator.flux(
            labels, grid * jnp.exp(shift)
        )

    at, direct = both(emulator, jnp.asarray(STAR), shift)
    np.testing.assert_allclose(at, direct, atol=1e-5)
    encoding = emulator.encode(grid)
    total = jax.jit(lambda shift: jnp.sum(emulator.flux_at(jnp.asarray(STAR), encoding, shift)))
    difference = (total(shift + 1e-6) - total(shift - 1e-6)) / 2e-6
    np.testing.assert_allclose(jax.grad(total)(shift), difference, rtol=0.02)


def test_rounded_weights_take_half_the_room_and_come_back_bit_for_bit(tmp_path):
    exact = tiny_emulator()
    rounded = exact.rounded()
    exact.save(tmp_path / "exact.h5")
    rounded.save(tmp_path / "rounded.h5")
    weights = sum(leaf.nbytes for leaf in jax.tree.leaves(exact.model))
    saved = (tmp_path / "exact.h5").stat().st_size - (tmp_path / "rounded.h5").stat().st_size
    assert saved == pytest.approx(weights / 2, rel=0.01)
    again = Emulator.load(tmp_path / "rounded.h5")
    assert eqx.tree_equal(again.model, rounded.model)
    assert not eqx.tree_equal(again.model, exact.model)
    assert {leaf.dtype for leaf in jax.tree.leaves(again.model)} == {jnp.dtype(jnp.float32)}


def test_analytic_model_cannot_be_saved(tmp_path):
    with pytest.raises(InputError, match="AnalyticModel cannot be saved"):
        tiny_emulator(analytic=True).save(tmp_path / "no.h5")
    assert not (tmp_path / "no.h5").exists()


def test_unknown_shipped_name_lists_what_exists():
    with pytest.raises(InputError, match=r"'nonesuch' \(shipped: .*path of an \.h5"):
        load_emulator("nonesuch")


def test_shipped_emulators_load(monkeypatch, tmp_path):
    for name in pretrained.available():
        assert load_emulator(name).record["medium"] == "vacuum"
    monkeypatch.setattr(pretrained, "_FOLDER", tmp_path)
    with pytest.raises(InputError, match="shipped: none"):
        load_emulator()
    tiny_emulator().save(tmp_path / f"{pretrained.DEFAULT}.h5")
    assert load_emulator().label_space == LABELS
