"""The scaling law of a ledger: fitted, asked, saved."""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple, final

import jax.numpy as jnp
import numpy as np
from jaxtyping import ArrayLike, Float
from scipy.special import ndtri

from emulators.errors import InputError
from emulators.storage import atomic_write

from .law_fit import (
    ABSENT,
    NAMES,
    REFERENCE,
    Sample,
    fit_best,
    fit_draws,
    held_out_scatter,
    log_mse,
)
from .runs import Runs, draw_trunks, finished, hash_rows, read_recipe, read_runs
from .sizes import Recipe

KIND, VERSION = "scaling law", 2
_EXPERIMENTS = Path(__file__).parent / "experiments"
SHIPPED = {
    "paper": _EXPERIMENTS / "paper/law.json",
    "fgk-mgb": _EXPERIMENTS / "family_law/law.json",
}
# Percentiles of the central 68% and 95%: those of one and two standard errors of a Gaussian.
PERCENTILES = (15.865, 84.135, 2.275, 97.725)
_MIN_RUNS, _MIN_SIZES = 15, 3
# Trunks of a bootstrap draw. About ten trunks decide on an exponent (by the influence of each on
# the fit), and so few have Student's tails: 1.14 times the Gaussian's at 95%. Drawing three
# quarters of them widens the draws by 1.15; with all of them 95% intervals cover 88 to 95%.
_SHARE = 0.75
# Equal shares of the scatter of a run that nobody has trained, in standard deviations.
_SCATTER = ndtri((np.arange(51) + 0.5) / 51)
# Columns that say what was learned; kept where all rows agree.
_NOTES = (
    "label_space", "labels", "wavelength", "solar_scale", "grid_hash", "config", "optimizer",
    "precision",
)  # fmt: skip


class Interval(NamedTuple):
    """A number with its central 68% and 95%; arrays of one shape, or floats.

    An end is infinite where that share of the draws has no finite number.
    """

    value: Any
    low68: Any
    high68: Any
    low95: Any
    high95: Any

    @classmethod
    def of(cls, value: Any, draws: Float[np.ndarray, "draw *shape"]) -> "Interval":
        """From draws on the first axis; an end is one of the draws, never between two."""
        ends = np.percentile(draws, PERCENTILES, axis=0, method="inverted_cdf")
        if np.ndim(value) == 0:
            return cls(float(value), *map(float, ends))
        return cls(value, *ends)


