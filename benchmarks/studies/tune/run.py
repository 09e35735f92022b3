"""Is the native law stable whatever parameters an agent of `L4S-DualPI2-Tune-v0` sets?

    python benchmarks/studies/tune/run.py                 # both parts: about three minutes on one core
    python benchmarks/studies/tune/run.py --episodes 1000

Part 1, on paper: the loop of De Schepper et al. 2016 ("PI2: a linearized AQM for both classic and scalable TCP"),
linearised about its equilibrium as Hollot et al. 2002 do. With R = base RTT + target, W the window in packets, k the
coupling and e = exp(-sR), the queue delay answers to the base probability p' by

    Reno (p = p'^2):    sqrt(2)/R e / ((s + (1 + e)/(RW)) (s + 1/R) + (1 - e)/(R^2 W))
    scalable (p = kp'): k/(2R)    e / ((s + e/(RW))       (s + 1/R) + (1 - e)/(R^2 W))

(with a minus sign), and p' to the delay by (alpha + beta (1 - exp(-sT)))/(sT), which is the controller with the hold
between two updates. Stable is a loop whose Nyquist curve does not go round -1.

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
from l4s_gym.evaluation.origin import origin
from l4s_gym.sim import measure
from l4s_gym.sim.dualpi2_rfc9332 import Options
from l4s_gym.sim.scenario import Scenario, load, names

RESULTS = Path(__file__).resolve().parent / "results"
Floats = npt.NDArray[np.float64]
RTTS_MS = (5, 10, 20, 50, 100)
RATES_MBPS = (4, 12, 40, 120, 200)
FLOWS = (1, 10)
NATIVE = Options()
OMEGA = np.geomspace(1e-3, np.pi / (1e-3 * NATIVE.tupdate_ms), 1500)
"""Angular frequencies, 1/s, up to half of the controller's rate."""
ENVS = 50
FLAVOURS = ("held", "changing")
"""Parameters of the first half of the environments, and of the second."""


def loop(scalable: bool, rtt_s: float, window: float, gains: tuple[float, float], coupling: float) -> Any:
    """Open loop at each of `OMEGA` (complex)."""
    s = 1j * OMEGA
    delay, update = np.exp(-s * rtt_s), 1e-3 * NATIVE.tupdate_ms
    controller = (gains[0] + gains[1] * (1 - np.exp(-s * update))) / (s * update)
    own, gain = (delay, coupling / 2) if scalable else (1 + delay, np.sqrt(2))
    slow = (s + own / (rtt_s * window)) * (s + 1 / rtt_s) + (1 - delay) / (rtt_s**2 * window)
    return controller * gain / rtt_s * delay / slow


def is_stable(curve: Any) -> bool:
    """Whether the Nyquist curve of a loop with one integrator does not go round -1: 1 + L turns by a quarter."""
    turned = np.unwrap(np.angle(1 + curve))
    return bool(abs(turned[-1] - turned[0] - np.pi / 2) < np.pi / 2)


def margins(curve: Any) -> tuple[float, float]:
    """Phase margin at the last gain crossover, degrees, and gain margin at the first phase crossover, dB."""
    phase, gain = np.unwrap(np.angle(curve)), np.abs(curve)
    phase -= 2 * np.pi * np.round((phase[0] + np.pi / 2) / (2 * np.pi))
    above = np.flatnonzero(gain >= 1.0)
    beyond = np.flatnonzero(phase <= -np.pi)
    phase_margin = 180.0 + np.degrees(phase[above[-1]]) if len(above) else np.inf
    return float(phase_margin), float(-20 * np.log10(gain[beyond[0]])) if len(beyond) else np.inf


def worst(scalable: bool, rtt_ms: float, factors: Floats) -> tuple[bool, float, float]:
    """Stable at all rates and numbers of flows; and the smallest margins."""
    rtt_s = 1e-3 * (rtt_ms + NATIVE.target_ms * factors[0])
    windows = {max(rate * 1e6 * rtt_s / 12e3 / flows, 2.0) for rate, flows in itertools.product(RATES_MBPS, FLOWS)}
    gains = (NATIVE.alpha * factors[1], NATIVE.beta * factors[2])
    curves = [loop(scalable, rtt_s, window, gains, NATIVE.coupling * factors[3]) for window in windows]
    found = [margins(curve) for curve in curves]
    return all(map(is_stable, curves)), min(each[0] for each in found), min(each[1] for each in found)


def on_paper(draws: int, rng: np.random.Generator) -> list[dict[str, Any]]:
    """For each base RTT: margins of the operator's values, share of the box that is stable, largest stable gains."""
    box = np.exp(rng.uniform(np.log(LOWEST), np.log(HIGHEST), (draws, len(PARAMETERS))))
    rows = []
    for rtt_ms in RTTS_MS:
        row: dict[str, Any] = {"rtt_ms": rtt_ms}
        for name in ("reno", "scalable"):
            scalable = name == "scalable"
            _, phase, gain = worst(scalable, rtt_ms, np.ones(5))
            row[f"{name}_phase_margin_deg"], row[f"{name}_gain_margin_db"] = phase, gain
            row[f"{name}_stable_share"] = np.mean([worst(scalable, rtt_ms, factors)[0] for factors in box])
            steps = np.geomspace(0.1, 10.0, 61)
            stable = [worst(scalable, rtt_ms, np.array([1.0, f, f, 1.0, 1.0]))[0] for f in steps]
            row[f"{name}_largest_gain_factor"] = float(steps[np.flatnonzero(stable)[-1]])
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
    head = (
        "scenario",
        "C p50: native, median, worst",
        "C p99",
        "C max",
        "L p99",
        "utilisation, held: least, median",
        "changing",
    )
    for aqm, rows in data["simulated"].items():
        parts += [f"\n## Simulated: `{aqm}`, ms\n"]
        parts += markdown.table(
            head,
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
