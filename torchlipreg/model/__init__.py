"""The model as a fixed function of its input, and every private name of torch that the library touches."""
