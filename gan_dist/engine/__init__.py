"""The training loop: the steps of D and G, the schedules, and the callbacks that log, evaluate and save."""
