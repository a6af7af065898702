"""The one kind of exception that is the user's to mend."""


class UserError(Exception):
    """Something the user can put right. The message is one line a fault: what is wrong, where, what to do.

    The command line prints it without a traceback and exits with status 2.
    """
