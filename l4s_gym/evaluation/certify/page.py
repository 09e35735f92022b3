"""The report: one HTML file with its pictures, which asks nothing of the network."""

from __future__ import annotations

import base64
import io
import json
import string
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from importlib import resources
from pathlib import Path
from typing import Any, Final

import numpy as np

from l4s_gym.data.files import atomic_write
from l4s_gym.evaluation.certify import statements
from l4s_gym.evaluation.certify.run import LAGS_MS, RESULT, SINE
from l4s_gym.extras import optional

PAGE: Final = "index.html"
Parts = Mapping[str, Any]
SHIELD_MS: Final = ((50.0, 100.0, 150.0, 200.0, 300.0, 500.0), (5.0, 10.0, 20.0, 50.0, 100.0))
"""Delays of C and L that the shield of the kernel's core might have as bounds."""
BLUE, RED, GREY = "#0072b2", "#c44e00", "#444b52"


_PAGE: Final = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>Stability: $name</title>
<meta name="viewport" content="width=device-width">
<style>$style img { max-width: 100%; background: #fff; }</style></head>
<body><header><h1>Stability of $name</h1><p>Equations are those of the L4S-LLM paper's appendix; PI2 is the linearised
loop. All numbers are in $result.</p></header><main>$body</main></body></html>
"""


def table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Return a table; the first cell of a row is its head."""
    over = "".join(f'<th scope="col">{escape(name)}</th>' for name in head)
    body = "".join(
        f'<tr><th scope="row">{escape(str(first))}</th>{"".join(f"<td>{escape(str(cell))}</td>" for cell in rest)}</tr>'
        for first, *rest in rows
    )
    return f'<div class="scroll" tabindex="0"><table><thead><tr>{over}</tr></thead><tbody>{body}</tbody></table></div>'


@dataclass(frozen=True)
class Picture:
    """A picture with its words.

    Attributes:
        title: Above it.
        words: What it shows.
        draw: Draws into some axes.
        panels: Their number, side by side.
    """

    title: str
    words: str
    draw: Callable[[list[Any]], None]
    panels: int = 1

    def html(self) -> str:
        """Return it as a figure."""
        figure = optional("matplotlib.figure", "report").Figure(
            figsize=(4.2 * max(self.panels, 2) + 0.6, 3.4), dpi=100, layout="constrained"
        )
        self.draw(list(np.atleast_1d(figure.subplots(1, self.panels))))
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", metadata={"Software": None})
        data = base64.b64encode(buffer.getvalue()).decode()
        alt = escape(f"{self.title}. {self.words}")
        image = f'<img alt="{alt}" src="data:image/png;base64,{data}">'
        return f"<figure>{image}<figcaption>{escape(self.words)}</figcaption></figure>"


def _drift(parts: Parts) -> Picture:
    def draw(axes: list[Any]) -> None:
        for panel, lag_ms in zip(axes, LAGS_MS, strict=True):
            bands = [band for band in statements.drift(parts, lag_ms) if band.episodes]
            x = np.arange(len(bands))
            value = np.array([band.drift for band in bands])
            ends = np.array([[band.drift_low, band.drift_high] for band in bands])
            reach = np.nan_to_num(np.abs(ends - value[:, None]).T)
            panel.errorbar(x, value, reach, fmt="o", color=BLUE, capsize=3)
            panel.axhline(0.0, color=GREY, lw=0.8)
            panel.set_yscale("symlog", linthresh=0.1)
            panel.set_xticks(x, [f"{band.low:g}-{band.high:g}" for band in bands], rotation=60)
            panel.set_xlabel("delay of C, targets")
            panel.set_title(f"dt = {lag_ms:g} ms", fontsize="medium")
        axes[0].set_ylabel("E[V(t + dt) - V(t)]")

    words = "Mean change of V = (delay / target - 1)^2 by the delay now, with intervals that hold together (95 %)."
    return Picture("Drift", words, draw, len(LAGS_MS))


def _tails(parts: Parts) -> Picture:
    rows = statements.episodes(parts)

    def draw(axes: list[Any]) -> None:
        for k, (panel, queue) in enumerate(zip(axes, "CL", strict=True)):
            for name, words, color in (
                ("moment_ms", "at a moment", BLUE),
                ("longest_ms", "longest of an episode", RED),
            ):
                x = np.sort(np.maximum([row[name][k] for row in rows], 1e-2))
                panel.step(x, 1.0 - np.arange(len(x)) / len(x), color=color, label=words, where="pre")
            panel.set(xscale="log", xlabel=f"delay of {queue}, ms", ylim=(0.0, 1.02))
            panel.legend(frameon=False, fontsize="small")
        axes[0].set_ylabel("share of episodes above")

    return Picture("Tails", "Share of the episodes whose delay is above a bound.", draw, 2)


def _responses(parts: Parts) -> Picture:
    points = statements.with_prefix(parts, "response ")

    def draw(axes: list[Any]) -> None:
        for panel, (name, part) in zip(axes, points.items(), strict=True):
            mean, spread = np.array(part["response"]), np.array(part["deviation"])
            time_ms = 1e3 * part["step_s"] * np.arange(len(mean))
            for k, output in enumerate(part["outputs"]):
                for j, style in zip(range(mean.shape[2]), ("-", "--"), strict=False):
                    size = spread[2 - j] / spread[k]
                    color = (BLUE, RED, GREY)[k]
                    panel.plot(
                        time_ms, mean[:, k, j] * size, style, color=color, label=f"{output}, {part['inputs'][j]}"
                    )
            panel.set_title(name, fontsize="medium")
            panel.set_xlabel("ms after the change")
            panel.axhline(0.0, color=GREY, lw=0.5)
        axes[0].legend(frameon=False, fontsize="x-small")
        axes[0].set_ylabel("deviations per deviation")

    words = "Mean of what follows a small change of windows (lines) and of the base probability (dashed)."
    return Picture("Response", words, draw, len(points))


def _margins(parts: Parts) -> Picture:
    onsets = list(statements.with_prefix(parts, "onset ").values())

    def draw(axes: list[Any]) -> None:
        for panel, part in zip(axes, onsets, strict=True):
            panel.plot(part["gains"], part["swings"], "o-", color=BLUE)
            panel.axhline(SINE, color=GREY, lw=0.8)
            if part["theory"]:
                panel.axvline(part["theory"], color=RED, ls="--")
            panel.set(xscale="log", xlabel="factor of both gains")
            panel.set_title(f"RTT {part['rtt_ms']:g} ms", fontsize="medium")
        axes[0].set_ylabel("deviation / mean of p'")

    words = (
        "Simulator: p' swings more as the gains grow; grey: a sine that just reaches 0. Dashed: where the linearised "
        f"loop becomes unstable. {onsets[0]['flows']} Reno flows, {onsets[0]['rate_mbps']:g} Mbit/s."
    )
    return Picture("Onset of oscillation", words, draw, len(onsets))


def _slopes(parts: Parts) -> Picture | None:
    gains = parts["gains"]
    lower = gains.get("lower") or gains.get("transformer", {}).get("with LoRA")
    if not lower:
        return None

    def draw(axes: list[Any]) -> None:
        axes[0].bar(gains["features"], lower["features"], color=BLUE)
        axes[0].tick_params(axis="x", rotation=90, labelsize="small")
        axes[0].set_ylabel("largest slope of any output")

    return Picture("Slopes", "What the actions answer to, at observations that were met.", draw)


def _adapters(parts: Parts) -> str:
    found = parts["gains"].get("transformer")
    if not found:
        return ""
    rows = [(r["weight"], f"{r['lora']:.3g}", f"{r['base']:.3g}", f"{r['both']:.3g}") for r in found["adapters"]]
    layers = [
        (
            each["layer"],
            *(
                f"{found[name]['layers'][k][what]:.3g}"
                for name in ("with LoRA", "without")
                for what in ("norm", "radius")
            ),
        )
        for k, each in enumerate(found["with LoRA"]["layers"])
    ]
    ends = [(name, *(f"{found[name][key]:.3g}" for key in ("held", "now"))) for name in ("with LoRA", "without")]
    return (
        "<h3>LoRA's part</h3>"
        + table(("model", "slope, held", "slope, now"), ends)
        + table(("weight", "norm of what LoRA adds", "of the weight", "of both"), rows)
        + table(("layer", "norm", "radius", "norm without LoRA", "radius without LoRA"), layers)
    )


def _chances(parts: Parts) -> str:
    rows = [
        (
            f"{each.queue} > {each.bound}",
            *(f"{c.value:.3f} [{c.low:.4f}, {c.high:.4f}]" for c in (each.moment, each.packet)),
        )
        for each in statements.above(parts)
    ]
    shield = [
        (f"{queue} > {ms:g} ms", f"{c.hits} of {c.trials}", f"{c.value:.3f} [{c.low:.4f}, {c.high:.4f}]")
        for k, queue in enumerate("CL")
        for ms, c in statements.beyond(parts, k, SHIELD_MS[k])
    ]
    return (
        table(("delay", "at a moment", "any packet of an episode"), rows)
        + "<h3>Bounds that the kernel's shield might have</h3>"
        + table(("longest wait", "episodes", "probability"), shield)
    )


def _facts(content: Parts) -> str:
    about, origin = content["about"], content["origin"]
    pairs = {
        "Agent": json.dumps(about["subject"]),
        "Size": json.dumps(about["size"]),
        "Simulator": about["simulator"],
        "Versions": ", ".join(f"{name} {version}" for name, version in origin["versions"].items()),
        "Host": ", ".join(f"{value}" for value in origin["host"].values()),
        "Command": origin["command"],
        "Time": origin["time"],
        "Seconds": f"{sum(part['seconds'] for part in content['parts'].values()):.0f}",
    }
    return "<dl>" + "".join(f"<dt>{name}</dt><dd>{escape(text)}</dd>" for name, text in pairs.items()) + "</dl>"


def html(content: Parts) -> str:
    """Return the page of a file of results."""
    parts = content["parts"]
    name = escape(content["about"]["subject"]["name"])
    style = (resources.files("l4s_gym.evaluation.site") / "style.css").read_text(encoding="utf-8")
    found = statements.all_of(parts)
    rows = [(each.equation or "PI2", each.says, each.verdict, each.number, each.how) for each in found]
    slopes = _slopes(parts)
    sections = [
        ("Statements", table(("equation", "statement", "verdict", "number", "how"), rows)),
        ("Drift", _drift(parts).html()),
        ("Chances", _tails(parts).html() + _chances(parts)),
        ("Response", _responses(parts).html()),
    ]
    if "margins" in parts:
        sections.append(("Onset of oscillation", _margins(parts).html()))
    if slopes is not None:
        sections.append(("The model", slopes.html() + _adapters(parts)))
    sections.append(("Where it comes from", _facts(content)))
    body = "".join(f"<section><h2>{title}</h2>{text}</section>" for title, text in sections)
    return string.Template(_PAGE).substitute(name=name, style=style, result=RESULT, body=body)


def write(folder: Path) -> Path:
    """Write the page of the results in a folder; its path."""
    content = json.loads((folder / RESULT).read_text())
    path = folder / PAGE
    with atomic_write(path) as file:
        file.write(html(content).encode())
    return path
