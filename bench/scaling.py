"""Coverage of the intervals of `triune scaling` on made runs whose law is known, and its prediction for more compute.

python bench/scaling.py [--ladders 40] [--rounds 100]

A ladder is 8 sizes by 5 numbers of tokens, with losses by a published law and an error of each run. An interval of 95 %
is right when it holds the truth in about 95 of 100 ladders.
"""

from __future__ import annotations

import argparse
from typing import Any

import numpy as np
from common import record, table

from triune.scaling.law import FLOPS_PER, Law, bootstrap, fit, interval

LAWS = {
    "Hoffmann et al. 2022": Law(1.69, 406.4, 0.34, 410.7, 0.28),
    "Besiroglu et al. 2024": Law(1.82, 482.01, 0.3478, 2085.43, 0.3658),
}
MORE = 10


def ladder(law: Law, noise: float, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Parameters, tokens and losses of the runs."""
    parameters = np.repeat(np.geomspace(4.4e7, 1.6e10, 8), 5)
    tokens = parameters * np.tile([2.0, 5, 20, 60, 150], 8)
    error = np.random.default_rng(seed).normal(0, noise, len(tokens))
    return parameters, tokens, law.loss(parameters, tokens) * np.exp(error)


def numbers(law: Law, compute: float) -> dict[str, float]:
    """What is judged: exponents, the floor, and the lowest loss of ten times the compute."""
    return {
        "alpha": law.alpha, "beta": law.beta, "E": law.e, "share_of_parameters": law.shares[0],
        "loss_of_best_use": float(law.loss(*law.best(compute))),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ladders", type=int, default=40)
    parser.add_argument("--rounds", type=int, default=100)
    parser.add_argument("--noise", type=float, nargs="+", default=[0.003, 0.01])
    options = parser.parse_args()
    rows: list[dict[str, Any]] = []
    for name, truth in LAWS.items():
        for noise in options.noise:
            held: dict[str, list[bool]] = {}
            off: list[float] = []
            for seed in range(options.ladders):
                runs = ladder(truth, noise, seed)
                compute = MORE * FLOPS_PER * float((runs[0] * runs[1]).max())
                law = fit(*runs)
                samples = [numbers(x, compute) for x in bootstrap(*runs, law, options.rounds, seed)]
                wanted = numbers(truth, compute)
                for key, value in wanted.items():
                    low, high = interval([sample[key] for sample in samples])
                    held.setdefault(key, []).append(low <= value <= high)
                off.append(abs(numbers(law, compute)["loss_of_best_use"] / wanted["loss_of_best_use"] - 1))
            coverage = {f"holds {key}": float(np.mean(values)) for key, values in held.items()}
            rows.append(
                {
                    "law": name, "noise": noise, "ladders": options.ladders, **coverage,
                    "error of the predicted loss, median": float(np.median(off)), "largest": float(np.max(off)),
                }
            )  # fmt: skip
            print(table(rows[-1:]))
    record("scaling", rows, rounds=options.rounds)


if __name__ == "__main__":
    main()
