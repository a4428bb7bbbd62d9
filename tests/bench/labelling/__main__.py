"""Simulate labelling with the true labels: `python -m tests.bench.labelling`.

Each strategy asks for the labels of some pictures at a time, the head is fitted again, and its accuracy is
measured on the 30 % of the pictures that are held out; so for each of many seeds. The suspected label errors
are those of labels that were flipped at random.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np

from tests.bench import results
from tests.bench.labelling import data, simulate, suspects
from tests.bench.labelling.curve import draw_curves
from tests.bench.labelling.data import Pool
from tests.bench.labelling.simulate import STRATEGIES, Accuracies, Scheme, interval_of_mean
from tests.bench.labelling.suspects import FlippedLabels, Score
from trainer.labelling.types import Strategy

REFERENCE = 200
"""Random labels whose accuracy the other strategies are to reach with fewer."""

SCHEMES = {"sample photos": Scheme(20, 12), "emoji": Scheme(40, 10)}

LOADERS: Mapping[str, Callable[[], Pool]] = {
    "sample photos": data.load_sample_photos,
    "emoji": data.load_emoji,
}


def run_seed(pool: Pool, scheme: Scheme, seed: int) -> list[list[float]]:
    """Return the accuracies of each strategy after each step."""
    found = [simulate.simulate(pool, strategy, scheme, seed) for strategy in STRATEGIES]
    print(f"{pool.name}: seed {seed} done", flush=True)
    return found


def report_curves(pool: Pool, scheme: Scheme, curves: Mapping[str, Accuracies]) -> None:
    """Print and record the accuracies, the labels needed, and the differences to random labels."""
    random = curves[Strategy.RANDOM]
    for step, budget in enumerate(scheme.budgets):
        row: dict[str, results.Value] = {"labels": budget}
        for name, values in curves.items():
            mean, low, high = interval_of_mean(values[:, step])
            row[f"{name}, %"] = f"{100 * mean:.1f} ({100 * low:.1f} to {100 * high:.1f})"
        _, low, _ = interval_of_mean(curves[Strategy.MIXED][:, step] - random[:, step])
        row["mixed − random, lower bound, points"] = round(100 * low, 1)
        print(row, flush=True)
        results.add_row(f"Accuracy on {pool.name} by number of labels", row)
    for name, values in curves.items():
        needed = simulate.interval_of_labels(values, random, scheme.budgets, REFERENCE)
        worst = min(interval_of_mean(values[:, step] - random[:, step])[1] for step in range(scheme.steps))
        row = {
            "pictures": pool.name,
            "strategy": name,
            f"labels for the accuracy of {REFERENCE} random ones": round(needed[0]),
            "95 % interval": " to ".join(
                "more" if bound == np.inf else f"{bound:.0f}" for bound in needed[1:]
            ),
            "worst lower bound of the difference to random, points": round(100 * worst, 1),
        }
        print(row, flush=True)
        results.add_row("Labels needed", row)


def report_suspects(pool: Pool, found: Sequence[Sequence[Score]]) -> None:
    """Print and record the mean precision of each ranking over the seeds."""
    for at, (name, _, _) in enumerate(found[0]):
        row: dict[str, results.Value] = {"pictures": pool.name, "ranking": name}
        for column, title in ((1, "precision at N"), (2, "average precision")):
            values = np.array([one[at][column] for one in found])
            mean, low, high = interval_of_mean(values)
            row[title] = f"{mean:.3f} ({low:.3f} to {high:.3f})"
            _, low, _ = interval_of_mean(np.array([one[0][column] - one[at][column] for one in found]))
            row[f"hubhead's {title} is higher by, lower bound"] = round(low, 3) if at else None
        print(row, flush=True)
        results.add_row("Suspected label errors, 10 % of the labels flipped", row)


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.bench.labelling", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("--seeds", type=int, default=50, help="number of seeds (default 50)")
    parser.add_argument("--jobs", type=int, default=1, help="number of processes")
    parser.add_argument("--pools", nargs="*", choices=LOADERS, default=list(LOADERS), help="pictures to use")
    parser.add_argument("--part", choices=["strategies", "suspects"], help="one part alone")
    parser.add_argument(
        "--cleanlab", type=Path, help="Python of an environment with cleanlab, to compare suspects with it"
    )
    parser.add_argument("--plot", type=Path, help="SVG file to draw the learning curves to")
    results.add_output_option(parser)
    options = parser.parse_args()
    curves: dict[str, dict[str, Accuracies]] = {}
    with ProcessPoolExecutor(options.jobs) as processes:
        for name in options.pools:
            pool, scheme = LOADERS[name](), SCHEMES[name]
            print(f"{name}: {len(pool.targets)} pictures, {len(pool.labels)} labels", flush=True)
            if options.part != "suspects":
                found = np.array(list(processes.map(partial(run_seed, pool, scheme), range(options.seeds))))
                curves[name] = {str(one): found[:, at] for at, one in enumerate(STRATEGIES)}
                report_curves(pool, scheme, curves[name])
            if options.part != "strategies":
                draw = partial(FlippedLabels.draw, pool)
                cases = list(processes.map(draw, range(options.seeds)))
                report_suspects(pool, suspects.compare(cases, options.cleanlab))
    results.add_note(f"Means of {options.seeds} seeds with 95 % intervals.")
    if options.plot and curves:
        budgets = {name: SCHEMES[name].budgets for name in curves}
        options.plot.write_text(draw_curves(curves, budgets, REFERENCE), encoding="utf-8")
    results.write(options.output, "label-errors" if options.part == "suspects" else "labelling")


if __name__ == "__main__":
    main()
