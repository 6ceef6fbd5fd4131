"""Networks that exist already, fine-tuned for a tenth or a fifth of their training so that they withstand attacks."""
