"""Models that others wrote: is the penalty right on each? `make sweep`; the outcome is docs/models.md."""
