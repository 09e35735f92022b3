"""Adaptive bitrate streaming: which quality the next four seconds of a video are loaded in.

`Streaming` is a Gymnasium environment with the reward of Pensieve (Mao et al. 2017), `POLICIES` are its classical
algorithms. Link and video are drawn for each episode; `read_trace` reads recorded links.

    python examples/netllm/abr.py  # the algorithms in all settings
"""

from __future__ import annotations

import csv
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import gymnasium as gym
import numpy as np
from gymnasium import spaces

CHUNK_S = 4.0
CHUNKS = 48
LADDER_MBPS = np.array([0.3, 0.75, 1.2, 1.85, 2.85, 4.3])
BUFFER_S = 60.0
"""With more than this the player waits before it asks for the next chunk."""
RTT_S = 0.08
PAYLOAD = 0.95
"""Share of the link's bytes that are video."""
STALL = 4.3
"""Cost of a second without picture, in Mbit/s of quality."""
HISTORY = 10
HIGHEST = 1e3
"""Bound of the observations."""
AHEAD = 5
"""Chunks whose sizes are observed, and that model predictive control looks ahead."""


@dataclass(frozen=True)
class Setting:
    """What links and videos are drawn from.

    Attributes:
        low_mbps: Lowest mean rate of a link.
        high_mbps: Highest mean rate.
        switch: Probability that the mean rate changes from one second to the next.
        noise: Standard deviation of a second's rate, as a share of the mean.
        ladder: Factor on the bitrates.
        vary: Standard deviation of the logarithm of a chunk's size.
        traces: Recorded links, in Mbit/s for each second; empty: drawn ones.
    """

    low_mbps: float = 0.4
    high_mbps: float = 6.0
    switch: float = 0.1
    noise: float = 0.1
    ladder: float = 1.0
    vary: float = 0.2
    traces: tuple[tuple[float, ...], ...] = ()


SETTINGS = {
    "same": Setting(),
    "unseen link": Setting(low_mbps=0.2, high_mbps=8.0, switch=0.4, noise=0.3),
    "unseen video": Setting(ladder=1.4, vary=0.5),
    "unseen both": Setting(low_mbps=0.2, high_mbps=8.0, switch=0.4, noise=0.3, ladder=1.4, vary=0.5),
}


def draw_trace(setting: Setting, rng: np.random.Generator, seconds: int = 400) -> np.ndarray:
    """Draw a link: its mean rate walks over ten states (Markov), most often to a near one; Mbit/s each second."""
    if setting.traces:
        rates = np.array(setting.traces[rng.integers(len(setting.traces))])
        return np.roll(rates, -rng.integers(len(rates)))
    states = np.geomspace(setting.low_mbps, setting.high_mbps, 10)
    state, rates = int(rng.integers(len(states))), np.zeros(seconds)
    for second in range(seconds):
        if rng.random() < setting.switch:
            step = int(rng.geometric(0.5)) * int(rng.choice((-1, 1)))
            state = int(np.clip(state + step, 0, len(states) - 1))
        rates[second] = states[state] * max(1.0 + setting.noise * rng.standard_normal(), 0.1)
    return rates


