"""Scripts to copy from, and `experiments`, which made the published numbers."""
