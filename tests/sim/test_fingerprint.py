"""The one judge of what is stale."""

from __future__ import annotations

import pytest

from l4s_gym.sim import fingerprint
from l4s_gym.sim.fingerprint import FINGERPRINT, KERNEL_LOG, NONE, StaleError, allow_stale, check, combined, reason


def test_what_is_stale_and_what_is_said() -> None:
    assert reason(FINGERPRINT) is None and reason(KERNEL_LOG) is None
    for simulator in (NONE, "0123456789ab"):
        text = f"^dataset 'x': is stale: made with simulator {simulator}, installed is {FINGERPRINT}: build it$"
        with pytest.raises(StaleError, match=text):
            check("dataset 'x'", simulator, "build it")


def test_several_are_as_stale_as_one() -> None:
    assert combined([]) == combined([KERNEL_LOG]) == KERNEL_LOG
    assert combined([KERNEL_LOG, FINGERPRINT]) == FINGERPRINT
    assert combined([FINGERPRINT, NONE, KERNEL_LOG]) == NONE


def test_what_is_stale_passes_where_it_is_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    with allow_stale() as passed:
        check("a", FINGERPRINT, "")
        check("b", NONE, "")
        check("b", NONE, "")
        with allow_stale(False), pytest.raises(StaleError):
            check("c", NONE, "")
    assert [text.partition(":")[0] for text in passed] == ["b"]
    monkeypatch.setattr(fingerprint, "FINGERPRINT", "0123456789ab")
    with pytest.raises(StaleError, match="installed is 0123456789ab"):
        check("a", FINGERPRINT, "")
