"""The exception for bad input: it says where, what is wrong, and how to fix it."""

from __future__ import annotations


class L4SError(ValueError):
    """Bad input from a user.

    The message is one line: where, what is wrong, and how to fix it. The command line prints it without a
    traceback and exits with status 2.
    """


def unknown(kind: str, name: object, choices: list[str] | tuple[str, ...]) -> L4SError:
    """Make the error for a name that is not among ``choices``; it suggests the most similar one."""
    import difflib

    near = difflib.get_close_matches(str(name), choices, n=1)
    hint = f"did you mean {near[0]!r}? " if near else ""
    return L4SError(f"unknown {kind} {name!r}: {hint}choose one of {', '.join(sorted(choices))}")
