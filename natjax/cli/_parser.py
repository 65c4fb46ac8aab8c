"""The parser of the command line: argparse's, with the nearest name where one was mistyped."""

from __future__ import annotations

import argparse
import re
from typing import Any, NoReturn

from natjax.text import did_you_mean

_LONG_USAGE = 10  # lines
_CUTOFF = 0.7  # names here are short
_INVALID_CHOICE = re.compile(r"invalid choice: '([^']*)' \(choose from (.*)\)")


class Parser(argparse.ArgumentParser):
    """argparse's parser. Flags are not abbreviated, as a new flag could change what an abbreviation means."""

    def __init__(self, *args: Any, **options: Any):
        super().__init__(*args, allow_abbrev=False, **options)

    def error(self, message: str) -> NoReturn:
        """Ends the command with usage, message and, where a choice was mistyped, the nearest one."""
        if found := _INVALID_CHOICE.search(message):
            choices = [choice.strip("'") for choice in found[2].split(", ")]
            message += "." + did_you_mean(found[1], choices, _CUTOFF)
        if self.format_usage().count("\n") > _LONG_USAGE:  # which would push the message out of sight
            self.exit(2, f"{self.prog}: error: {message}\n{self.prog} --help lists all flags.\n")
        super().error(message)

    def refuse_unknown(self, arguments: list[str]) -> NoReturn:
        """Ends the command as argparse does where it does not know arguments, with the flags that are nearest to them."""
        flags = [flag for flag in self._option_string_actions if flag.startswith("--") and "_" not in flag]
        mistyped = [name.partition("=")[0] for name in arguments if name.startswith("-")]
        hints = "".join(did_you_mean(name, flags, _CUTOFF) for name in mistyped)
        self.error(f"unrecognized arguments: {' '.join(arguments)}.{hints}")
