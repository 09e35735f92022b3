"""The line with which the demo ends: who is above native DualPI2, as measured."""

from __future__ import annotations

import msgspec
import pytest

from l4s_gym.evaluation import demo
from l4s_gym.evaluation.entry import Failure
from tests.evaluation.conftest import PLAYERS, Player, synthetic_entries


@pytest.mark.parametrize(("quality", "verdict"), [(1.2, "above"), (0.8, "below")])
def test_the_verdict_is_that_of_the_board(quality: float, verdict: str) -> None:
    winner = Player(demo.WINNER, "tuned", quality, trainings=1, unlike=0.0, form="parameters")
    line = demo.standing(synthetic_entries([*PLAYERS[:2], winner], failed=False))
    assert line.startswith("onestep against native DualPI2: ") and f"] {verdict}, shift " in line


def test_a_tie_is_no_victory() -> None:
    """Native DualPI2's own results under another name."""
    native, random = synthetic_entries(PLAYERS[:2], failed=False)
    experiment = msgspec.structs.replace(native.experiment, name=demo.WINNER)
    twin = msgspec.structs.replace(native, agent=demo.WINNER, experiment=experiment)
    line = demo.standing([native, random, twin])
    assert line.endswith(" cannot be told apart") and " above" not in line and " below" not in line


def test_a_failure_is_told() -> None:
    native, random = synthetic_entries(PLAYERS[:2], failed=False)
    failed = msgspec.structs.replace(native, agent=demo.WINNER, failed=Failure("training", "ValueError: no"))
    assert demo.standing([native, random, failed]).endswith("no result, it failed")