@final
@dataclass(frozen=True, eq=False)
class ScalingLaw:
    """Test MSE of any network as a law of its weights, its spectra and its training.

    ``1/L^k = 1/L0^k + 1/(E + A / P^a + B / U^b + G / (S^g P^h))^k`` of P weights, U unique spectra
    and S spectra seen, see `scaling.law_fit.log_mse`. It holds for the label space, wavelengths and
    training recipe of its ledger.

    Parameters
    ----------
    theta
        The best fit: `scaling.law_fit.NAMES`.
    draws
        The same of bootstrap draws of trunks.
    noise
        Scatter of ln(MSE) of runs about laws fitted without their size.
    ranges
        Smallest and largest parameters, unique_spectra (as far as they were seen), spectra_seen,
        flops and mse_test of the ledger.
    recipe
        What all runs have in common.
    record
        Where it comes from: hash of the ledger, runs fitted, diverged and repeating,
        how many sets of spectra are repeated, seed, notes.
    """

    theta: Float[np.ndarray, "10"]
    draws: Float[np.ndarray, "draw 10"]
    noise: float
    ranges: dict[str, tuple[float, float]]
    recipe: Recipe
    record: dict[str, Any]

    @classmethod
    def fit(
        cls,
        rows: Sequence[dict[str, Any]],
        *,
        seed: int = 0,
        draws: int = 200,
        notes: Mapping[str, Any] | None = None,
    ) -> "ScalingLaw":
        """Fit the law to a ledger.

        Parameters
        ----------
        rows
            Of `emulators.ledger.read_rows`. Runs of one ``trunk`` are drawn together.
        seed, draws
            Of the bootstrap.
        notes
            What else is to be known of all runs, JSON-able, such as their ``labels``.

        Raises
        ------
        InputError
            If the ledger has no rows, fewer than 15 finished runs or 3 sizes, or the fit has not
            converged.
        """
        runs = read_runs(rows)
        check_enough(runs)
        theta, refits, noise = fit_runs(runs, np.ones(len(runs.seen)), seed, draws)
        kept = finished(rows)
        common = {
            name: kept[0][name]
            for name in _NOTES
            if name in kept[0] and all(row.get(name) == kept[0][name] for row in kept)
        }
        ranges = {
            "parameters": runs.parameters,
            "unique_spectra": np.minimum(runs.unique, runs.seen),
            "spectra_seen": runs.seen,
            "flops": runs.flops,
            "mse_test": runs.test,
        }
        record = {
            "ledger_sha256": hash_rows(rows),
            "runs": len(kept),
            "diverged": len(rows) - len(kept),
            "repeating": int((~runs.one_epoch).sum()),
            "repeated_sets": len(set(runs.unique[~runs.one_epoch].tolist())),
            "trunks": len(set(runs.trunk.tolist())),
            "sizes": len(set(runs.parameters.tolist())),
            "seed": seed,
            "notes": {**common, **(notes or {})},
            "versions": {name: version(name) for name in ("stellarfit", "jax", "numpy")},
        }
        ends = {name: (float(x.min()), float(x.max())) for name, x in ranges.items()}
        return cls(theta, refits, noise, ends, read_recipe(kept), record)

    @property
    def exponents(self) -> dict[str, Interval]:
        """How fast each term falls: a, g, h and b of `scaling.law_fit.log_mse`.

        That of unique spectra is left out where the ledger does not repeat two sets or more.
        """
        draws = self.draws.T
        found = {
            "parameters": Interval.of(self.theta[2], draws[2]),
            "spectra_seen": Interval.of(self.theta[6], draws[6]),
            "parameters_in_training": Interval.of(self.theta[7], draws[7]),
        }
        if self.record["repeated_sets"] > 1:
            found["unique_spectra"] = Interval.of(self.theta[4], draws[4])
        return found

    def useful_passes(self, parameters: ArrayLike, unique_spectra: ArrayLike) -> Interval:
        """Passes over some spectra after which repeating them stops to help.

        There what is left to learn from them, ``G / (S^g P^h)``, equals what they do not tell,
        ``B / U^b``: the transition to repeated data.
        """
        given = [np.asarray(value, float) for value in (parameters, unique_spectra)]
        size, unique = np.broadcast_arrays(*given)
        p, u = np.log(size / REFERENCE[0]), np.log(unique / REFERENCE[1])

        def passes(theta):
            _, _, _, ln_b, b, ln_g, g, h, *_ = theta
            return np.exp((ln_g - h * p - ln_b + b * u) / g) * REFERENCE[2] / unique

        spread = np.stack([passes(theta) for theta in self.draws])
        return Interval.of(passes(self.theta), spread)

    @property
    def floor(self) -> Interval:
        """The irreducible error E, which no size and no training goes below; 0 if none is found."""
        value = 0.0 if self.theta[0] <= ABSENT else np.exp(self.theta[0])
        return Interval.of(value, np.exp(self.draws[:, 0]))

    def predict(
        self, parameters: ArrayLike, unique_spectra: ArrayLike, spectra_seen: ArrayLike
    ) -> Interval:
        """Test MSE of runs that nobody has trained.

        The intervals hold the uncertainty of the law and the scatter from run to run.

        Parameters
        ----------
        parameters
            Weights.
        unique_spectra
            Distinct spectra of the training set; infinite for spectra made as training goes.
        spectra_seen
            Steps times batch. All three broadcast.

        Raises
        ------
        InputError
            If a number is not positive, or runs would repeat spectra and none of the ledger does.
        """
        arguments = np.broadcast_arrays(*self._check(parameters, unique_spectra, spectra_seen))
        value = np.exp(np.asarray(log_mse(self.theta, *arguments)))
        spread = draw_runs(self.draws, self.noise, *(array.ravel() for array in arguments))
        return Interval.of(value, spread.reshape(-1, *value.shape))

    def decades_beyond(
        self,
        parameters: ArrayLike,
        unique_spectra: ArrayLike,
        spectra_seen: ArrayLike,
        flops: ArrayLike | None = None,
    ) -> dict[str, Any]:
        """By how many decades runs are outside of the ledger; 0 is inside.

        Returns
        -------
        Of ``parameters``, ``unique_spectra`` (no more than are seen), ``spectra_seen`` and, where
        they are given, ``flops``.
        """
        size, unique, seen = self._check(parameters, unique_spectra, spectra_seen)
        values = {
            "parameters": size,
            "unique_spectra": np.minimum(unique, seen),
            "spectra_seen": seen,
        }
        if flops is not None:
            values["flops"] = np.asarray(flops, float)
        beyond = {}
        for name, value in values.items():
            low, high = self.ranges[name]
            outside = np.maximum(np.log10(value / high), np.log10(low / value))
            beyond[name] = np.maximum(outside, 0.0)
        return beyond

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write ``law.json``: the fit, its draws, and where it comes from."""
        contents = {
            "kind": KIND,
            "version": VERSION,
            "form": "1/L^k = 1/L0^k + 1/(E + A/P^a + B/U^b + G/(S^g P^h))^k, U at most S",
            "reference": dict(zip(("P", "U", "S"), REFERENCE, strict=True)),
            "parameters": dict(zip(NAMES, self.theta.tolist(), strict=True)),
            "noise": self.noise,
            "ranges": {name: list(ends) for name, ends in self.ranges.items()},
            "recipe": self.recipe._asdict(),
            "record": self.record,
            "draws": self.draws.tolist(),
        }
        with atomic_write(path) as temporary:
            temporary.write_text(json.dumps(contents, allow_nan=False) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "ScalingLaw":
        """Read what `save` wrote: a file, or a shipped law by its name.

        Shipped are ``paper``, of `scaling.experiments.paper`, and ``fgk-mgb``, of the label space
        of the shipped emulators.

        Raises
        ------
        InputError
            If there is no such file, it is no law, it is damaged, or of another version.
        """
        path = SHIPPED.get(os.fspath(path), Path(path))
        if not path.is_file():
            raise InputError(
                f"law: no file {path}, and no law of that name ({', '.join(SHIPPED)}); stellarfit "
                "law writes one from a ledger"
            )
        try:
            contents = json.loads(path.read_text(encoding="utf-8"))
            kind, found = contents["kind"], contents["version"]
        except (ValueError, KeyError, TypeError):
            raise InputError(f"law: {path} is no law.json; stellarfit law writes one") from None
        if kind != KIND or not isinstance(found, int):
            raise InputError(f"law: {path} holds a {kind} and no {KIND}")
        if found != VERSION:
            raise InputError(
                f"law: {path} is of version {found}, this stellarfit reads {VERSION}; "
                + ("update stellarfit" if found > VERSION else "fit it again from its ledger")
            )
        try:
            theta = np.array([contents["parameters"][name] for name in NAMES], float)
            draws = np.array(contents["draws"], float).reshape(-1, len(NAMES))
            ranges = {
                name: (float(low), float(high)) for name, (low, high) in contents["ranges"].items()
            }
            law = cls(
                theta, draws, float(contents["noise"]), ranges, Recipe(**contents["recipe"]),
                dict(contents["record"]),
            )  # fmt: skip
            whole = {"repeating", "repeated_sets"} <= set(law.record) and len(draws) > 0
            whole = whole and np.isfinite(theta).all() and np.isfinite(draws).all()
        except (ValueError, KeyError, TypeError) as error:
            raise InputError(f"law: {path} is damaged ({error}); fit it again") from None
        if not whole:
            raise InputError(f"law: {path} is damaged (numbers are missing); fit it again")
        return law

    def _check(self, *values: ArrayLike) -> list[np.ndarray]:
        names = ("parameters", "unique_spectra", "spectra_seen")
        arrays = [np.asarray(value, float) for value in values]
        for name, array in zip(names, arrays, strict=True):
            if not (array > 0).all():
                raise InputError(f"law: {name} is {np.min(array):g}; give positive numbers")
        _, unique, seen = arrays
        if not self.record["repeating"] and (unique < seen).any():
            raise InputError(
                f"law: no run of its ledger repeats spectra; give unique_spectra of {seen.max():g} "
                "or more, the spectra seen"
            )
        return arrays


def fit_runs(
    runs: Runs, weights: Float[ArrayLike, " run"], seed: int, draws: int
) -> tuple[Float[np.ndarray, "10"], Float[np.ndarray, "draw 10"], float]:
    """The best fit, those of bootstrap draws of trunks, and the scatter of a run not fitted to.

    A weight of 0 leaves a run out and the shapes as they are, which saves compiling again.
    """
    columns = (runs.parameters, runs.unique, runs.seen, np.log(runs.test))
    sample = Sample(*(jnp.asarray(column) for column in columns))
    theta, noise = fit_best(sample, weights)
    counts = np.zeros((draws, len(runs.seen)))
    kept = np.asarray(weights) > 0
    # Numbered anew: a trunk that is left out must not be drawn.
    trunk = np.unique(runs.trunk[kept], return_inverse=True)[1]
    counts[:, kept] = draw_trunks(trunk, draws, seed, _SHARE)
    refits = fit_draws(sample, counts, theta, noise)
    return theta, refits, held_out_scatter(sample, weights, theta, refits, noise)


def draw_runs(
    draws: Float[np.ndarray, "draw 10"],
    noise: float,
    parameters: Float[np.ndarray, " run"],
    unique: Float[np.ndarray, " run"],
    seen: Float[np.ndarray, " run"],
) -> Float[np.ndarray, "sample run"]:
    """MSE that new runs may have: every law of a bootstrap with the scatter from run to run."""
    laws = np.asarray(log_mse(draws.T[:, :, None], parameters, unique, seen))
    spread = laws[:, None, :] + noise * _SCATTER[None, :, None]
    return np.exp(spread).reshape(-1, len(parameters))


def check_enough(runs: Runs) -> None:
    """Refuse a ledger that cannot hold a law, and say what it needs."""
    number, sizes = len(runs.seen), len(np.unique(runs.parameters))
    if number and sizes < _MIN_SIZES:
        raise InputError(
            f"law: the ledger has {sizes} size{'s' * (sizes > 1)}; give runs of {_MIN_SIZES} or "
            "more (width, depth)"
        )
    if number < _MIN_RUNS:
        raise InputError(
            f"law: the ledger has {number} finished runs; give {_MIN_RUNS} or more, of "
            f"{_MIN_SIZES} or more sizes"
        )
    if runs.seen.max() < 3 * runs.seen.min():
        raise InputError(
            "law: all runs of the ledger see about as many spectra; give budgets a factor of 3 or "
            "more apart"
        )
