"""What a penalised training step costs."""
