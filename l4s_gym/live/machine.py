"""Checks of this machine's settings for `l4s_gym.live.doctor`: sysctls, offloads, firewall rules."""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

from l4s_gym.errors import L4SError
from l4s_gym.live.doctor import ONCE, Finding

Runner = Callable[[Sequence[str]], str | None]
"""A function that runs a command and returns its output, or None if it is missing or fails."""


def run_command(command: Sequence[str]) -> str | None:
    """Run a command; return its output, or None if it is missing or fails."""
    if shutil.which(command[0]) is None:
        return None
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout if done.returncode == 0 else None


def local_checks(
    *,
    namespace: str | None = None,
    interface: str | None = None,
    ecn_seen: bool = False,
    run: Runner = run_command,
    system: str | None = None,
) -> list[Finding]:
    """Check this machine's settings; those that cannot be read here are left out.

    Args:
        namespace: Look in this network namespace (Linux).
        interface: Look at the offloads of this interface (Linux).
        ecn_seen: The rows show ECN: the senders are elsewhere, and this machine's own setting does not matter.
        run: Runs commands.
        system: `Linux` or `FreeBSD`; None: this one.
    """
    system = system or platform.system()
    inside = ["ip", "netns", "exec", namespace] if namespace else []
    if system == "FreeBSD":
        found = [_freebsd_ecn(run), _freebsd_hz(run), _freebsd_rules(run)]
    else:
        found = [_linux_ecn(run, inside)]
        if interface:
            found.append(_linux_offloads(run, inside, interface))
    return [finding for finding in found if finding is not None and not (ecn_seen and finding.name in _OWN_ECN)]


_OWN_ECN: Final = ("sysctl tcp_ecn", "sysctl ecn.enable")


def testbed_check() -> Finding:
    """Check whether `l4s-gym live up` can run here."""
    from l4s_gym.live.testbed import check_host

    try:
        check_host()
    except L4SError as error:
        return Finding("live up", "unknown", f"cannot make a queue here: {error}")
    return Finding("live up", "ok", "can make a queue here")


def _number(text: str | None) -> int | None:
    match = re.search(r"-?\d+", text or "")
    return int(match.group()) if match else None


def _linux_ecn(run: Runner, inside: list[str]) -> Finding | None:
    path = "/proc/sys/net/ipv4/tcp_ecn"
    if inside:
        value = _number(run([*inside, "cat", path]))
    else:
        value = _number(Path(path).read_text()) if os.path.exists(path) else None
    if value is None:
        return Finding("sysctl tcp_ecn", "unknown", "cannot be read") if inside else None
    if value == 1:
        return Finding("sysctl tcp_ecn", "ok", "1: senders here ask for ECN")
    seen = f"{value}: senders here do not ask for ECN" + (", receivers agree to it" if value == 2 else "")
    remedy = "sysctl -w net.ipv4.tcp_ecn=1 (not needed where only the router runs here)"
    return Finding("sysctl tcp_ecn", "warn" if value == 2 else "fail", seen, remedy)


def _linux_offloads(run: Runner, inside: list[str], interface: str) -> Finding:
    text = run([*inside, "ethtool", "-k", interface])
    if text is None:
        return Finding("ethtool", "unknown", f"offloads of {interface} cannot be read (is ethtool installed?)")
    names = (
        "tcp-segmentation-offload",
        "generic-segmentation-offload",
        "generic-receive-offload",
        "large-receive-offload",
    )
    on = [name for name in names if re.search(rf"^\s*{name}: on", text, re.M)]
    if not on:
        return Finding("ethtool", "ok", f"{interface}: no offload is on")
    return Finding(
        "ethtool", "fail", f"{interface}: {', '.join(on)}", f"ethtool -K {interface} tso off gso off gro off lro off"
    )


def _freebsd_ecn(run: Runner) -> Finding | None:
    value = _number(run(["sysctl", "-n", "net.inet.tcp.ecn.enable"]))
    if value is None:
        return None
    if value in (1, 3, 4):
        return Finding("sysctl ecn.enable", "ok", f"{value}: senders here ask for ECN")
    seen = f"{value}: senders here do not ask for ECN"
    remedy = "sysctl net.inet.tcp.ecn.enable=1 (not needed where only the router runs here)"
    return Finding("sysctl ecn.enable", "fail" if value == 0 else "warn", seen, remedy)


def _freebsd_hz(run: Runner) -> Finding | None:
    value = _number(run(["sysctl", "-n", "kern.hz"]))
    if value is None:
        return None
    if value >= 1000:
        return Finding("kern.hz", "ok", str(value))
    remedy = 'kern.hz="1000" in /boot/loader.conf, and reboot'
    return Finding("kern.hz", "fail", f"{value}: dummynet sends every {1000 / value:g} ms", remedy)


def _freebsd_rules(run: Runner) -> Finding | None:
    """A rule without a direction matches a routed packet on input and on output."""
    text = run(["ipfw", "show"])
    if text is None:
        return None
    rules = [line.strip() for line in text.splitlines() if re.search(r"\b(?:queue|pipe) \d+ ", line)]
    if not rules:
        return Finding(
            "ipfw", "fail", "no rule sends packets to a queue", "ipfw add queue 1 ip from any to any out ..."
        )
    both = [rule for rule in rules if not re.search(r"\b(?:in|out|recv|xmit|via)\b", rule)]
    if both:
        return Finding("ipfw", "fail", f"matches input and output: {both[0]}", ONCE)
    return Finding("ipfw", "ok", f"{len(rules)} rules send packets to a queue, once")
