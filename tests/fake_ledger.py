"""Ledgers drawn from a known law, as a sweep would write them."""

import numpy as np

from scaling.sizes import PAPER_SIZES, num_parameters, training_flops

TOKENS, LABELS, PIXELS, BATCH = 16, 42, 1024, 64
# ln E, ln A, a, ln B, b, ln G, g, h, ln L0, ln k: near what our ledgers say; A and G at 1e6, B at
# 1e4.
TRUTH = np.array(
    [
        *(np.log(1e-7), np.log(4e-5), 1.3, np.log(1e-4), 1.3),
        *(np.log(1e-4), 1.4, 0.5, np.log(0.05), np.log(0.7)),
    ]
)
SIZES = PAPER_SIZES[:9]
UNIQUE = (1e3, 3e3, 1e4, 3e4, 1e5, 1e15)
BUDGETS = np.geomspace(1e13, 1e17, 9)


def by_words(theta, parameters, unique, seen):
    """ln(MSE) of the law as it is written in words."""
    ln_e, ln_a, a, ln_b, b, ln_g, g, h, ln_l0, ln_k = theta
    size = np.exp(ln_a) * (parameters / 1e6) ** -a
    data = np.exp(ln_b) * (np.minimum(unique, seen) / 1e4) ** -b
    training = np.exp(ln_g) * (seen / 1e6) ** -g * (parameters / 1e6) ** -h
    below = np.exp(ln_e) + size + data + training
    k = np.exp(ln_k)
    return -np.log(below**-k + np.exp(ln_l0) ** -k) / k


def fake_rows(seed=0, *, noise=0.07, theta=TRUTH, sizes=SIZES, unique=UNIQUE, budgets=BUDGETS):
    """A trunk for every size and unique spectra, branches at the budgets that it can have.

    Half of the variance of ln(MSE) is the trunk's, as branches share most of their training.
    """
    rng = np.random.default_rng(seed)
    rows = []
    for width, depth in sizes:
        flops = training_flops(width, depth, TOKENS, LABELS, PIXELS)
        parameters = num_parameters(width, depth, TOKENS, LABELS)
        for number in unique:
            common = rng.normal()
            for budget in budgets:
                steps = round(budget / flops / BATCH)
                if not 150 <= steps <= 3e6:
                    continue
                seen = steps * BATCH
                truth = by_words(theta, parameters, number, seen)
                own, validation = rng.normal(size=2)
                test = truth + noise * np.sqrt(0.5) * (common + own)
                rows.append(
                    {
                        "run_id": f"{width}-{depth}-{number:g}-{steps}",
                        "trunk": f"{width}-{depth}-{number:g}",
                        "width": width,
                        "depth": depth,
                        "tokens": TOKENS,
                        "parameters": parameters,
                        "unique_spectra": int(number),
                        "spectra_seen": seen,
                        "steps": steps,
                        "flops": seen * flops,
                        "flops_spent": seen * flops,
                        "mse_validation": float(np.exp(test + 0.3 * noise * validation)),
                        "mse_test": float(np.exp(test)),
                    }
                )
    return rows
