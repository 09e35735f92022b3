"""The commands of a live testbed, in order: `l4s-gym live up --dry-run` prints them, `testbed` runs them."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from l4s_gym.live.router import PORT, RECEIVER, LiveConfig

DEVICE: Final = "l4s0"
QUEUE_PACKETS: Final = 10_000
"""Between a namespace and the router: long enough that packets are lost in the router's queue only."""

_SETTINGS: Final = """\
set -e
cd /proc/sys/net
[ ! -e ipv6/conf/{device}/disable_ipv6 ] || echo 1 >ipv6/conf/{device}/disable_ipv6
echo {ecn} >ipv4/tcp_ecn
echo 0 >ipv4/tcp_ecn_fallback
echo 1 >ipv4/tcp_no_metrics_save
"""

_WATCHER: Final = """\
trap '' INT TERM HUP
read -r line
for name in "$1" "$2"; do
    for round in 1 2 3 4 5 6 7 8 9 10; do
        left=$(ip netns pids "$name" 2>/dev/null)
        [ -n "$left" ] || break
        kill -KILL $left 2>/dev/null
        sleep 0.05
    done
    ip netns del "$name" 2>/dev/null
done
rm -rf -- "$3"
[ -z "$4" ] || rm -f -- "$4"
exit 0
"""
"""Ends by the end of file that the death of the testbed's process gives it, and takes everything down."""


@dataclass(frozen=True)
class Names:
    """Names of the namespaces and files of a testbed.

    Attributes:
        tag: Of the namespaces.
        folder: For configuration, statistics, and the router's socket; goes with the testbed.
        socket: Of the daemon.
    """

    tag: str
    folder: Path
    socket: Path

    @property
    def senders(self) -> str:
        """Namespace of the senders; router and daemon run in it too, so that they end with it."""
        return f"{self.tag}-snd"

    @property
    def receivers(self) -> str:
        """Namespace of the receivers."""
        return f"{self.tag}-rcv"

    @property
    def device(self) -> Path:
        """The router's socket."""
        return self.folder / "device.sock"

    @property
    def config(self) -> Path:
        """The router's configuration."""
        return self.folder / "router.conf"

    @property
    def stats(self) -> Path:
        """The router's statistics."""
        return self.folder / "stats.json"


def inside(namespace: str, *command: str) -> list[str]:
    """Return a command that runs in a network namespace."""
    return ["ip", "netns", "exec", namespace, *command]


@dataclass(frozen=True)
class Plan:
    """Every command of a testbed.

    Attributes:
        names: What it makes.
        config: What it runs.
        programs: Paths of `l4s-router`, `l4s-bridged`, `l4s-traffic`.
        spin: Whether the router spins instead of sleeping.
        group: Group that may open the daemon's socket; empty: root only.
        model: File of an integer model that decides; None: the law.
    """

    names: Names
    config: LiveConfig
    programs: dict[str, str]
    spin: bool = False
    group: str = ""
    model: Path | None = None

    def namespaces(self) -> list[list[str]]:
        """Make the namespaces."""
        return [["ip", "netns", "add", name] for name in (self.names.senders, self.names.receivers)]

    def router(self) -> list[str]:
        """Start the router, which makes the TUN devices."""
        n = self.names
        paths = ["--config", str(n.config), "--device", str(n.device), "--stats", str(n.stats)]
        ends = ["--senders", f"{n.senders}:{DEVICE}", "--receivers", f"{n.receivers}:{DEVICE}"]
        more = [*(["--spin"] if self.spin else []), *(["--model", str(self.model)] if self.model else [])]
        return inside(n.senders, self.programs["l4s-router"], *paths, *ends, *more)

    def network(self) -> list[list[str]]:
        """Set addresses, routes and settings of both ends."""
        commands = []
        settings = _SETTINGS.format(device=DEVICE, ecn=int(self.config.tcp_ecn))
        for name, addresses in ((self.names.senders, self.config.addresses), (self.names.receivers, (RECEIVER,))):
            commands.append(inside(name, "sh", "-c", settings))
            commands += [["ip", "-n", name, "addr", "add", f"{address}/32", "dev", DEVICE] for address in addresses]
            size = ["mtu", str(self.config.mtu), "txqueuelen", str(QUEUE_PACKETS)]
            commands.append(["ip", "-n", name, "link", "set", "lo", "up"])
            commands.append(["ip", "-n", name, "link", "set", DEVICE, *size, "up"])
            commands.append(["ip", "-n", name, "route", "add", "default", "dev", DEVICE])
        return commands

    def daemon(self) -> list[str]:
        """Start the daemon."""
        n = self.names
        access = ["--mode", "0660", "--group", self.group] if self.group else ["--mode", "0600"]
        ends = ["--device", f"unix:{n.device}", "--socket", str(n.socket)]
        return inside(n.senders, self.programs["l4s-bridged"], *ends, *access, "--foreground")

    def sink(self) -> list[str]:
        """Start the receiver."""
        return inside(self.names.receivers, self.programs["l4s-traffic"], "sink", "--bind", f"{RECEIVER}:{PORT}")

    def flow(self, index: int, seconds: float) -> list[str]:
        """Start a sender, which waits for its own start and ends after `seconds` of the run."""
        flow = self.config.flows[index]
        wait = f'sleep {flow.start_s:.3f} && exec "$@"'
        send = [self.programs["l4s-traffic"], *flow.arguments(seconds)]
        return inside(self.names.senders, "sh", "-c", wait, flow.label, *send)

    def sending(self, seconds: float) -> list[int]:
        """Numbers of the flows that start before `seconds`."""
        return [index for index, flow in enumerate(self.config.flows) if flow.start_s < seconds]

    def watcher(self) -> list[str]:
        """Take everything down once the testbed's process is gone, or says so by closing the pipe on stdin."""
        n = self.names
        return ["sh", "-c", _WATCHER, "l4s-watcher", n.senders, n.receivers, str(n.folder), str(n.socket)]

    def steps(self, seconds: float, *, flows: bool = True) -> Iterator[tuple[str, list[list[str]]]]:
        """Return all commands in order, with headings."""
        yield "takes everything down when this process ends, however it ends", [self.watcher()]
        yield "two namespaces", self.namespaces()
        yield f"the router, with the configuration below in {self.names.config}", [self.router()]
        yield "addresses, routes, ECN", self.network()
        yield f"the daemon; agents and readers connect to {self.names.socket}", [self.daemon()]
        yield "the receiver", [self.sink()]
        if flows:
            yield "the senders", [self.flow(index, seconds) for index in self.sending(seconds)]

    def text(self, seconds: float, *, flows: bool = True) -> str:
        """Everything as a shell script to read."""
        parts = []
        for heading, commands in self.steps(seconds, flows=flows):
            parts.append("\n".join([f"# {heading}", *(shlex.join(command) for command in commands)]))
        return "\n\n".join([*parts, f"# {self.names.config}\n{self.config.router.text()}"])
