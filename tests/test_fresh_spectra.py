"""A stream of spectra: never the same twice, and the same again after a resume."""

from typing import Any

import jax
import numpy as np
import pytest
from fake_synthesizer import SPACE, FakeSynthesizer

from emulators.errors import InputError
from emulators.fresh_spectra import FreshSpectra
from emulators.train import train
from emulators.train_config import TrainConfig


def stream(**changes):
    settings = {"size": 8, "batch": 4, "seed": 3, **changes}
    synthesizer: Any = FakeSynthesizer(pixels=128)
    return FreshSpectra(synthesizer, **settings)


def test_the_store_is_renewed_part_by_part():
    fresh = stream()
    store = fresh.before(0)
    first = np.asarray(store.labels)
    for call in range(5):
        again = fresh.before(call)
        for found, expected in zip(store[:3], again[:3], strict=True):
            np.testing.assert_array_equal(found, expected)
        store = fresh.renew(store, call)
    assert not np.isin(np.asarray(store.labels), first).any()
    assert fresh.unique(1) == 8 and fresh.unique(5) == 24
    # Every spectrum is that of its labels and its dither, by the synthesiser itself.
    spectra = FakeSynthesizer(pixels=128).batch(store.labels, store.dither * fresh.step)
    np.testing.assert_allclose(store.flux, spectra.flux / spectra.continuum, atol=1e-6)
    all_labels = SPACE.sobol(28, seed=3)
    assert np.isin(np.asarray(store.labels), all_labels).all()


def test_training_on_a_stream_resumes_with_the_same_bits(tmp_path):
    held_out = stream(seed=9).before(0)
    config = TrainConfig(
        steps=10,
        width=32,
        depth=1,
        tokens=4,
        batch_size=4,
        steps_per_call=2,
        checkpoint_every=4,
        validate_every=10,
    )

    def run(folder, resume=False):
        return train(
            stream(),
            config=config,
            run_dir=folder,
            validation=held_out,
            devices=jax.devices()[:1],
            resume=resume,
            progress=False,
        )

    whole = run(tmp_path / "whole")
    assert whole.row["unique_spectra"] == 8 + 4 * 4 and whole.row["spectra_seen"] == 40
    assert whole.emulator.record["grid"]["fresh"] == {"size": 8, "batch": 4, "seed": 3}
    broken = tmp_path / "broken"
    calls = iter([None, None, None, KeyboardInterrupt()])
    original = FreshSpectra.renew

    def renew(self, store, call):
        if (error := next(calls, None)) is not None:
            raise error
        return original(self, store, call)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(FreshSpectra, "renew", renew)
        with pytest.raises(KeyboardInterrupt):
            run(broken)
    resumed = run(broken, resume=True)
    np.testing.assert_array_equal(resumed.loss, whole.loss)


def test_what_cannot_be_streamed_is_refused():
    with pytest.raises(InputError, match="size is 6; give a multiple of batch"):
        stream(size=6)
    synthesizer: Any = FakeSynthesizer()
    synthesizer.wavelength = np.linspace(5000, 6000, 200)
    with pytest.raises(InputError, match="not uniform in their logarithm"):
        FreshSpectra(synthesizer, size=8, batch=4, seed=0)


def test_a_draw_without_spectrum_gives_its_place_to_another():
    def of(hole, batch):
        synthesizer: Any = FakeSynthesizer(pixels=128, hole=hole)
        return FreshSpectra(synthesizer, size=batch, batch=batch, seed=3)

    # Of the first 256 draws between 4000 and 7000 K one is above 6995 K.
    whole = np.asarray(of(np.inf, 256).before(0).labels)
    bad = whole[:, 0] > 6995.0
    store = of(6995.0, 256).before(0)
    assert bad.sum() == 1 and np.isfinite(store.flux).all()
    np.testing.assert_array_equal(np.asarray(store.labels)[~bad], whole[~bad])
    np.testing.assert_array_equal(np.asarray(store.labels)[bad], whole[:1])
    with pytest.raises(InputError, match="of 256 spectra of batch 0 are no numbers"):
        of(6000.0, 256).before(0)
