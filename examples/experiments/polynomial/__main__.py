"""A network fitted to a polynomial with missing data, with and without a Lipschitz penalty: pictures in one dimension.

    python -m examples.experiments.polynomial [--out DIR] [--pictures FILE ...] [--quick]

Writes five pictures, the counterparts of figures 1-5 and 17 of the report, and prints their numbers:

- fits.png: plain training over-fits the noise and swings where data is missing; the penalties calm it. The price of
  `max` is a larger error where there is data: the polynomial is steepest there, and `max` flattens the steepest place.
- ascent_steps.png: with few, small ascent steps the pairs stay at the data points where they began, and the penalty
  sees a fraction of the true slope: the network is flat between the pairs and steep elsewhere.
- ascents.png: the ways to move the pairs, against their step size.
- limit.png: from λ = 10⁻⁴ to 10⁴ the network tends to the mean of the data, for `max` and for `tv`.
- weights.png: loss, accuracy, Lipschitz constant and the error where data is missing, against λ.

What comes out otherwise than in the report:

- Few ascent steps do flatten the network around their pairs, but not in particular at the ends of the domain: many
  steps make it flatter there, because they find the steep ends.
- No training diverges, whatever the step size: the pairs stay within bounds, and stuck ones are drawn anew. Too large a
  step costs accuracy instead. Below that, the ascents do not differ by more than the seeds do. Power steps keep each
  pair's distance, so under `max` they see less of the slope than the others at their best step sizes.
- The accuracy falls as λ grows, rather than staying almost 1: the data here is noisy.

The report gives neither its data nor its network. Here the noise is 0.1, and the net starts steep enough to over-fit
within some hundred steps. The radius of `tv` is 1, so that the balls around the data cover the gaps: parts of the
domain that no pair reaches are not flattened, however large λ is.
"""

import argparse
from pathlib import Path

from examples.experiments.polynomial.figures import FIGURES, Problem
from examples.experiments.polynomial.plan import plan, summarise
from examples.experiments.polynomial.training import GAPS, GRID, polynomial, train_all


def main(command_line=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("polynomial"), help="folder for the pictures")
    parser.add_argument("--pictures", nargs="+", choices=FIGURES, default=list(FIGURES), help="default: all")
    parser.add_argument("--quick", action="store_true", help="short trainings, few settings: to see that it runs")
    arguments = parser.parse_args(command_line)
    wanted = {FIGURES[file][0] for file in arguments.pictures}
    runs = {picture: groups for picture, groups in plan(arguments.quick).items() if picture in wanted}
    fits = train_all(
        run for groups in runs.values() for columns in groups.values() for seeds in columns for run in seeds
    )
    results = {
        picture: {name: [[fits[run] for run in seeds] for seeds in columns] for name, columns in groups.items()}
        for picture, groups in runs.items()
    }
    problem = Problem(GRID.flatten().numpy(), polynomial(GRID).flatten().numpy(), GAPS)
    arguments.out.mkdir(parents=True, exist_ok=True)
    print(*summarise(results), sep="\n")
    for file in arguments.pictures:
        picture, draw = FIGURES[file]
        path = arguments.out / file
        draw(problem, results[picture]).savefig(path)
        print(path)


if __name__ == "__main__":
    main()