class Streaming(gym.Env):
    """A player that asks for one chunk after another.

    | observation | shape | |
    |---|---|---|
    | `last` | () | bitrate of the chunk before, 10 Mbit/s |
    | `buffer` | () | what is loaded and not yet played, minutes |
    | `left` | () | chunks that are left, as a share |
    | `throughput` | (10,) | of the last chunks, the newest last, 10 Mbit/s; 0: none yet |
    | `download` | (10,) | how long they took, 10 s |
    | `sizes` | (30,) | of the next 5 chunks in the 6 qualities, MB; 0: after the end |
    | `bitrates` | (6,) | of the qualities, 10 Mbit/s |

    The action is the quality of the next chunk, 0 to 5. The reward is its bitrate in Mbit/s, less 4.3 for each second
    without picture, less the difference to the bitrate of the chunk before. An episode is a video of 48 chunks.

    Args:
        setting: A `Setting`, or the name of one in `SETTINGS`.
    """

    def __init__(self, setting: Setting | str = "same") -> None:
        self.setting = SETTINGS[setting] if isinstance(setting, str) else setting
        one = spaces.Box(0.0, HIGHEST, (), np.float32)
        self.observation_space = spaces.Dict(
            {
                "last": one,
                "buffer": one,
                "left": one,
                "throughput": spaces.Box(0.0, HIGHEST, (HISTORY,), np.float32),
                "download": spaces.Box(0.0, HIGHEST, (HISTORY,), np.float32),
                "sizes": spaces.Box(0.0, HIGHEST, (AHEAD * len(LADDER_MBPS),), np.float32),
                "bitrates": spaces.Box(0.0, HIGHEST, LADDER_MBPS.shape, np.float32),
            }
        )
        self.action_space = spaces.Discrete(len(LADDER_MBPS))

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        rng = self.np_random
        self.rates = draw_trace(self.setting, rng)
        self.bitrates = LADDER_MBPS * self.setting.ladder
        complexity = self.setting.vary * rng.standard_normal((CHUNKS, 1))
        factor = np.exp(complexity + 0.05 * rng.standard_normal((CHUNKS, len(LADDER_MBPS))))
        self.sizes = np.maximum.accumulate(self.bitrates * CHUNK_S / 8.0 * factor, axis=1)  # (chunks, levels), MB
        self.chunk, self.level, self.buffer_s, self.clock_s = 0, 1, 0.0, 0.0
        self.throughput, self.download = np.zeros(HISTORY), np.zeros(HISTORY)
        return self._observation(), {}

    def _observation(self):
        ahead = np.zeros((AHEAD, len(LADDER_MBPS)))
        coming = self.sizes[self.chunk : self.chunk + AHEAD]
        ahead[: len(coming)] = coming
        found = {
            "last": self.bitrates[self.level] / 10.0,
            "buffer": self.buffer_s / 60.0,
            "left": 1.0 - self.chunk / CHUNKS,
            "throughput": self.throughput / 10.0,
            "download": self.download / 10.0,
            "sizes": ahead.ravel(),
            "bitrates": self.bitrates / 10.0,
        }
        return {name: np.array(np.minimum(value, HIGHEST), np.float32) for name, value in found.items()}

    def _load(self, megabytes: float) -> float:
        """Load a chunk; return how long it took, s."""
        start, left = self.clock_s, megabytes * 8.0
        self.clock_s += RTT_S
        while True:
            rate = PAYLOAD * self.rates[int(self.clock_s) % len(self.rates)]
            until = np.floor(self.clock_s) + 1.0
            if left <= rate * (until - self.clock_s):
                self.clock_s += left / rate
                return self.clock_s - start
            left -= rate * (until - self.clock_s)
            self.clock_s = until

    def step(self, action):
        megabytes = self.sizes[self.chunk, action]
        took = self._load(megabytes)
        stall = max(took - self.buffer_s, 0.0)
        self.buffer_s = max(self.buffer_s - took, 0.0) + CHUNK_S
        wait = max(self.buffer_s - BUFFER_S, 0.0)
        self.clock_s, self.buffer_s = self.clock_s + wait, self.buffer_s - wait
        quality, change = self.bitrates[action], abs(self.bitrates[action] - self.bitrates[self.level])
        self.throughput = np.append(self.throughput[1:], 8.0 * megabytes / took)
        self.download = np.append(self.download[1:], took)
        self.level, self.chunk = int(action), self.chunk + 1
        info = {"bitrate": quality, "stall": stall, "change": change}
        return self._observation(), float(quality - STALL * stall - change), self.chunk == CHUNKS, False, info


# -- the classical algorithms: from one observation to the quality


def _mean(throughput: np.ndarray) -> float:
    """Return the harmonic mean of the known throughputs, Mbit/s; 0: none is known."""
    known = throughput[throughput > 0.0]
    return len(known) / np.sum(1.0 / known) if len(known) else 0.0


def rate_based(observation) -> int:
    """Take the highest bitrate that the mean throughput of the last 5 chunks affords."""
    fits = observation["bitrates"] <= _mean(observation["throughput"][-5:])
    return max(int(fits.sum()) - 1, 0)


