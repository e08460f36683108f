"""The error for a person's mistakes. Nothing is imported, so that typing errors are answered at once."""


class InputError(ValueError):
    """Something that a person gave is wrong. The message is one line: what, where, what was received, what to do."""
