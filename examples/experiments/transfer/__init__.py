"""What the default does to your data: one line, nothing set, on data and networks that it was not tuned on."""
