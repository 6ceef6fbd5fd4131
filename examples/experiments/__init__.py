"""What made the tables and pictures, each a package, run from the root: `python -m examples.experiments.mnist`."""
