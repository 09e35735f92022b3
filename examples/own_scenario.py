"""A scenario of your own: a home link with two downloads, a call in L4S and web users, under five disciplines.

    python examples/own_scenario.py --seconds 10

The same fields in a TOML file work wherever a scenario's name does: `l4s-gym simulate home.toml`.
"""

import argparse

from l4s_gym.evaluation import native
from l4s_gym.sim import scenario

HOME = {
    "name": "home",
    "description": "Two downloads, a video call in L4S, and web users",
    "link": {"rate_mbps": 50.0, "steps": [[10.0, 0.5], [20.0, 1.0]]},  # half the rate from 10 s to 20 s
    "sources": [
        {"kind": "cubic", "count": 2, "rtt_ms": 30.0},
        {"kind": "prague", "count": 1, "rtt_ms": 10.0},
        {"kind": "web", "count": 4, "rtt_ms": 20.0},
    ],
    "options": {"pie": {"target_ms": 10.0}},
}
AQMS = ("fifo", "codel", "pie", "dualpi2_rfc9332", "dualpi2_linux")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=30.0)
    home = scenario.from_dict(HOME).replace(horizon_s=parser.parse_args().seconds)
    print(f"{'discipline':16} {'C p50 / p99 ms':>16} {'L p50 / p99 ms':>16} {'used %':>7}")
    for aqm in AQMS:
        summary = native.simulate(home, aqm, seed=0).summary
        delays = [f"{d['p50']:.1f} / {d['p99']:.1f}" for d in (summary["delay_ms"][c] for c in "CL")]
        print(f"{aqm:16} {delays[0]:>16} {delays[1]:>16} {100 * summary['utilisation']:7.1f}")


if __name__ == "__main__":
    main()
