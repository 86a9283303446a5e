"""Many spectra in one file: what h5py and pyarrow write is read, and what we write they read."""

from typing import Any

import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import stellarfit as sf
from emulators.errors import InputError
from emulators.wavelength import air_to_vacuum
from stellarfit.readers import bulk_parquet

NUM, STARS = 60, 5
GRID = np.linspace(5100.0, 5110.0, NUM)
RNG = np.random.default_rng(4)
FLUX = RNG.uniform(0.5, 1.5, (STARS, NUM))
IVAR = RNG.uniform(1e2, 1e4, (STARS, NUM))
MASK = (RNG.random((STARS, NUM)) < 0.1) * 4
NAMES = [f"star {i}" for i in range(STARS)]
WORDS = {"format": "stellarfit spectra", "version": 1, "medium": "air", "frame": "rest"}


def make_hdf5(path, words=WORDS, **sets):
    with h5py.File(path, "w") as file:
        file.attrs.update(words)
        file["id"] = NAMES
        values = {"wavelength": GRID, "flux": FLUX, "ivar": IVAR, "mask": MASK} | sets
        for name, value in values.items():
            if value is not None:
                file[name] = value
    return path


def make_parquet(path, words=WORDS, group=2, **columns):
    held = {"id": NAMES, "wavelength": [GRID, None] * 2 + [GRID], "flux": [*FLUX],
            "ivar": [*IVAR], "mask": [*MASK]} | columns  # fmt: skip
    table = pa.table({name: values for name, values in held.items() if values is not None})
    table = table.replace_schema_metadata({key: str(value) for key, value in words.items()})
    pq.write_table(table, path, row_group_size=group)
    return path


MAKERS = [make_hdf5, make_parquet]


def some_spectra(num=STARS, grids=None, frame="barycentric", **options: Any):
    return [
        sf.Spectrum(
            GRID if grids is None else grids[i],
            FLUX[i, : None if grids is None else len(grids[i])],
            IVAR[i, : None if grids is None else len(grids[i])],
            name=NAMES[i],
            meta={"frame": frame},
            **options,
        )
        for i in range(num)
    ]


def same(one: Any, other: Any):
    for name in ("wavelength", "flux", "ivar", "width"):
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name))
    np.testing.assert_array_equal(one.good, other.good)
    assert one.name == other.name and one.meta["frame"] == other.meta["frame"]


@pytest.mark.parametrize("make", MAKERS)
def test_what_others_write(tmp_path, make):
    path = make(tmp_path / "any name", resolution=np.full(STARS, 9000.0))
    spectra: Any = sf.read_spectra(path)
    assert list(spectra.names) == NAMES and len(spectra) == STARS
    for i, (name, spectrum) in enumerate(spectra):
        assert name == spectrum.name == NAMES[i]
        np.testing.assert_allclose(spectrum.wavelength, air_to_vacuum(GRID), rtol=1e-12)
        np.testing.assert_array_equal(spectrum.flux, FLUX[i])
        np.testing.assert_array_equal(spectrum.ivar, IVAR[i])
        np.testing.assert_array_equal(spectrum.good, MASK[i] == 0)
        assert (spectrum.medium, spectrum.resolution) == ("air", 9000)
        assert spectrum.meta["frame"] == "rest"
    same(spectra[3], sf.read_spectrum(path, row=3))
    with pytest.raises(InputError, match=r"holds 5 spectra .*rows 0 to 4; give row="):
        sf.read_spectrum(path)
    with pytest.raises(InputError, match="row 9 is not one of them"):
        sf.read_spectrum(path, row=9)


@pytest.mark.parametrize("make", MAKERS)
def test_without_mask_or_resolution(tmp_path, make):
    spectrum: Any = sf.read_spectrum(make(tmp_path / "a", mask=None), row=1)
    assert spectrum.good.all() and spectrum.resolution is None
    with pytest.raises(InputError, match="no (data set|column) ivar"):
        sf.read_spectra(make(tmp_path / "b", ivar=None))


def test_a_missing_mask_value_is_bad(tmp_path):
    mask = [[None if i == 3 else 0 for i in range(NUM)]] * STARS
    spectrum: Any = sf.read_spectrum(make_parquet(tmp_path / "a", mask=mask), row=0)
    assert np.flatnonzero(~spectrum.good).tolist() == [3]


@pytest.mark.parametrize("shape", [(), (NUM,), (STARS, NUM)])
def test_hdf5_resolution_of_any_shape(tmp_path, shape):
    power = np.broadcast_to(np.linspace(8000.0, 9000.0, NUM) if shape else 8000.0, shape)
    spectrum: Any = sf.read_spectrum(make_hdf5(tmp_path / "a.h5", resolution=power), row=2)
    np.testing.assert_array_equal(spectrum.resolution, power[-1] if len(shape) == 2 else power)


