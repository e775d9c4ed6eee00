"""What a run reports: figures to files and Weights & Biases, plots and pictures of arrays."""
