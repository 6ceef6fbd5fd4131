"""Torch's internals: switches of the process, checkpoints, hooks, autograd's graph, transfers to the host."""
