"""Errors that the user can fix. The command line shows their message in one line, without a traceback."""


class UserError(Exception):
    """Something that the user can act on: a file, a directory, the network, a setting, a training that diverges.

    The message is one line that says what is wrong, where, and what to do. Line breaks in it are replaced by spaces,
    and other control characters are escaped. The traceback of an error in a data worker becomes a note of the error.

    Attributes:
        exit_status: the exit status of the program.
        everywhere: every process raises this same error, so only the main process has to report it.
    """

    exit_status = 1
    everywhere = False

    def __init__(self, message: str) -> None:
        if message.startswith("Caught "):  # DataLoader puts a worker's traceback in front of the worker's message
            self.add_note(message)
            message = message.strip().splitlines()[-1].partition("Error: ")[2]
        super().__init__(escaped(" ".join(message.split())))


class ConfigError(UserError):
    """A setting is wrong. The message names the setting, its value and, where there is one, the nearest valid value."""

    exit_status = 2
    everywhere = True


class CallbackError(Exception):
    """A user's callback has raised an error, which is the cause of this one. The run ends as after a crash."""


class Interrupted(Exception):
    """A stop signal has arrived while something took long: a wait for data, or an evaluation."""


class Unreadable(UserError):
    """A file or directory that is there could not be read.

    The reason may be a network file system, or that a newer version of gan_dist has written it. This says nothing about
    its content: it must not be taken for missing or damaged.
    """


def too_new(path: object, number: int, readable: int) -> Unreadable:
    """Return the error about a file that a newer version of gan_dist has written.

    Args:
        path: the file.
        number: the number of its format.
        readable: the number of the newest format that this version can read.
    """
    return Unreadable(
        f"{path}: a newer version of gan_dist has written it, in format {number}; this version reads formats up to "
        f"{readable}: update gan_dist"
    )


def escaped(text: str) -> str:
    r"""Replace each character that cannot be printed by an escape sequence such as `\x1b` or `\n`.

    Names of files and metrics may come from strangers, and a terminal would obey the control characters in them.
    """
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
