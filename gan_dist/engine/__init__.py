"""The training loop: the alternating step, the trainer, its schedules and its callbacks."""
