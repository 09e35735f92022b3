"""Options of the queue disciplines, a table for each: the same name may have another unit in another discipline."""

from __future__ import annotations

import inspect
import re
from typing import TYPE_CHECKING, Any

from msgspec import defstruct, field
from msgspec.structs import fields

from l4s_gym.errors import L4SError, unknown
from l4s_gym.sim.discipline import Discipline, NoOptions
from l4s_gym.sim.disciplines import BUILT_IN
from l4s_gym.tables import convert

if TYPE_CHECKING:
    Options = Any
else:
    Options = defstruct(
        "Options",
        [
            *((each.name, each.options, each.options()) for each in BUILT_IN if each.options is not NoOptions),
            ("own", dict[str, Any], field(default_factory=dict)),
        ],
        namespace={"__doc__": "A table for each discipline that has options, and `own` for one from outside."},
        frozen=True,
        forbid_unknown_fields=True,
    )

OPTIONS = {
    each.name: tuple(option.name for option in fields(each.options)) for each in BUILT_IN if fields(each.options)
}
"""Names of the options of each discipline."""


def of(options: Options, discipline: Discipline, plugged: bool) -> Any:
    """Return the options of a discipline.

    Args:
        options: Options of a scenario.
        discipline: The discipline.
        plugged: Whether it comes from outside: its options are then in the table `own`.

    Raises:
        L4SError: An option of a discipline from outside is unknown, or its value does not fit.
    """
    if plugged:
        return convert(discipline.options, options.own, f"options.own (of {discipline.name})")
    return getattr(options, discipline.name, NoOptions())


def words(discipline: Discipline) -> dict[str, tuple[str, Any]]:
    """Return the description of each option from the docstring of a discipline's options, and its default."""
    said = dict(re.findall(r"^    (\w+): (.*(?:\n {8}.*)*)", inspect.getdoc(discipline.options) or "", re.MULTILINE))
    defaults = discipline.options()
    return {
        each.name: (" ".join(said.get(each.name, "").split()), getattr(defaults, each.name))
        for each in fields(discipline.options)
    }


def check(name: str, *option: str) -> None:
    """Refuse an unknown discipline or option.

    Args:
        name: Name of the discipline.
        option: Name of an option to look for, if any.

    Raises:
        L4SError: It is unknown; the error names the disciplines that have it.
    """
    if name == "own":
        return
    if name not in OPTIONS:
        if owners := [aqm for aqm, names in OPTIONS.items() if name in names]:
            raise L4SError(
                f"options.{name}: each discipline has options of its own: "
                f"write {' or '.join(f'options.{aqm}.{name}' for aqm in owners)}"
            )
        raise unknown("discipline with options", name, (*OPTIONS, "own"))
    for each in option[:1]:
        if each not in OPTIONS[name]:
            owners = [aqm for aqm, names in OPTIONS.items() if each in names]
            of = f" (it is one of {', '.join(owners)})" if owners else ""
            raise L4SError(f"options.{name}: {unknown(f'option of {name}{of}', each, OPTIONS[name])}")


def check_tables(tables: Any) -> None:
    """Check each name in the tables of a scenario by `check`.

    Raises:
        L4SError: A name is unknown.
    """
    for name, table in tables.items() if isinstance(tables, dict) else ():
        check(name)
        for option in table if isinstance(table, dict) else ():
            check(name, option)
