"""What happens when an event is due, one concern a file; each fits `gan_dist.engine.trainer.Callback`."""
