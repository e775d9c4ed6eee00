"""Checkpoints: the state that is saved, and writing, finding and restoring it."""
