"""Checkpoints: write the state of a run, find it again and restore it."""
