"""Files of results."""

from __future__ import annotations

from pathlib import Path

import pytest

from l4s_gym.evaluation.origin import append_run, origin


def test_runs_are_appended(tmp_path: Path) -> None:
    path = tmp_path / "new" / "results.json"
    first = append_run(path, {**origin(), "figure": (1, 2)})
    assert first[0]["figure"] == [1, 2] and "versions" in first[0]
    assert append_run(path, {"figure": 3}) == [*first, {"figure": 3}]
    before = path.read_bytes()
    with pytest.raises(TypeError):
        append_run(path, {"figure": object()})
    assert path.read_bytes() == before
