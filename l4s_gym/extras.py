"""Libraries that come with an extra of the package, imported where they are used."""

from __future__ import annotations

import importlib
from typing import Any

from l4s_gym.errors import L4SError


def optional(module: str, *extras: str) -> Any:
    """A module that may not be installed.

    Args:
        module: Its name.
        extras: Those of the package that bring it.

    Raises:
        L4SError: It cannot be imported.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        remedy = " or ".join(f"'l4s-gym[{extra}]'" for extra in extras)
        raise L4SError(f"{module}: cannot be imported ({error}): pip install {remedy}") from error
