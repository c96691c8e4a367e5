"""Checkpoints of other projects, one file for each family."""
