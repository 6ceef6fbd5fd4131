"""Integrations of torchlipreg with training frameworks; each module imports its framework, this one nothing."""
