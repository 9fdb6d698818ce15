"""The one exception whose message is meant for the person at the keyboard."""


class UserError(Exception):
    """A mistake of the user: the command line prints its single line and exits with code 2, without a traceback.

    The message names the thing that is wrong and, where there are any, the choices.
    """
