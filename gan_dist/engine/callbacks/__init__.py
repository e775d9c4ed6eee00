"""Callbacks of the training loop, one per file. They implement `gan_dist.engine.trainer.Callback`."""
