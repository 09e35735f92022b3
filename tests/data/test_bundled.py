"""The log that ships is what the simulator writes (`l4s-gym simulate --seconds 8 --log FILE`, then gzip)."""

from __future__ import annotations

from l4s_gym import schema
from l4s_gym.data.logs import read_log
from l4s_gym.evaluation.demo import bundled_log
from l4s_gym.evaluation.native import simulate
from l4s_gym.sim import scenario


def test_the_bundled_log_is_the_simulators() -> None:
    shipped, report = read_log([bundled_log()])
    assert not report.skipped
    run = simulate(scenario.load("l4s-llm-testbed").replace(horizon_s=8.0), log=True)
    printed = [field.name for field in schema.PRINTED]
    assert len(shipped) == len(run.records)
    for name in printed:
        assert (shipped[name] == run.records[name]).all(), name
