"""The mathematics: norms, pairs, quotients, derivatives, ascent. Pure functions and small records; torch alone."""
