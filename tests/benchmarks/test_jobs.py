"""Jobs whose results are kept."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
import pytest

from jobs import Floats, kept, spread


def square(value: float, calls: Path) -> Floats:
    with calls.open("a") as file:
        file.write(f"{value}\n")
    if value < 0:
        raise ValueError("negative")
    return np.array([value * value])


@pytest.mark.parametrize("processes", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_results_are_in_order_and_kept(processes: int, tmp_path: Path) -> None:
    calls = tmp_path / "calls"
    jobs = [partial(kept, tmp_path / f"{n}.npy", partial(square, float(n), calls)) for n in range(4)]
    for number in (processes, 1):
        assert [float(found[0]) for found in spread("squares", jobs, number)] == [0.0, 1.0, 4.0, 9.0]
    assert len(calls.read_text().split()) == 4


@pytest.mark.parametrize("processes", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_what_was_done_before_a_failure_is_kept(processes: int, tmp_path: Path) -> None:
    calls = tmp_path / "calls"
    jobs = [partial(kept, tmp_path / f"{n}.npy", partial(square, float(n), calls)) for n in (1, -1)]
    with pytest.raises(ValueError, match="negative"):
        spread("squares", jobs, processes)
    assert not (tmp_path / "-1.npy").exists()
    if processes == 1:
        assert np.load(tmp_path / "1.npy") == [1.0]
