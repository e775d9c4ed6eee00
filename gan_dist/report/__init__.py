"""Report a run: log messages, metrics in files and Weights & Biases, plots and pictures."""
