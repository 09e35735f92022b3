"""The FreeBSD module's objects for FreeBSD's own kernel headers, its manual page, and its tests under sanitizers."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

KERNEL = Path(__file__).parents[2] / "kernel"
OBJECTS = {path.stem for folder in ("freebsd", "core") for path in (KERNEL / folder).glob("*.c")}
FLOATING = {
    "freebsd-amd64": re.compile(r"%(?:[xyz]mm\d|mm\d|st\b)|\bf(?:ld|st|ild|add|mul|div|sub)[a-z]*\s", re.M),
    "freebsd-arm64": re.compile(r"\b[qdvs]\d+(?:\.|,|\b)|\bf(?:mov|add|mul|div|sub|cvt\w*)\b"),
}


@pytest.fixture(scope="module")
def objects(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the objects, made by ``make freebsd-objects``."""
    if importlib.util.find_spec("ziglang") is None:
        pytest.skip("needs ziglang, a C compiler with FreeBSD's headers (pip install ziglang)")
    folder = tmp_path_factory.mktemp("objects")
    made = subprocess.run(
        ["make", "-s", "-C", str(KERNEL), "freebsd-objects", f"PYTHON={sys.executable}", f"BUILD={folder}"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert made.returncode == 0, made.stderr
    return folder


@pytest.mark.parametrize("machine", FLOATING)
def test_the_objects_have_no_floating_point(objects: Path, machine: str) -> None:
    dump = shutil.which("llvm-objdump") or shutil.which("llvm-objdump-14")
    if dump is None:
        pytest.skip("needs llvm-objdump (Debian: apt-get install llvm)")
    files = sorted((objects / machine).glob("*.o"))
    assert {file.stem for file in files} == OBJECTS
    for file in files:
        text = subprocess.run([dump, "-d", "--no-show-raw-insn", file], capture_output=True, text=True, check=True)
        code = [line.split("\t", 1)[1] for line in text.stdout.splitlines() if "\t" in line]
        assert len(code) > 20
        used = [line for line in code if FLOATING[machine].search(line.split("<")[0].split("//")[0])]
        assert not used, f"{file.name}: {used[:3]}"


@pytest.mark.parametrize("flag", ["-mcpu=x86_64", "-mcpu=generic"])
def test_the_search_for_floating_point_finds_it(tmp_path: Path, flag: str) -> None:
    dump = shutil.which("llvm-objdump") or shutil.which("llvm-objdump-14")
    if dump is None or importlib.util.find_spec("ziglang") is None:
        pytest.skip("needs ziglang and llvm-objdump")
    machine = "freebsd-amd64" if "x86" in flag else "freebsd-arm64"
    target = "x86_64" if "x86" in flag else "aarch64"
    source = tmp_path / "float.c"
    source.write_text("double f(double a) { return a * 3.0; }\n")
    target = f"{target}-freebsd.14.1-none"
    zig = [sys.executable, "-m", "ziglang", "cc", "-target", target, flag, "-O2", "-c"]
    subprocess.run([*zig, "-o", tmp_path / "float.o", source], check=True, capture_output=True)
    text = subprocess.run([dump, "-d", tmp_path / "float.o"], capture_output=True, text=True, check=True)
    assert FLOATING[machine].search(text.stdout.split("<f>:")[1])


def test_the_objects_need_nothing_of_the_compilers_library(objects: Path) -> None:
    names = shutil.which("nm")
    if names is None:
        pytest.skip("needs nm (Debian: apt-get install binutils)")
    for machine in FLOATING:
        needed = set()
        for file in (objects / machine).glob("*.o"):
            done = subprocess.run([names, "-u", file], capture_output=True, text=True, check=True)
            needed |= {line.split()[-1] for line in done.stdout.splitlines() if line.strip()}
        assert {"dn_sched_modevent", "ecn_mark", "dn_tag_get", "memcpy"} <= needed
        helpers = {name for name in needed if re.match(r"__(?:u?div|u?mod|mul|float|fix|add|sub)", name)}
        assert not helpers


def test_the_makefile_names_every_source() -> None:
    text = (KERNEL / "freebsd" / "Makefile").read_text()
    sources = {path.name for folder in ("freebsd", "core") for path in (KERNEL / folder).glob("*.c")}
    assert set(re.findall(r"\w+\.c\b", text)) == sources


def test_the_manual_page() -> None:
    if shutil.which("mandoc") is None:
        pytest.skip("needs mandoc (Debian: apt-get install mandoc)")
    page = KERNEL / "freebsd" / "dn_sched_l4s.4"
    lint = subprocess.run(["mandoc", "-Tlint", "-Wwarning", page], capture_output=True, text=True, check=False)
    assert (lint.returncode, lint.stdout) == (0, "")
    names = re.findall(r"X\((\w+),", (KERNEL / "core" / "l4s_core.h").read_text().split("L4S_PARAMETERS(X)")[1])
    text = page.read_text()
    assert len(names) > 20 and [name for name in names if not re.search(rf"\b{name}\b", text)] == []


@pytest.mark.slow
def test_everything_under_sanitizers(build: Callable[..., Path]) -> None:
    folder = build("libl4s_module.so", san=True)
    compiler = os.environ.get("CC", "cc")
    preload = []
    for name in ("libasan.so", "libubsan.so"):
        asked = subprocess.run([compiler, f"-print-file-name={name}"], capture_output=True, text=True, check=True)
        if not Path(asked.stdout.strip()).is_absolute():
            pytest.skip(f"{compiler} has no shared {name}")
        preload.append(asked.stdout.strip())
    here = Path(__file__).parent
    library = str(folder / "libl4s_module.so")
    env = os.environ | {"LD_PRELOAD": " ".join(preload), "ASAN_OPTIONS": "detect_leaks=0", "L4S_MODULE": library}
    files = [str(here / "test_module.py"), str(here / "test_module_device.py")]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", "not panics and not simulators", *files],
        capture_output=True, text=True, check=False, env=env, cwd=KERNEL.parent,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
