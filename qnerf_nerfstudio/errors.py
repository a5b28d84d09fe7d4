"""The one kind of error that a user can mend."""


class UserError(ValueError):
    """Something the user gave cannot be used. The message is one sentence: what, where, expected, and the remedy."""
