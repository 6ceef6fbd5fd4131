"""Norms in train mode: BatchNorm whose frozen statistics follow a batch."""
