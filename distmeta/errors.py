"""The two ways in which a command ends that are no fault of the program."""


class UserError(Exception):
    """Something the user can put right. The message is one line a fault: what is wrong, where, what to do.

    The command line prints it without a traceback and exits with status 2.
    """


class Interrupted(Exception):
    """A signal ended the run in good order; the message says how to go on. The exit status is 130."""
