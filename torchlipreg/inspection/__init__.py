"""What forwards show of a model: is it random, in which precision, may the loop's outputs serve as f(x)."""
