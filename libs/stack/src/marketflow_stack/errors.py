"""The one kind of error that the local stack shows to an operator: what happened, and what to do about it."""

from __future__ import annotations


class StackError(Exception):
    """`what` happened (with the value in question) and the `remedy`, each one line, no traceback needed."""

    def __init__(self, what: str, remedy: str) -> None:
        super().__init__(f"{what}; {remedy}" if remedy else what)
        self.what = what
        self.remedy = remedy