def buffer_based(observation, reservoir_s: float = 5.0, cushion_s: float = 10.0) -> int:
    """Take a bitrate in proportion to the buffer (BBA, Huang et al. 2014; the two numbers are those of Pensieve)."""
    share = (60.0 * float(observation["buffer"]) - reservoir_s) / cushion_s
    return int(np.clip(share * len(LADDER_MBPS), 0, len(LADDER_MBPS) - 1))


_PLANS = np.array(list(product(range(len(LADDER_MBPS)), repeat=AHEAD)))  # (6 ** 5, 5)


def robust_mpc(observation) -> int:
    """Take the first of the 5 qualities that would be best if the link stayed as predicted (Yin et al. 2015).

    All 6 ** 5 plans are tried. Predicted is the harmonic mean of the last 5 throughputs, divided by one plus the
    largest relative error of the last 5 predictions.
    """
    past = 10.0 * observation["throughput"].astype(np.float64)
    now = _mean(past[-5:])
    if not now:
        return 0
    errors = [abs(_mean(past[at - 5 : at]) - past[at]) / past[at] for at in range(5, HISTORY) if past[at - 1] > 0.0]
    rate = now / (1.0 + max(errors, default=0.0))
    bitrates = 10.0 * observation["bitrates"].astype(np.float64)
    sizes = observation["sizes"].reshape(AHEAD, -1)
    count = int((sizes[:, 0] > 0.0).sum())
    plans = _PLANS[:: len(LADDER_MBPS) ** (AHEAD - count), :count]  # each plan of the chunks that are left, once
    buffer_s, score = np.full(len(plans), 60.0 * observation["buffer"], np.float64), np.zeros(len(plans))
    last = np.full(len(plans), 10.0 * observation["last"], np.float64)
    for at in range(count):
        took = 8.0 * sizes[at][plans[:, at]] / rate
        chosen = bitrates[plans[:, at]]
        score += chosen - STALL * np.maximum(took - buffer_s, 0.0) - np.abs(chosen - last)
        buffer_s, last = np.maximum(buffer_s - took, 0.0) + CHUNK_S, chosen
    return int(plans[score.argmax(), 0])


POLICIES = {"rate": rate_based, "bba": buffer_based, "robust mpc": robust_mpc}


# -- links of your own


def read_trace(path: str | Path) -> tuple[float, ...]:
    """Read a recorded link as Mbit/s for each second, for `Setting.traces`.

    Takes files of Mahimahi (a line for each packet of 1,500 bytes: when it may leave, ms), of Pensieve (time in s and
    Mbit/s), Norway's HSDPA logs (6 columns, the last two of which are bytes and ms), and the FCC's table
    `curr_webget.csv` (a column `bytes_sec`; each row counts for 5 s).

    Raises:
        ValueError: The file is of no such format.
    """
    text = Path(path).read_text("utf-8")
    if "bytes_sec" in text.partition("\n")[0]:
        rows = [float(row["bytes_sec"]) for row in csv.DictReader(text.splitlines())]
        return tuple(np.repeat(np.array(rows) * 8e-6, 5).tolist())
    try:
        table = np.array([line.split() for line in text.splitlines() if line.strip()], np.float64)
    except ValueError:
        table = np.zeros((0, 0))
    columns = table.shape[1] if len(table) else 0
    if columns == 1:
        counts = np.bincount((table[:, 0] // 1000).astype(int))
        return tuple((counts * 1500 * 8e-6).tolist())
    if columns == 2:
        ends = np.append(table[1:, 0], 2 * table[-1, 0] - table[-2, 0] if len(table) > 1 else table[-1, 0] + 1.0)
        starts, rates = table[:, 0], table[:, 1]
    elif columns == 6:
        ends = np.cumsum(table[:, 5] / 1e3)
        starts, rates = ends - table[:, 5] / 1e3, table[:, 4] * 8e-3 / table[:, 5]
    else:
        raise ValueError(f"{path}: is no trace of Mahimahi, Pensieve, Norway's HSDPA logs or the FCC")
    seconds = np.arange(starts[0], max(ends[-1], starts[0] + 1.0))
    return tuple(rates[np.searchsorted(ends, seconds, side="right").clip(max=len(rates) - 1)].tolist())


if __name__ == "__main__":
    from play import table

    print(table(Streaming, SETTINGS, POLICIES, each_step=True))
