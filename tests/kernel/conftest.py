"""Builds of the kernel side for the tests: made once, with and without sanitizers."""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from .core import Core
from .module import Module, built

KERNEL = Path(__file__).parents[2] / "kernel"
Build = Callable[..., Path]


def _make(folder: str, *arguments: str) -> Path:
    with (KERNEL / ".build.lock").open("w") as lock:  # the processes of pytest-xdist share the folder
        fcntl.flock(lock, fcntl.LOCK_EX)
        done = subprocess.run(
            ["make", "-C", str(KERNEL), f"BUILD={folder}", *arguments], capture_output=True, text=True, check=False
        )
    assert done.returncode == 0, done.stdout + done.stderr
    return KERNEL / folder


@pytest.fixture(scope="session")
def build() -> Build:
    """A function that builds and gives the folder: ``build()`` everything, ``build("l4s-router", san=True)`` one.

    `san`: with sanitizers; `general`: without vector registers.
    """
    if shutil.which(os.environ.get("CC", "cc")) is None or shutil.which("make") is None:
        pytest.skip("needs a C compiler and make (Debian: apt-get install build-essential)")

    def made(*targets: str, san: bool = False, general: bool = False) -> Path:
        folder = "build-asan" if san else "build-general" if general else "build"
        options = [*(["SAN=1"] if san else []), *(["SIMD="] if general else [])]
        return _make(folder, *options, *(f"{folder}/{target}" for target in targets))

    return made


@pytest.fixture(scope="session")
def core(build: Build) -> Core:
    """The core."""
    return Core(build("libl4s_core.so") / "libl4s_core.so")


@pytest.fixture(scope="session")
def library(build: Build) -> Path:
    """The FreeBSD module in the simulated kernel."""
    return built(build)


@pytest.fixture
def module(library: Path) -> Iterator[Module]:
    """The module, loaded; at the end it must unload and leave nothing."""
    with Module(library) as loaded:
        yield loaded


@pytest.fixture(scope="session")
def namespaces() -> None:
    """Skip where this kernel gives no network namespaces or no TUN devices to this user."""
    if os.geteuid() != 0:
        pytest.skip("needs root: network namespaces and TUN devices")
    if not os.access("/dev/net/tun", os.W_OK):
        pytest.skip("needs /dev/net/tun")
    if shutil.which("ip") is None:
        pytest.skip("needs ip (Debian: apt-get install iproute2)")
    name = f"l4s-probe-{os.getpid()}"
    made = subprocess.run(["ip", "netns", "add", name], capture_output=True, text=True, check=False)
    if made.returncode != 0:
        pytest.skip(f"this kernel gives no network namespaces: {made.stderr.strip()}")
    subprocess.run(["ip", "netns", "del", name], check=True)
