"""Every setting: its type, default and meaning; reading files and overrides; checking values."""
