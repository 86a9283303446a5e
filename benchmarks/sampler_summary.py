"""The table of `sampler_comparison`: do backends agree, and what is an effective draw's price."""

import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np

OURS = ("numpyro", "blackjax", "blackjax-hmc")
_DRAWS = 1000  # effective ones, whose price includes that of the warm-up


def read_records(folder: Path) -> dict[tuple[int, str], dict[str, Any]]:
    """By star and method, of all files in a folder; the longest chains where there are several."""
    found = {}
    for path in sorted(folder.glob("*.json")):
        for record in json.loads(path.read_text()):
            key = record["star"], record["method"]
            if record.get("draws", 0) >= found.get(key, record).get("draws", 0):
                found[key] = record
    return found


def summarise(folder: Path) -> str:
    """Of all records in a folder."""
    found = read_records(folder)
    stars = sorted({star for star, _ in found})
    methods = sorted({method for _, method in found} - {"cost"})
    return "\n\n".join(
        [
            _agreement(found, stars),
            _prices(found, stars, methods),
            _gains(found, stars, methods),
            _costs(found, stars),
        ]
    )


def _agreement(found, stars):
    lines = ["Pairs of backends: |difference of means| / sigma, ratio of sigmas; all parameters"]
    for first, second in itertools.combinations(OURS, 2):
        means, ratios, surprise = [], [], []
        both = [s for s in stars if (s, first) in found and (s, second) in found]
        for star in both:
            one, two = found[star, first], found[star, second]
            a, b = np.array(one["sigma"]), np.array(two["sigma"])
            shift = np.abs(np.array(one["mean"]) - two["mean"]) / np.sqrt(a * b)
            means.append(shift)
            ratios.append(np.maximum(a / b, b / a))
            # In units of what finite chains leave open.
            surprise.append(shift / np.sqrt(1 / np.array(one["ess"]) + 1 / np.array(two["ess"])))
        if not both:
            continue
        shift, ratio = np.concatenate(means), np.concatenate(ratios)
        lines.append(
            f"  {first} : {second}, {len(both)} stars: means worst {shift.max():.3f}, median "
            f"{np.median(shift):.3f}, above 0.1: {np.sum(shift > 0.1)} of {shift.size}; "
            f"sigmas worst {ratio.max():.3f}, median {np.median(ratio):.3f}, above 1.1: "
            f"{np.sum(ratio > 1.1)}; means in Monte Carlo errors: worst "
            f"{np.concatenate(surprise).max():.1f}, rms "
            f"{np.sqrt(np.mean(np.concatenate(surprise) ** 2)):.2f}"
        )
    return "\n".join(lines)


def _prices(found, stars, methods):
    lines = [
        "Method: stars; worst R-hat, stars above 1.01; effective draws of the worst parameter, "
        "median and least; the same a leapfrog without warm-up, median; leapfrogs for "
        f"{_DRAWS} of them with warm-up, median; force; diverging"
    ]
    for method in methods:
        records = [found[star, method] for star in stars if (star, method) in found]
        whole = [r for r in records if r["ess"] is not None]
        told = f"  {method}: {len(whole)}"
        if len(whole) < len(records):
            told += f" ({len(records) - len(whole)} more ran out of time)"
        if whole:
            least = np.array([min(r["ess"]) for r in whole])
            worst = np.array([max(r["r_hat"]) for r in whole])
            forces = [r["force"] for r in whole]
            told += (
                f"; {worst.max():.4f}, {np.sum(~(worst <= 1.01))}; {np.median(least):.0f}, "
                f"{least.min():.0f}; {np.median([_yield(r) for r in whole]):.4f}; "
                f"{np.median([_price(r) for r in whole]):.0f}; "
                + ", ".join(f"{name} {forces.count(name)}" for name in sorted(set(forces)))
                + f"; {sum(r['diverging'] for r in whole)}"
            )
        lines.append(told)
    return "\n".join(lines)


def _gains(found, stars, methods):
    """Of the preconditioned start over each default warm-up, star by star."""
    lines = [
        "Effective draws of the worst parameter a leapfrog, ours over the control's, median and "
        f"range over stars: without warm-up; with it, for {_DRAWS} effective draws"
    ]
    ours = [m for m in methods if m in (*OURS, "numpyro-exact-force")]
    controls = [method for method in methods if method not in ours]
    for mine, control in itertools.product(ours, controls):
        pairs = [
            (found[star, mine], found[star, control])
            for star in stars
            if (star, mine) in found
            and (star, control) in found
            and found[star, control]["ess"] is not None
        ]
        if pairs:
            bare = [_yield(a) / _yield(b) for a, b in pairs]
            whole = [_price(b) / _price(a) for a, b in pairs]
            lines.append(f"  {mine} : {control}, {len(pairs)}: {_range(bare)}; {_range(whole)}")
    return "\n".join(lines)


def _costs(found, stars):
    lines = ["Seconds of a leapfrog of all chains, and of fit and target (compiled: the least)"]
    costs = [found[s, "cost"]["leapfrog_seconds"] for s in stars if (s, "cost") in found]
    for name in ("expansion", "exact"):
        times = [cost[name] for cost in costs if name in cost]
        if times:
            lines.append(f"  {name}: {np.median(times):.5f}")
    starts = [record["seconds_start"] for record in found.values()]
    for name in ("fit", "target"):
        times = [start[name] for start in starts]
        lines.append(f"  {name}: {min(times):.1f}, median {np.median(times):.1f}")
    return "\n".join(lines)


def _yield(record):
    return min(record["ess"]) / record["leapfrogs"]


def _price(record):
    return record["leapfrogs_warmup"] + _DRAWS / _yield(record)


def _range(values):
    return f"{np.median(values):.1f} ({min(values):.1f}-{max(values):.1f})"
