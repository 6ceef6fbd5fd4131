"""What the experiments share: training, rivals, attacks, records that resume, tables, timing.

A new data set is one new file, `examples/experiments/NAME.py`, which describes an `Experiment` and ends with

    if __name__ == "__main__":
        command.main(NAME, "examples.experiments.NAME")

It says how images are loaded and networks built, its `Recipe`s, its `Measure`s, and the columns of its table
(robustness.py). Images without a label are a matter of its losses: label them -1, and skip those.

A new rival is one new file as well: a function (model, x, y, ...) -> loss, like those of rivals.py, and

    if __name__ == "__main__":
        command.main(MNIST.also({"mlp": {"mine": Recipe("mine", mine)}}), "examples.experiments.mine")

Do not write either into the `__main__.py` of a package: the processes of `--workers` cannot import from there.
"""
