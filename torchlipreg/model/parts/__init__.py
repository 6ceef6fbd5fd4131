"""What a model is made of: its modules, how they are found, its parallelism, its other inputs."""
