"""The one exception that bad input raises: a sentence that names the input, what was found and what was expected."""


class InputError(ValueError):
    """Bad input. The message is one sentence: the input's name, what was found, what was expected.

    The command line prints it without a traceback and ends with exit code 2.
    """
