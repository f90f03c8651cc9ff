"""The one exception users are meant to see."""

from __future__ import annotations

import re
from collections.abc import Mapping


class InputError(Exception):
    """Something the user gave cannot be used.

    The message is one line: what is wrong, where (file, row, argument), and what to do about it.
    ``argument`` is the name of the function's argument at fault, which then begins the message; other
    arguments are named in it between backticks. The command line prints its own flags in their
    places, to standard error, and exits with code 2; library callers catch it.
    """

    def __init__(self, message: str = "", argument: str | None = None):
        super().__init__(message)
        self.argument = argument

    def __str__(self) -> str:
        text = super().__str__()
        if self.argument is None:
            return text
        return f"{self.argument}{text}" if text.startswith(":") else f"{self.argument} {text}"

    def with_flags(self, flags: Mapping[str, str]) -> InputError:
        """The same with what the command line calls its arguments: ``{"slots": "--slots"}``."""
        text = super().__str__()
        told = re.sub(r"`(\w+)`", lambda m: flags.get(m[1], m[0]), text)
        named = InputError(told, flags.get(self.argument or "", self.argument))
        return named.with_traceback(self.__traceback__)
