"""What goes wrong by a person's hand. Imports nothing, so that typing errors are answered at once."""


class InputError(ValueError):
    """Something a person gave us is wrong. The message is one line: what, where, what was received, what to do."""
