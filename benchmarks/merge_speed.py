"""How long merging a survey of a million stars takes, and how much memory.

    python benchmarks/merge_speed.py                    # 12 GB of disk in --folder, ten minutes

Writes the parts of a survey, laid out as `stellarfit.survey_folder` does: 19 labels, velocities,
packed covariances, flags, some stars failed. Merges them by `stellarfit.merge_survey` into FITS and
into Parquet, each in a process of its own, and prints seconds, that process's peak resident memory,
and the ratio to a plain copy of the catalogue in the same run. The page cache is as writing the
parts left it.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

from stellarfit.catalog import blank_row, failed_row
from stellarfit.sources import Source
from stellarfit.survey_folder import SurveyFolder

ELEMENTS = ["c", "o", "na", "mg", "si", "ca", "sc", "ti", "cr", "mn", "co", "ni", "cu", "y", "nd"]
LABELS = ["teff", "logg", "vmic", "fe_h", *(f"{element}_fe" for element in ELEMENTS)]
PARAMETERS = [*LABELS, "v_rad", "v_sini", "v_mac"]
FAILED = 0.02  # of the stars


def make_rows(num: int, rng: np.random.Generator) -> list[dict]:
    """Rows of a part: every number drawn, so that nothing compresses better than it would."""
    rows = []
    for star in range(num):
        if rng.uniform() < FAILED:
            rows.append(failed_row("", PARAMETERS) | {"reason": "flux: not one positive pixel"})
            continue
        row = blank_row(PARAMETERS) | {"medium": "vacuum", "reason": ""}
        for name, value in row.items():
            if isinstance(value, float | np.ndarray):
                row[name] = rng.normal(size=np.shape(value)) if np.ndim(value) else rng.normal()
        rows.append(row | {"dof": 3000 + star, "num_pixels": 3100 + star, "result_flags": 1 << 12})
    return rows


def write_parts(out: Path, num: int, part_size: int) -> None:
    """All parts of the survey whose catalogue is `out`; the numbers are ten in turn, scaled."""
    rng = np.random.default_rng(0)
    folder = SurveyFolder(out)
    stars = [Source(f"/data/survey/field-{i // 500:05d}.fits", i % 500) for i in range(num)]
    header = {"CREATOR": "stellarfit", "EMULATOR": "benchmark", "EMUHASH": "0", "WAVEMED": "vacuum"}
    folder.begin({"part_size": part_size}, header, LABELS, stars, resume=False)
    drawn = [make_rows(part_size, rng) for _ in range(10)]
    for part in range(folder.num_parts):
        own = stars[part * part_size : (part + 1) * part_size]
        places = [
            {"name": f"{star.path} [{star.row}]", "source": star.path, "row": star.row}
            for star in own
        ]
        # No two parts alike, or the catalogue could be compressed as no other.
        scale = 1 + 1e-6 * part
        rows = [
            {key: scale * value if isinstance(value, float | np.ndarray) else value
             for key, value in row.items()} | place
            for row, place in zip(drawn[part % 10], places, strict=False)
        ]  # fmt: skip
        folder.write_part(part, rows, PARAMETERS, sum(bool(row["reason"]) for row in rows))


def measure_merge(out: Path) -> None:
    """In a process of its own: merge, and print seconds and peak resident memory as JSON."""
    from stellarfit import merge_survey

    began = time.perf_counter()
    merge_survey(out)
    seconds = time.perf_counter() - began
    # Not `getrusage`, which on Linux begins with what the process was forked from.
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    peak = int(status["VmHWM"].split()[0]) * 1024
    print(json.dumps({"seconds": seconds, "peak_bytes": peak}))


def measure_copy(path: Path) -> float:
    """Seconds of a plain copy that is on the disk at its end."""
    copy = path.with_name("copy")
    began = time.perf_counter()
    shutil.copyfile(path, copy)
    with copy.open("rb") as file:
        os.fsync(file.fileno())
    seconds = time.perf_counter() - began
    copy.unlink()
    return seconds


def main() -> None:
    """Write parts, merge them twice, remove everything."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--num", type=int, default=1_000_000, help="rows")
    parser.add_argument("--part-size", type=int, default=100)
    parser.add_argument("--folder", type=Path, default=Path("merge_speed"))
    parser.add_argument("--merge", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.merge is not None:
        measure_merge(arguments.merge)
        return
    # The folder of parts goes by the catalogue's name.
    outs = [arguments.folder / "catalog.fits", arguments.folder / "catalog.parquet"]
    began = time.perf_counter()
    write_parts(outs[0], arguments.num, arguments.part_size)
    parts = SurveyFolder(outs[0])
    print(f"{parts.num_parts} parts written in {time.perf_counter() - began:.0f} s", flush=True)
    for out in outs:
        folder = SurveyFolder(out)
        parts.path.rename(folder.path)
        parts = folder
        os.sync()
        command = [sys.executable, __file__, "--merge", str(out)]
        found = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
        size, copied = out.stat().st_size, measure_copy(out)
        print(
            f"{out.name}: {arguments.num} rows, {size / 1e9:.2f} GB: {found['seconds']:.1f} s, "
            f"peak {found['peak_bytes'] / 1e9:.2f} GB; a plain copy {copied:.1f} s, "
            f"ratio {found['seconds'] / copied:.1f}",
            flush=True,
        )
        out.unlink()
    shutil.rmtree(arguments.folder)


if __name__ == "__main__":
    main()
