"""Errors that are the user's to mend: the command line shows their text in one line, without a traceback."""


class UserError(Exception):
    """Something outside the program is wrong: a file, a directory, a network. One line: what, where, what instead."""

    exit_status = 1
    everywhere = False  # raised in every process alike: the main one reports it

    def __init__(self, message: str) -> None:
        if message.startswith("Caught "):  # a data worker's error arrives with its traceback above it
            message = message.strip().splitlines()[-1].partition("Error: ")[2]
        line = " ".join(message.split())
        super().__init__("".join(c if c.isprintable() else "?" for c in line))


class ConfigError(UserError):
    """A setting is wrong. The line names the key, the value and the nearest valid one."""

    exit_status = 2
    everywhere = True
