"""The one base of every error that a user can mend."""


class Step3Error(Exception):
    """Something the user gave cannot work; the message names the wrong thing and the mend.

    The command line prints it in one line without a traceback and exits with 1.
    """
