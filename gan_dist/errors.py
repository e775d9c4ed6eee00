"""Errors that the user can fix. The command line shows their message in one line, without a traceback."""


class UserError(Exception):
    """Something that the user can act on: a file, a directory, the network, a setting, a training that diverges.

    The message is one line that says what is wrong, where, and what to do. Line breaks and control characters in it are
    replaced.

    Attributes:
        exit_status: the exit status of the program.
        everywhere: every process raises this same error, so only the main process has to report it.
    """

    exit_status = 1
    everywhere = False

    def __init__(self, message: str) -> None:
        if message.startswith("Caught "):  # DataLoader puts a worker's traceback in front of the worker's message
            message = message.strip().splitlines()[-1].partition("Error: ")[2]
        line = " ".join(message.split())
        super().__init__("".join(c if c.isprintable() else "?" for c in line))


class ConfigError(UserError):
    """A setting is wrong. The message names the setting, its value and, where there is one, the nearest valid value."""

    exit_status = 2
    everywhere = True


class Interrupted(Exception):
    """A stop signal has arrived while something took long: a wait for data, or an evaluation."""
