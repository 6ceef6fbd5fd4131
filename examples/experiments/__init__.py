"""What made the tables and pictures, each a package: `python -m examples.experiments.mnist`, from the repository root."""
