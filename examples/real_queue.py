"""An agent on a real Linux queue: starts the router and its test traffic, lets an agent decide, takes all of it down.

    sudo python examples/real_queue.py --seconds 10

Needs Linux, root, and a C compiler or built programs (`make kernel`); without root it says so and ends.
"""

import argparse
import os
import subprocess
import sys
import time
from pathlib import Path

import gymnasium as gym

SOCKET = Path("/run/l4s-gym/example.sock")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=10.0)
    seconds = parser.parse_args().seconds
    if not sys.platform.startswith("linux") or os.geteuid() != 0:
        print("skipped: a router needs Linux and root")
        return
    env = gym.make("l4s_gym:L4S-DualPI2-Live-v0", socket=str(SOCKET), decision_interval=10, horizon_s=seconds)
    up = ["live", "up", "--scenario", "l4s-llm-testbed", "--seconds", str(seconds + 30), "--socket", str(SOCKET)]
    router = subprocess.Popen([sys.executable, "-m", "l4s_gym.cli", *up], stdout=subprocess.DEVNULL)
    try:
        while not SOCKET.exists():
            if router.poll() is not None:
                sys.exit("the router did not start: `l4s-gym live up` says why")
            time.sleep(0.1)
        obs, info = env.reset()
        truncated = False
        while not truncated:
            action = 2 if obs[3] > (0.01 if obs[0] else 0.15) else 0  # mark above 1 ms in L, 15 ms in C
            obs, _, _, truncated, info = env.step(action)
        env.close()
        print(f"ended by {info['reason']}: {info['statistics']}")
    finally:
        router.terminate()
        router.wait()


if __name__ == "__main__":
    main()
