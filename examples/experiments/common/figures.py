"""What the pictures of several experiments share."""

import statistics

import matplotlib.pyplot as plt


def save(figure, path):
    """Write a figure, close it, and return the path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=72)
    plt.close(figure)
    return path


def mean_and_spread(values):
    """Return the mean and the standard deviation over seeds, 0 for one seed."""
    return statistics.mean(values), statistics.stdev(values) if len(values) > 1 else 0.0
