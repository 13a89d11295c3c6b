"""What is wrong with what an administrator asked for? One field of it, and why."""


class FieldError(Exception):
    """A value that cannot be taken. `field` names it, `reason` is for the person who sent it."""

    def __init__(self, field: str, reason: str) -> None:
        super().__init__(f"{field}: {reason}")
        self.field = field
        self.reason = reason
