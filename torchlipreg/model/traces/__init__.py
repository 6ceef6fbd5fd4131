"""What a forward may leave behind, noted before it and put back after it."""
