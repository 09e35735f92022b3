"""Behaviour cloning by d3rlpy's own API: log a discipline, train on its decisions, run the result in the loop.

    python examples/offline_bc.py --steps 5000

Needs `pip install 'l4s-gym[baselines,data]'`. `l4s-gym train bc` does this with checkpoints and held-out metrics.
"""

import argparse

from l4s_gym.agents.d3rlpy_agents import BCAgent
from l4s_gym.data.d3rlpy_io import import_d3rlpy, quiet, replay_buffer
from l4s_gym.data.pools import make_rows
from l4s_gym.data.simulated import simulate_log
from l4s_gym.data.steps import episodes_from_rows
from l4s_gym.evaluation.harness import evaluate
from l4s_gym.sim import scenario

SCENARIO = "l4s-llm-testbed"
TEACHER = "dualpi2_freebsd"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=5000, help="gradient steps")
    parser.add_argument("--seconds", type=float, default=30.0, help="of each logged and evaluated episode")
    given = parser.parse_args()

    logs = [simulate_log(SCENARIO, seed=seed, seconds=given.seconds, aqm=TEACHER) for seed in range(3)]
    buffer = replay_buffer([episode for log in logs for episode in episodes_from_rows(make_rows(log))])
    print(f"{buffer.transition_count} logged decisions of {TEACHER}")

    d3rlpy = import_d3rlpy()
    config = d3rlpy.algos.DiscreteBCConfig(
        learning_rate=1e-3,
        batch_size=256,
        beta=0.0,  # no pull of the probabilities towards 1/3
        observation_scaler=d3rlpy.preprocessing.StandardObservationScaler(),
    )
    bc = config.create()
    with quiet():
        silent = d3rlpy.logging.NoopAdapterFactory()
        bc.fit(buffer, n_steps=given.steps, n_steps_per_epoch=given.steps, logger_adapter=silent, show_progress=False)

    short = scenario.load(SCENARIO).replace(horizon_s=given.seconds)
    for who in (BCAgent(bc, "bc", rule="sample"), BCAgent(bc, "bc", rule="argmax"), f"native:{TEACHER}"):
        r = evaluate(who, short, seeds=[100])[0]
        delays = ", ".join(f"{queue} {r.delay_ms[queue]['p50']:.1f} ms" for queue in "CL")
        print(f"{r.agent} {r.rule}: {delays}, marked {100 * r.mark_rate:.2f} %, return {r.episode_return:.2f}")


if __name__ == "__main__":
    main()
