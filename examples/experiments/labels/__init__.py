"""Training on few labels: which regulariser helps the clean accuracy most."""
