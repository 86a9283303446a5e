"""Are surveys of 5,000 stars the same after kills and a full disk? Row for row, by their bytes.

    python benchmarks/survey_kills.py [--stars 5000] [--folder DIR]    # as root, to mount a disk

A small emulator is compiled for 200 pixels and three labels; stars are its own spectra with noise,
in files of 500, at a S/N so low that none is anchored. One run is left alone. Another is killed by
SIGKILL when a third, and again when two thirds of its parts are there; another loses a worker of
its Dask cluster by SIGKILL; another is on a disk (tmpfs) that fills up, and that is then made
larger. Each goes on by --resume. One JSON line a run: seconds, and whether its catalogue has the
bytes of the undisturbed one's.
"""

import argparse
import hashlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

import stellarfit as sf
from stellarfit.compile import Recipe
from stellarfit.compiled import CompiledEmulator

WAVELENGTH = 5165.0 + 0.1 * np.arange(200)
FREE = ("teff", "logg", "fe_h")
RECIPE = Recipe((48, 48), 24, 1024, 128, 256, 1500, 0.01, 16)
PART = 100


def tell(**found: Any) -> None:
    print(json.dumps(found, default=float), flush=True)


def make_stars(compiled: CompiledEmulator, folder: Path, num: int) -> None:
    """Files of 500 stars of S/N 10 to 100; every hundredth is negative, which is an error."""
    rng = np.random.default_rng(0)
    labels = compiled.network.label_space.sobol(num, seed=1)
    for name, value in compiled.held:
        labels[:, compiled.label_space.index(name)] = value
    encoding = compiled.encode(jnp.asarray(WAVELENGTH))
    for first in range(0, num, 500):
        stars = []
        for i in range(first, min(first + 500, num)):
            flux = np.asarray(compiled.flux_at(jnp.asarray(labels[i]), encoding), np.float64)
            snr = 10 ** rng.uniform(1.0, 2.0)
            flux = (-1.0 if i % 100 == 7 else 1.0) * flux + rng.normal(0, 1 / snr, len(flux))
            ivar = np.full(len(flux), snr**2)
            stars.append(sf.Spectrum(WAVELENGTH, flux, ivar, resolution=20_000.0, name=f"{i:05d}"))
        sf.write_spectra(folder / f"field-{first:05d}.h5", stars)


class Survey:
    """The command line's survey of the files of a folder."""

    def __init__(self, folder: Path, out: Path, num: int):
        self.out, self.parts = out, -(-num // PART)
        self.command = [
            "stellarfit", "survey", str(folder / "field-*.h5"), "--out", str(out),
            "--emulator", str(folder / "small.h5"), "--fix", "v_sini=0", "--no-robust",
            "--noise", "none", "--part-size", str(PART), "--resume", "--json",
        ]  # fmt: skip

    def start(self) -> subprocess.Popen:
        return subprocess.Popen(
            self.command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
        )

    def done(self) -> int:
        return len(list(Path(f"{self.out}.parts").glob("part-*.parquet")))

    def wait_for(self, parts: int, process: Any = None) -> None:
        while self.done() < parts:
            if process is not None and process.poll() is not None:
                raise SystemExit(f"{self.out}: the run ended by itself: {process.communicate()[1]}")
            time.sleep(0.01)

    def finish(self) -> None:
        _, said = (process := self.start()).communicate()
        if process.returncode:
            raise SystemExit(f"{self.out}: {said}")

    def hash(self) -> str:
        return hashlib.sha256(self.out.read_bytes()).hexdigest()


def kill_driver(survey: Survey) -> dict[str, Any]:
    found = []
    for part in (survey.parts // 3, 2 * survey.parts // 3):
        process = survey.start()
        survey.wait_for(part, process)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        found.append(survey.done())
    survey.finish()
    return {"killed_at_parts": found}


def kill_worker(survey: Survey) -> dict[str, Any]:
    from distributed import Client, LocalCluster

    make_cluster: Any = LocalCluster
    with (
        make_cluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster,
        Client(cluster) as client,
    ):
        survey.command += ["--scheduler", cluster.scheduler_address]
        process = survey.start()
        survey.wait_for(survey.parts // 3, process)
        before: Any = client.run(os.getpid)
        os.kill(next(iter(before.values())), signal.SIGKILL)
        parts = survey.done()
        _, said = process.communicate()
        after: Any = client.run(os.getpid)
    if process.returncode:
        raise SystemExit(f"{survey.out}: {said}")
    return {"killed_at_parts": parts, "workers_replaced": len(set(after) - set(before))}


def fill_disk(survey: Survey, disk: Path) -> dict[str, Any]:
    survey.out = disk / survey.out.name
    survey.command[survey.command.index("--out") + 1] = str(survey.out)
    mount = ["mount", "-t", "tmpfs", "-o"]
    subprocess.run([*mount, "size=2m", "tmpfs", str(disk)], check=True)
    try:
        _, said = (process := survey.start()).communicate()
        assert process.returncode == 2 and "--resume" in said, said
        parts = survey.done()
        subprocess.run([*mount, "remount,size=2g", str(disk)], check=True)
        survey.finish()
        return {"full_at_parts": parts, "said": said.strip()[-160:], "sha256": survey.hash()}
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--stars", type=int, default=5000)
    parser.add_argument("--folder", type=Path)
    arguments = parser.parse_args()
    folder = arguments.folder or Path(tempfile.mkdtemp())
    folder.mkdir(parents=True, exist_ok=True)
    os.environ["PATH"] = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    parent = sf.load_emulator("fgk-mgb-s")
    example = sf.Spectrum(WAVELENGTH, np.ones(200), snr=100, resolution=20_000.0)
    fixed = {name: 0.0 for name in parent.label_space.names if name not in FREE}
    compiled = sf.compile_emulator(
        example, parent, fixed=fixed | {"vmic": 1.5}, recipe=RECIPE, cache=None, progress=False
    )
    compiled.save(folder / "small.h5")
    make_stars(compiled, folder, arguments.stars)

    def survey(name: str) -> Survey:
        return Survey(folder, folder / f"{name}.fits", arguments.stars)

    undisturbed = survey("undisturbed")
    began = time.perf_counter()
    undisturbed.finish()
    table = sf.read_catalog(undisturbed.out)
    tell(
        what="undisturbed", seconds=time.perf_counter() - began, rows=len(table),
        failed=table.meta["NFAILED"], parts=undisturbed.parts,
        names_unique=len(set(table["name"])) == len(table),
    )  # fmt: skip
    disk = folder / "disk"
    disk.mkdir(exist_ok=True)
    for name, disturb in (
        ("driver", kill_driver),
        ("worker", kill_worker),
        ("disk", lambda one: fill_disk(one, disk)),
    ):
        one, began = survey(name), time.perf_counter()
        found = disturb(one)
        same = found.pop("sha256", None) or one.hash()
        tell(
            what=name, seconds=time.perf_counter() - began, **found,
            same_bytes=same == undisturbed.hash(),
        )  # fmt: skip


if __name__ == "__main__":
    main()
