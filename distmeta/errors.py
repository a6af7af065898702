"""The two ways in which a command ends that are no fault of the program, and the form of what is said of them."""

LONGEST = 500
"""Characters of a line that is made of what a user has given."""


class UserError(Exception):
    """Something the user can put right. The message is one line a fault: what is wrong, where, what to do.

    The command line prints it without a traceback and exits with status 2.
    """


class Interrupted(BaseException):
    """A signal ended the command in good order; the message says how to go on. The exit status is 130.

    As KeyboardInterrupt it is no Exception: it may come anywhere, and nobody is to take it for a fault of a file.
    """


def one_line(text: str) -> str:
    """The text in one line: what cannot be printed as it is in a file, and of a long one the middle left out."""
    line = "".join(char if char.isprintable() else ascii(char)[1:-1] for char in text)
    return line if len(line) <= LONGEST else f"{line[: LONGEST - 110]} [...] {line[-100:]}"


def first_line(error: Exception) -> str:
    """What an error of a library says first."""
    return one_line(str(error).strip().split("\n")[0] or type(error).__name__)
