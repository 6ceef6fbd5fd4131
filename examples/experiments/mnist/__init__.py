"""Training on MNIST in many ways, and attacking what came out."""
