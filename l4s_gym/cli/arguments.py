"""Options given more than once: values add up if the option takes several; otherwise it is an error."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Annotated, Any, TypeVar, get_args, get_origin, get_type_hints

import tyro

from l4s_gym.errors import L4SError

_T = TypeVar("_T")


def several(target: Callable[..., Any]) -> frozenset[str]:
    """Return the options of a command (a function or a dataclass) that take any number of values."""
    found = set()
    for name, kind in get_type_hints(target, include_extras=True).items():
        extras = list(get_args(kind))[1:] if get_origin(kind) is Annotated else []
        plain = get_args(kind)[0] if extras else kind
        parts = [plain, *get_args(plain)]  # alone, or in a union with None
        if any(get_origin(part) in (tuple, list) and get_args(part)[-1:] in ((...,), get_args(part)) for part in parts):
            named = [each.name for each in extras if getattr(each, "name", None)]
            found.add(f"--{(named or [name])[0].replace('_', '-')}")
    return frozenset(found)


def accumulated(args: Sequence[str], several: frozenset[str]) -> list[str]:
    """Gather the values of an option that is given more than once behind its first use.

    Args:
        args: As given.
        several: Options that take any number of values.

    Raises:
        L4SError: An option that takes one value is given twice.
    """
    runs: dict[str, list[str]] = {}  # each option with the words that follow it
    key = ""
    for k, word in enumerate(args):
        if word == "--":
            runs["--"] = list(args[k:])
            break
        if not word.startswith("--"):
            runs.setdefault(key, []).append(word)
            continue
        option, equals, value = word.partition("=")
        key = option.replace("_", "-")
        if key not in runs:
            runs[key] = [option, value] if equals and key in several else [word]
        elif key in several:
            runs[key] += [value] if equals else []
        else:
            raise L4SError(f"{key}: is given twice: give it once")
    return [word for run in runs.values() for word in run]


class App(tyro.extras.SubcommandApp):
    """A command line whose options may be given more than once."""

    def cli(self, *, args: Sequence[str] | None = None, **more: Any) -> Any:
        """Run the command line, as tyro does."""
        words = list(sys.argv[1:] if args is None else args)
        target = self.targets().get(words[0].replace("_", "-")) if words else None
        args = words if target is None else accumulated(words, several(target))
        return super().cli(args=args, config=(tyro.conf.DisallowNone,), **more)

    def targets(self) -> dict[str, Callable[..., Any]]:
        """Return the function of each command."""
        stored: dict[str, Any] = dict(self._subcommands)
        return {name.replace("_", "-"): getattr(each, "target", each) for name, each in stored.items()}


def command_line(target: Callable[..., _T], **more: Any) -> _T:
    """Like `tyro.cli`, for scripts: options may be given more than once; an `L4SError` ends the script in one line."""
    sys.excepthook = _in_one_line
    words = accumulated(sys.argv[1:], several(target))
    found: _T = tyro.cli(target, args=words, config=(tyro.conf.DisallowNone,), **more)
    return found


def _in_one_line(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """End a script: what the user can mend, and Ctrl-C, without a traceback."""
    if isinstance(error, L4SError | KeyboardInterrupt):
        print(f"error: {error}" if isinstance(error, L4SError) else "interrupted", file=sys.stderr)
    else:
        sys.__excepthook__(kind, error, trace)
