"""Is the native law stable whatever parameters an agent of `L4S-DualPI2-Tune-v0` sets?

    python benchmarks/studies/tune/run.py                 # both parts: about three minutes on one core
    python benchmarks/studies/tune/run.py --episodes 1000

Part 1, on paper: the linearised loop of `l4s_gym.evaluation.certify.fluid`.

Part 2, in the simulator: random parameters, in half of the episodes drawn once and held, in half anew for each control
interval of 100 ms; half of the draws are corners of the box.
"""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from l4s_gym import markdown
from l4s_gym.cli.arguments import command_line
from l4s_gym.data.files import atomic_write
from l4s_gym.envs.tune import HIGHEST, LOWEST, PARAMETERS, DualPI2TuneVectorEnv
from l4s_gym.evaluation.certify import fluid
from l4s_gym.evaluation.origin import origin
from l4s_gym.sim import measure
from l4s_gym.sim.dualpi2_rfc9332 import Options
from l4s_gym.sim.scenario import Scenario, load, names

RESULTS = Path(__file__).resolve().parent / "results"
Floats = npt.NDArray[np.float64]
NATIVE = Options()
ENVS = 50
FLAVOURS = ("held", "changing")
"""Parameters of the first half of the environments, and of the second."""


def on_paper(draws: int, rng: np.random.Generator) -> list[dict[str, Any]]:
    """For each base RTT: margins of the operator's values, share of the box that is stable, largest stable gains."""
    box = np.exp(rng.uniform(np.log(LOWEST), np.log(HIGHEST), (draws, len(PARAMETERS))))
    rows = []
    for rtt_ms in fluid.RTTS_MS:
        row: dict[str, Any] = {"rtt_ms": rtt_ms}
        for name in ("reno", "scalable"):
            scalable = name == "scalable"
            _, phase, gain = fluid.worst(NATIVE, scalable, rtt_ms, [1.0] * 5)
            row[f"{name}_phase_margin_deg"], row[f"{name}_gain_margin_db"] = phase, gain
            row[f"{name}_stable_share"] = np.mean([fluid.worst(NATIVE, scalable, rtt_ms, each).stable for each in box])
            row[f"{name}_largest_gain_factor"] = fluid.largest_gain(NATIVE, scalable, rtt_ms)
        rows.append(row)
    return rows


def scenarios(seconds: float) -> list[Scenario]:
    """Those that ship, with the events of `steps` and `overload` inside the episode."""
    found = [load(name) for name in names() if not name.startswith("l4s-llm")]
    events: dict[str, dict[str, Any]] = {"steps": {"link.steps": [[0.5 * seconds, 0.25]]}}
    late = [k for k, source in enumerate(load("overload").sources) if source.start_s > 0.0]
    events["overload"] = {f"sources.{k}.start_s": 0.3 * seconds for k in late}
    return [each.replace(horizon_s=seconds, **events.get(each.name, {})) for each in found]


def actions(rng: np.random.Generator) -> Floats:
    """Random ones (ENVS, 5), half of them corners."""
    corners = rng.choice([-1.0, 1.0], (ENVS, 5))
    return np.where(rng.random((ENVS, 1)) < 0.5, corners, rng.uniform(-1.0, 1.0, (ENVS, 5)))


