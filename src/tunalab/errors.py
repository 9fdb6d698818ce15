"""The one exception whose message is meant for the person at the keyboard, and the exit code of what can go on."""

EXIT_STOPPED = 75  # EX_TEMPFAIL: a run, or a sweep, was stopped, has saved, and goes on when it is started again


class UserError(Exception):
    """A mistake of the user: the command line prints its single line and exits with code 2, without a traceback.

    The message names the thing that is wrong and, where there are any, the choices.
    """
