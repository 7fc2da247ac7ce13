"""The exceptions that end a command: bad input, and a run that diverged.

Each message is one sentence that names the thing, what was found and what was expected; no traceback is shown.
"""


class InputError(ValueError):
    """Bad input. The message is one sentence: the input's name, what was found, what was expected.

    The command line prints it without a traceback and ends with exit code 2.
    """


class Diverged(RuntimeError):
    """The loss or a gradient stopped being finite. The command line ends with exit code 1."""
