"""What a machine with a GPU is asked first: tests, the price of a step, memory, a profile, a short CIFAR-10 run."""