@pytest.mark.parametrize("suffix", [".h5", ".parquet"])
@pytest.mark.parametrize("shared", [True, False])
def test_round_trip(tmp_path, suffix, shared):
    # Stars that differ come after some that do not, longer and shorter.
    other = [GRID, GRID, GRID[:-9], GRID + 3, np.linspace(5000, 5010, NUM)]
    power = np.linspace(8000.0, 9000.0, NUM)
    written: Any = some_spectra(grids=None if shared else other, resolution=7000)
    written[0] = sf.Spectrum(
        GRID, FLUX[0], IVAR[0], mask=MASK[0], resolution=power, name=NAMES[0],
        meta={"frame": "barycentric"},
    )  # fmt: skip
    path = sf.write_spectra(tmp_path / f"a{suffix}", iter(written))
    assert [one.name for one in tmp_path.iterdir()] == [path.name]
    read: Any = dict(sf.read_spectra(path))
    assert list(read) == NAMES
    for one in written:
        same(read[one.name], one)
        np.testing.assert_array_equal(read[one.name].resolution, one.resolution)


def test_hdf5_as_the_documentation_says(tmp_path):
    path = sf.write_spectra(tmp_path / "a.h5", some_spectra())
    with h5py.File(path) as file:
        sets: Any = file
        words = {k: v.decode() if isinstance(v, bytes) else v for k, v in file.attrs.items()}
        assert words == WORDS | {"medium": "vacuum", "frame": "barycentric"}
        assert sets["wavelength"].shape == (NUM,)
        np.testing.assert_array_equal(sets["flux"][:], FLUX)
        assert sets["id"].asstr()[:].tolist() == NAMES


def test_parquet_is_read_a_group_at_a_time(tmp_path, monkeypatch):
    path = make_parquet(tmp_path / "a.parquet", group=2)
    groups = []
    plain = bulk_parquet._unpack
    monkeypatch.setattr(bulk_parquet, "_unpack", lambda t: groups.append(t.num_rows) or plain(t))
    spectra = sf.read_spectra(path)
    assert not groups
    assert spectra[4] is not None and groups == [1]
    assert len(list(spectra)) == STARS and groups == [1, 2, 2, 1]


@pytest.mark.parametrize("suffix", [".h5", ".parquet"])
def test_nothing_is_left_of_a_file_half_written(tmp_path, suffix):
    def stars():
        yield from some_spectra(2)
        raise RuntimeError("killed")

    path = tmp_path / f"a{suffix}"
    with pytest.raises(RuntimeError, match="killed"):
        sf.write_spectra(path, stars())
    assert not list(tmp_path.iterdir())
    whole = sf.write_spectra(path, some_spectra()).read_bytes()
    for share in (0.1, 0.5, 0.97):
        path.write_bytes(whole[: int(share * len(whole))])
        with pytest.raises(InputError, match="damaged or cut short"):
            sf.read_spectra(path)[0]


def test_what_cannot_be_written_is_said(tmp_path):
    def refused(message, spectra, name="a.h5"):
        with pytest.raises(InputError, match=message):
            sf.write_spectra(tmp_path / name, spectra)
        assert not list(tmp_path.iterdir())

    refused(r"end the name in \.h5 or \.parquet", some_spectra(), "a.fits")
    refused("no spectrum was given", [])
    refused("no spectrum was given", [], "a.parquet")
    refused("spectrum 1 is a Arms", [*some_spectra(1), sf.Arms.gather(some_spectra(2))])
    mixed = [*some_spectra(1), *some_spectra(2, frame="rest")[1:]]
    refused("star 1 is in the rest frame and those before it in the barycentric", mixed)
    orders = np.concatenate([GRID, GRID + 0.05])
    twice = np.tile(FLUX[0], 2)
    refused("overlapping orders", [sf.Spectrum(orders, twice, twice)])


@pytest.mark.parametrize("make", MAKERS)
def test_what_cannot_be_read_is_said(tmp_path, make):
    def refused(message, **options: Any):
        path = make(tmp_path / "a", **options)
        with pytest.raises(InputError, match=message) as caught:
            sf.read_spectrum(path, row=0)
        assert str(path) in str(caught.value)

    refused("format = 'spectra'; a file of spectra says", words=WORDS | {"format": "spectra"})
    refused("version = 2", words=WORDS | {"version": 2})
    refused("medium = 'water'", words=WORDS | {"medium": "water"})
    refused("frame = 'mine'", words=WORDS | {"frame": "mine"})
    hole = GRID.copy()
    hole[5] = np.nan
    refused("NaN among its wavelengths", wavelength=hole if make is make_hdf5 else [hole] * STARS)
    turned = GRID[np.r_[:10, 8:58]]
    refused("follow one another", wavelength=turned if make is make_hdf5 else [turned] * STARS)
    short = [*FLUX[:, :-1]]
    refused("has shape|vectors of shapes", flux=FLUX[:3] if make is make_hdf5 else short)


def test_text_of_hdf5_is_of_fixed_length(tmp_path):
    """Of any length it lies in a heap, in which HDF5 hangs where zeros were written over it."""
    names = ("a", "\u00e9" * 40, "x" * 100, "b")
    wavelength, ones = np.linspace(5150, 5160, 50), np.ones(50)
    path = tmp_path / "stars.h5"
    sf.write_spectra(path, (sf.Spectrum(wavelength, ones, ones, name=name) for name in names))
    assert sf.read_spectra(path).names == names
    assert b"GCOL" not in path.read_bytes()
    with h5py.File(path, "r+") as opened:
        file: Any = opened
        for key in ("format", "medium", "frame"):
            file.attrs[key] = file.attrs[key].decode()
        again = file["id"].asstr()[:]
        del file["id"]
        file["id"] = again.astype(h5py.string_dtype())
    assert sf.read_spectra(path).names == names  # text of any length is read as well
