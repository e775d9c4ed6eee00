"""From a config to parts: the only place that knows all of them."""
