"""Settings: their types, defaults and documentation; reading them from files and the command line; checking values."""
