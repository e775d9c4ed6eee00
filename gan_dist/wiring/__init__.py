"""Build the parts of a run from its config. Only this folder knows all parts."""
