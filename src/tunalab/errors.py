"""The one exception whose message is meant for the person at the keyboard, and the end of what can go on: signals, exit code."""

import signal

from tunalab.redaction import redacted

EXIT_STOPPED = 75  # EX_TEMPFAIL: a run, or a sweep, was stopped, has saved, and goes on when it is started again


class UserError(Exception):
    """A mistake of the user: the command line prints its single line and exits with code 2, without a traceback.

    The message names the thing that is wrong and, where there are any, the choices. It is free of credentials, whatever it quotes.
    """

    def __init__(self, message: str = "") -> None:
        super().__init__(redacted(message))


def stop_signals_heeded() -> tuple[signal.Signals, ...]:
    """Ctrl-C, SIGTERM, and SIGHUP of a terminal that closes, unless whoever started this process had it ignored (nohup)."""
    hung_up = () if signal.getsignal(signal.SIGHUP) == signal.SIG_IGN else (signal.SIGHUP,)
    return (signal.SIGINT, signal.SIGTERM, *hung_up)