def play(env: DualPI2TuneVectorEnv, seed: int, rng: np.random.Generator | None) -> tuple[list[Any], Floats]:
    """An episode in each environment; summaries, and the actions that were held. Without `rng`: the native law."""
    env.reset(seed=seed)
    zero = np.zeros((ENVS, 5))
    held = zero if rng is None else actions(rng)
    over = np.zeros(ENVS, bool)
    while not over.all():
        changing = zero if rng is None else actions(rng)
        # The first half holds what was drawn.
        given = np.concatenate([held[: ENVS // 2], changing[ENVS // 2 :]]).astype(np.float32)
        _, reward, terminated, truncated, _ = env.step(given)
        over |= terminated | truncated
        e = env.batch.env
        sending = (e["sending_packet"] >= 0).astype(int)
        assert np.array_equal(e["sent"], e["delivered"] + e["dropped"] + e["packets"] + sending), "packets are lost"
        assert np.array_equal(e["packets"], env.batch.queues["packets"].sum(1)), "packets are lost"
        assert np.isfinite(reward).all(), "a reward is no number"
        prob = env.batch.own["prob"]
        assert ((prob >= 0) & (prob <= 1 << 32)).all(), "a probability is out of its range"
    return [measure.summary(env.batch, i) for i in range(ENVS)], held


def simulated(episodes: int, seconds: float, aqm: str, seed: int) -> list[dict[str, Any]]:
    """For each scenario: C's and L's delay under the native law, and the worst under random parameters, ms."""
    rng = np.random.default_rng(seed)
    chosen = scenarios(seconds)
    rows = []
    for scenario in chosen:
        env = DualPI2TuneVectorEnv(ENVS, scenario, aqm, 100.0, autoreset_mode="disabled", copy=False)
        native, _ = play(env, seed, None)
        runs: list[Any] = []
        held: list[Floats] = []
        while len(runs) * len(chosen) < episodes:
            found, drawn = play(env, seed + len(runs), rng)
            runs += found
            held.append(drawn)
        row: dict[str, Any] = {"scenario": scenario.name, "episodes": len(runs), "buffer_ms": scenario.link.buffer_ms}
        for cls, figure in (("C", "p50"), ("C", "p99"), ("C", "max"), ("L", "p99")):
            values = np.array([run["delay_ms"][cls][figure] for run in runs])
            row[f"{cls}_{figure}_native"] = max(run["delay_ms"][cls][figure] for run in native)
            row[f"{cls}_{figure}_median"], row[f"{cls}_{figure}_worst"] = np.median(values), values.max()
        worst_run = int(np.argmax([run["delay_ms"]["C"]["p50"] for run in runs]))
        k, i = divmod(worst_run, ENVS)
        row["worst_held"] = held[k][i].round(2).tolist() if i < ENVS // 2 else None
        used = np.array([run["utilisation"] for run in runs]).reshape(-1, 2, ENVS // 2)
        row |= {f"used_{name}": np.quantile(used[:, half], (0.0, 0.5)).tolist() for half, name in enumerate(FLAVOURS)}
        rows.append(row)
        print(f"{aqm} {scenario.name}: worst C delay {row['C_max_worst']:.0f} ms", flush=True)
    return rows


def tables(data: dict[str, Any]) -> str:
    """The results in words."""
    head = ("base RTT ms", "Reno: phase margin, gain margin", "box stable", "gains up to")
    paper = markdown.table(
        (*head, *(each.replace("Reno", "scalable") for each in head[1:])),
        [
            (
                row["rtt_ms"],
                *itertools.chain.from_iterable(
                    (
                        f"{row[f'{name}_phase_margin_deg']:.0f} deg, {row[f'{name}_gain_margin_db']:.1f} dB",
                        f"{100 * row[f'{name}_stable_share']:.0f} %",
                        f"x {row[f'{name}_largest_gain_factor']:.2g}",
                    )
                    for name in ("reno", "scalable")
                ),
            )
            for row in data["on_paper"]
        ],
    )
    parts = ["# Stability of the native law under other parameters\n\n## On paper\n", *paper]
    measures = "C p50: native, median, worst", "C p99", "C max", "L p99", "utilisation, held: least, median", "changing"
    for aqm, rows in data["simulated"].items():
        parts += [f"\n## Simulated: `{aqm}`, ms\n"]
        parts += markdown.table(
            ("scenario", *measures),
            [
                (
                    row["scenario"],
                    *(
                        ", ".join(f"{row[f'{of}_{how}']:.3g}" for how in ("native", "median", "worst"))
                        for of in ("C_p50", "C_p99", "C_max", "L_p99")
                    ),
                    *(", ".join(f"{share:.2f}" for share in row[f"used_{name}"]) for name in FLAVOURS),
                )
                for row in rows
            ],
        )
    return "\n".join(parts) + "\n"


def main(episodes: int = 10_000, seconds: float = 4.0, draws: int = 300, seed: int = 0, out: Path = RESULTS) -> None:
    """Margins on paper, then episodes of the simulator.

    Args:
        episodes: Episodes with random parameters, of each discipline.
        seconds: Length of each; the statistics leave out the first half.
        draws: Points of the box that are judged on paper.
        seed: Of all that is random.
        out: Folder of the results.
    """
    data: dict[str, Any] = {
        **origin(),
        "episodes": episodes,
        "seconds": seconds,
        "on_paper": on_paper(draws, np.random.default_rng(seed)),
        "simulated": {aqm: simulated(episodes, seconds, aqm, seed) for aqm in ("dualpi2_rfc9332", "dualpi2_linux")},
    }
    out.mkdir(parents=True, exist_ok=True)
    for name, text in (("tune.json", json.dumps(data, indent=1, default=float)), ("tune.md", tables(data))):
        with atomic_write(out / name) as file:
            file.write(text.encode())


if __name__ == "__main__":
    command_line(main)
