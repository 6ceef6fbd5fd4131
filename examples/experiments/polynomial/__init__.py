"""A network fitted to a polynomial with missing data: pictures in one dimension."""
