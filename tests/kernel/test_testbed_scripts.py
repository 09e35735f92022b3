"""The testbed's scripts: what they would do on four hypervisors, none of which is needed here."""

from __future__ import annotations

import os
import re
import shutil
import stat
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[2] / "kernel" / "testbed"
HOSTS = ("server", "source1", "router", "source2")
HYPERVISORS = ("virtualbox", "vmware", "bhyve", "qemu")
COMMANDS = ("keys", "image", "create", "start", "provision", "check", "run", "collect", "stop", "destroy")
SCRIPTS = sorted([*FOLDER.glob("*.sh"), *FOLDER.glob("guest/*.sh")])
IMAGE = "/images/FreeBSD-14.1-RELEASE-amd64-BASIC-CLOUDINIT-ufs.qcow2.xz"
# All that a dry run may start: they read, and write to their output alone.
HARMLESS = ("sh", "sed", "grep", "tr", "dirname", "cat")
# Stand-ins that record that they were started.
FORBIDDEN = (
    *("VBoxManage", "vmrun", "qemu-img", "qemu-system-x86_64", "bhyve", "bhyvectl", "ssh", "scp", "ssh-keygen"),
    *("mkdir", "rm", "rmdir", "mv", "cp", "dd", "xz", "touch", "chmod", "chown", "ln", "tee", "tar", "date", "sleep"),
    *("ifconfig", "sysctl", "kldload", "ipfw", "daemon", "kill", "ps", "sudo", "curl", "wget", "fetch", "l4s-gym"),
    *("sha256sum", "shasum", "xorriso", "genisoimage", "mkisofs", "makefs", "hdiutil"),
)
FAKE = """#!/bin/sh
echo "${0##*/} $*" >>"$FAKE_LOG"
case ${0##*/} in
qemu-img) for last; do :; done; [ -z "${FAKE_FAIL-}" ] || exit 1; echo disk >"$last" ;;
xorriso) while [ "$1" != -o ]; do shift; done; echo iso >"$2" ;;
ssh)
    cat >/dev/null
    case $* in *' tar '*) exec tar -C "$FAKE_RESULTS" -cf - . ;; esac
    ;;
esac
exit 0
"""

pytestmark = pytest.mark.skipif(shutil.which("sh") is None, reason="needs a POSIX shell")


def call(*arguments: str, cwd: Path, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    clean = {key: value for key, value in os.environ.items() if not key.startswith("L4S_TESTBED_")}
    return subprocess.run(
        ["/bin/sh", str(FOLDER / "testbed.sh"), *arguments],
        cwd=cwd,
        env=clean | (env or {}),
        capture_output=True,
        text=True,
        check=False,
        stdin=subprocess.DEVNULL,
        timeout=60,
    )


def dry(*arguments: str, cwd: Path, env: dict[str, str] | None = None) -> str:
    done = call("--dry-run", *arguments, cwd=cwd, env=env)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return done.stdout


def in_order(text: str, *parts: str) -> None:
    at = 0
    for part in parts:
        found = text.find(part, at)
        assert found >= 0, f"{part!r} is not there, or not after what should come before it"
        at = found + len(part)


def rules(text: str) -> list[str]:
    """The ipfw rules that a dry run adds."""
    return re.findall(r"^ipfw add .*$", text, re.MULTILINE)


def fakes(folder: Path, names: Iterable[str]) -> dict[str, str]:
    """A folder of stand-ins, and the environment in which they write to ``calls``."""
    folder.mkdir()
    for name in names:
        (folder / name).write_text(FAKE)
        (folder / name).chmod(0o755)
    return {"FAKE_LOG": str(folder.parent / "calls")}


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: str(path.relative_to(FOLDER)))
def test_the_shell_takes_them(script: Path) -> None:
    for shell in ("dash", "sh"):
        if shutil.which(shell):
            done = subprocess.run([shell, "-n", str(script)], capture_output=True, text=True, check=False)
            assert done.returncode == 0, done.stderr


def test_shellcheck() -> None:
    if shutil.which("shellcheck") is None:
        pytest.skip("needs shellcheck (Debian: apt-get install shellcheck)")
    done = subprocess.run(["shellcheck", *map(str, SCRIPTS)], cwd=FOLDER, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_every_hypervisor_defines_the_same_functions() -> None:
    wanted = None
    for hypervisor in HYPERVISORS:
        text = (FOLDER / f"hypervisor-{hypervisor}.sh").read_text()
        defined = set(re.findall(r"^(hv_\w+)\(\)", text, re.MULTILINE))
        wanted = wanted or defined
        assert defined == wanted, hypervisor
    used = set(re.findall(r"\bhv_\w+", (FOLDER / "commands.sh").read_text() + (FOLDER / "common.sh").read_text()))
    assert used == wanted


@pytest.mark.parametrize(
    "hypervisor", ["qemu", *(pytest.param(each, marks=pytest.mark.slow) for each in HYPERVISORS if each != "qemu")]
)
def test_a_dry_run_executes_nothing(tmp_path: Path, hypervisor: str) -> None:
    env = fakes(tmp_path / "bin", FORBIDDEN)
    for name in HARMLESS:
        found = shutil.which(name)
        assert found is not None
        (tmp_path / "bin" / name).symlink_to(found)
    env["PATH"] = str(tmp_path / "bin")
    there = sorted(tmp_path.iterdir())
    for command in COMMANDS:
        arguments = ("--hypervisor", hypervisor, "--image", IMAGE, "--runs", "2", command)
        text = dry(*arguments, cwd=tmp_path, env=env)
        assert "\n+ " in "\n" + text, command
        if command in ("create", "run"):
            assert dry(*arguments, cwd=tmp_path, env=env) == text, "not the same twice"
    assert not calls(tmp_path, "")
    assert sorted(tmp_path.iterdir()) == there


@pytest.mark.parametrize(
    ("hypervisor", "essential"),
    [
        ("virtualbox", ("VBoxManage convertfromraw", "VBoxManage createvm --name l4s-router", "--intnet4 l4s-lan5",
                        "VBoxManage startvm l4s-router --type headless")),
        ("vmware", ("qemu-img convert -f raw -O vmdk", 'displayName = "l4s-router"', 'ethernet3.connectionType = "pvn"',
                    "vmrun -T ws start")),
        ("bhyve", ("ifconfig l4sbr0 inet 192.168.214.1/24", "ifconfig l4sbr5 addm tap2045", "makefs -t cd9660",
                   "virtio-net,tap2035,mac=00:50:56:14:03:05 l4s-router")),
        ("qemu", ("qemu-img create -q -f qcow2 -F raw", "qemu-system-x86_64 -name l4s-router", "-netdev socket,id=lan5",
                  "-daemonize")),
    ],
)  # fmt: skip
def test_everything_in_its_order(tmp_path: Path, hypervisor: str, essential: tuple[str, ...]) -> None:
    text = dry("--hypervisor", hypervisor, "--image", IMAGE, "--runs", "1", "all", cwd=tmp_path)
    in_order(text, "ssh-keygen -q -t ed25519 -N ''", f"xz -dc {IMAGE}", "qemu-img convert -f qcow2 -O raw", *essential)
    in_order(
        text,
        "# == provision",
        "want_line /boot/loader.conf kern.hz",
        "want_line /boot/loader.conf net.inet.ip.fw.default_to_accept",
        "want_line /etc/sysctl.conf net.inet.tcp.ecn.enable 1",
        "pkg install -y iperf3",
        "make -C freebsd all install",
        "iperf3 -s -p",
        "kldload -n ipfw dummynet\nkldload -n dn_sched_l4s\n",
        "ipfw -q -f flush",
        "ipfw pipe 1 config bw 8Mbit/s delay 10\nipfw sched 1 config pipe 1 type l4s\nipfw queue 1 config sched 1\n",
        "ipfw add 100 queue 1",
        "# == check",
        "ipfw zero 100",
        "ping -q -c 20 -i 0.2 172.16.1.2",
        "ipfw -a list 100",
        "# == run",
        "kldload -n dn_sched_l4s\n",
        "ipfw sched 1 config pipe 1 type l4s",
        "FLOWS=dctcp:5103:1",
        "FLOWS='cubic:5101:2 newreno:5102:2'",
        "sleep 70",
        "# == collect",
        "tar -C /var/l4s/results -cf - .",
    )


def test_the_texts_for_the_machines_are_scripts(tmp_path: Path) -> None:
    text = dry("--image", IMAGE, "--runs", "1", "all", cwd=tmp_path)
    scripts = set(re.findall(r"(?:sh -s|user-data) <<'END'\n(.*?)\nEND\n", text, re.DOTALL))
    assert len(scripts) > 20
    for script in scripts:
        done = subprocess.run(["sh", "-n"], input=script, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr + script


@pytest.mark.parametrize("command", ["provision", "run"])
def test_each_packet_is_shaped_once(tmp_path: Path, command: str) -> None:
    text = dry("--runs", "1", command, cwd=tmp_path)
    into_queue = [rule for rule in rules(text) if " queue " in rule]
    assert into_queue == ["ipfw add 100 queue 1 ip from any to 172.16.1.0/24 out xmit lan1"]
    # Acknowledgements leave by the other interfaces, into a pipe that only delays.
    back = [rule for rule in rules(text) if rule not in into_queue]
    assert back == [f"ipfw add 200 pipe 2 ip from 172.16.1.0/24 to any out xmit {lan}" for lan in ("lan3", "lan5")]
    assert "ipfw pipe 2 config delay 10\n" in text
    without = dry("--runs", "1", command, cwd=tmp_path, env={"L4S_TESTBED_ACK_DELAY": "0ms"})
    assert rules(without) == into_queue


def test_as_published_says_that_it_is_a_mistake(tmp_path: Path) -> None:
    text = dry("--runs", "1", "--as-published", "run", cwd=tmp_path)
    assert rules(text) == ["ipfw add 100 queue 1 ip from any to any"]
    assert "mistake" in text
    assert "# as published, a mistake" in text


def test_only_dctcp_sends_ect1(tmp_path: Path) -> None:
    text = dry("provision", cwd=tmp_path)
    of = re.findall(r"^# (\w+): guest/system.sh$.*?^ECT1=(\d)$", text, re.MULTILINE | re.DOTALL)
    assert of == [("server", "0"), ("source1", "0"), ("router", "0"), ("source2", "1")]
    forward = re.findall(r"^# (\w+): guest/system.sh$.*?^FORWARD=(\w+)$", text, re.MULTILINE | re.DOTALL)
    assert [host for host, value in forward if value == "YES"] == ["router"]


def test_later_settings_win(tmp_path: Path) -> None:
    own = tmp_path / "own.conf"
    own.write_text("# mine\nrate = 10Mbit/s\ndelay=20ms\n\nhypervisor = bhyve\nseconds = 7")
    text = dry("--config", str(own), "--runs", "1", "run", cwd=tmp_path)
    assert "ipfw pipe 1 config bw 10Mbit/s delay 20\n" in text
    assert "root@192.168.214.13" in text
    assert "DURATION=7" in text
    env = {"L4S_TESTBED_RATE": "12Mbit/s", "L4S_TESTBED_DELAY": "30ms"}
    text = dry("--config", str(own), "--runs", "1", "--rate", "14Mbit/s", "run", cwd=tmp_path, env=env)
    assert "ipfw pipe 1 config bw 14Mbit/s delay 30\n" in text


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("rate = fast", "own.conf:2: rate is 'fast', but must be a whole number with its unit"),
        ("rate = 8", "own.conf:2: rate is '8'"),
        ("delay = 10", "own.conf:2: delay is '10', but must be whole milliseconds"),
        ("runs = 0", "own.conf:2: runs is '0'"),
        ("hypervisor = xen", "own.conf:2: hypervisor is 'xen', but must be virtualbox, vmware, bhyve or qemu"),
        ("logs =", "own.conf:2: logs is ''"),
        ("speed = 8Mbit/s", "own.conf:2: no setting is called 'speed'"),
        ("rate", "own.conf:2: 'rate' is no setting"),
        ("prefix = x; rm -rf /", "own.conf:2: prefix is"),
        ("work = a b", "own.conf:2: work is 'a b'"),
        ("l4s_sysctls = target_us=$(id)", "own.conf:2: l4s_sysctls is"),
        ("src = /tmp/it's", "own.conf:2: src is"),
    ],
)
def test_a_wrong_setting_is_named_with_its_place(tmp_path: Path, line: str, says: str) -> None:
    (tmp_path / "own.conf").write_text(f"# one\n{line}\n")
    done = call("--dry-run", "--config", "own.conf", "keys", cwd=tmp_path)
    assert done.returncode == 1
    assert says in done.stderr
    assert done.stdout == ""


@pytest.mark.parametrize(
    ("arguments", "env", "says"),
    [
        (("keys",), {"L4S_TESTBED_HZ": "often"}, "environment, L4S_TESTBED_HZ: hz is 'often'"),
        (("keys",), {"L4S_TESTBED_PREFIX": "l4s\nrm"}, "L4S_TESTBED_PREFIX: prefix has more than one line"),
        (("--rate", "1", "keys"), {}, "option --rate: rate is '1'"),
        (("--rate", "8Mbit/s hz=1", "keys"), {}, "has a blank"),
        (("--rate",), {}, "--rate needs a value"),
        (("--fast", "keys"), {}, "no option is called '--fast'"),
        (("fly",), {}, "no command is called 'fly'"),
        (("keys", "image"), {}, "one command at a time"),
        (("image",), {}, "BASIC-CLOUDINIT"),
        (("--image", "disk.iso", "image"), {}, "neither .raw nor .qcow2"),
        (("--config", "nowhere.conf", "keys"), {}, "nowhere.conf: cannot be read"),
    ],
)
def test_wrong_use_is_refused(tmp_path: Path, arguments: tuple[str, ...], env: dict[str, str], says: str) -> None:
    done = call("--dry-run", *arguments, cwd=tmp_path, env=env)
    assert done.returncode == 1
    assert says in done.stderr


def test_keys_are_made_on_the_spot(tmp_path: Path) -> None:
    if shutil.which("ssh-keygen") is None:
        pytest.skip("needs ssh-keygen (Debian: apt-get install openssh-client)")
    work = tmp_path / "work"
    env = {"L4S_TESTBED_WORK": str(work)}
    done = call("keys", cwd=tmp_path, env=env)
    assert done.returncode == 0, done.stderr
    key = work / "keys" / "id_ed25519"
    modes = {path: stat.S_IMODE(path.stat().st_mode) for path in (work, work / "keys", key)}
    assert modes == {work: 0o700, work / "keys": 0o700, key: 0o600}
    public = key.with_suffix(".pub").read_text()
    assert public.startswith("ssh-ed25519 ")
    assert public.endswith(" l4s testbed\n")
    again = call("keys", cwd=tmp_path, env=env)
    assert again.returncode == 0
    assert "already there" in again.stdout
    assert key.with_suffix(".pub").read_text() == public
    # The same key in a file of its own: what an interrupted ssh-keygen leaves is made anew.
    key.with_suffix(".pub").unlink()
    assert call("keys", cwd=tmp_path, env=env).returncode == 0
    assert key.with_suffix(".pub").read_text() != public


@pytest.fixture
def made(tmp_path: Path) -> dict[str, str]:
    """The environment of a testbed on stand-ins for QEMU and ssh, with key and base disk."""
    names = ["qemu-img", "qemu-system-x86_64", "xorriso", "ssh", "scp", "sleep"]
    env = fakes(tmp_path / "bin", names) | {"L4S_TESTBED_WORK": str(tmp_path / "work")}
    env["PATH"] = f"{tmp_path / 'bin'}:{os.environ['PATH']}"
    (tmp_path / "work" / "keys").mkdir(parents=True)
    (tmp_path / "work" / "keys" / "id_ed25519.pub").write_text("ssh-ed25519 AAAA it's mine\n")
    image = tmp_path / "CLOUDINIT.raw"
    image.write_bytes(b"image")
    env |= {"L4S_TESTBED_IMAGE": str(image), "L4S_TESTBED_DISK_GB": "1"}
    return env


def calls(tmp_path: Path, name: str) -> list[str]:
    log = tmp_path / "calls"
    return [line for line in log.read_text().splitlines() if line.startswith(name)] if log.exists() else []


def test_steps_are_kept_and_half_done_ones_made_anew(tmp_path: Path, made: dict[str, str]) -> None:
    for _ in range(2):
        done = call("image", cwd=tmp_path, env=made)
        assert done.returncode == 0, done.stderr
    base = tmp_path / "work" / "base.raw"
    assert base.stat().st_size == 1 << 30
    assert "already there" in done.stdout

    failed = call("create", cwd=tmp_path, env=made | {"FAKE_FAIL": "1"})
    assert failed.returncode != 0
    assert "failed: qemu-img" in failed.stdout
    assert not list((tmp_path / "work" / "vms").glob("*.created"))
    assert call("create", cwd=tmp_path, env=made).returncode == 0
    vms = tmp_path / "work" / "vms"
    assert {path.stem for path in vms.glob("*.qcow2")} == {f"l4s-{host}" for host in HOSTS}
    disks = len(calls(tmp_path, "qemu-img"))
    assert call("create", cwd=tmp_path, env=made).returncode == 0
    assert len(calls(tmp_path, "qemu-img")) == disks

    seed = vms / "l4s-source2-seed" / "user-data"
    assert os.access(seed, os.X_OK)
    text = seed.read_text()
    assert text.startswith("#!/bin/sh\n")
    variables = "\n".join(line for line in text.splitlines() if re.match("[A-Z_]+=", line))
    told = subprocess.check_output(["sh", "-c", f"{variables}\necho $PUBLIC_KEY $MAC"], text=True)
    assert told == "ssh-ed25519 AAAA it's mine 00:50:56:14:04:00\n"
    assert (vms / "l4s-source2-seed" / "meta-data").read_text() == "instance-id: l4s-source2\nlocal-hostname: source2\n"


def test_runs_go_on_where_they_ended(tmp_path: Path, made: dict[str, str]) -> None:
    done = call("--runs", "2", "run", cwd=tmp_path, env=made)
    assert done.returncode == 0, done.stderr
    assert len(calls(tmp_path, "sleep 70")) == 2
    done = call("--runs", "3", "run", cwd=tmp_path, env=made)
    assert done.returncode == 0, done.stderr
    assert len(calls(tmp_path, "sleep 70")) == 3
    other = call("--runs", "3", "--rate", "10Mbit/s", "run", cwd=tmp_path, env=made)
    assert other.returncode == 1
    assert "has runs with other settings" in other.stderr


def test_destroy_asks(tmp_path: Path, made: dict[str, str]) -> None:
    for command in ("image", "create"):
        assert call(command, cwd=tmp_path, env=made).returncode == 0
    vms = tmp_path / "work" / "vms"
    there = sorted(vms.iterdir())
    refused = call("destroy", cwd=tmp_path, env=made)
    assert refused.returncode == 1
    assert sorted(vms.iterdir()) == there
    assert call("--yes", "destroy", cwd=tmp_path, env=made).returncode == 0
    assert not list(vms.iterdir())
    assert (tmp_path / "work" / "keys" / "id_ed25519.pub").exists()


def test_collected_logs_are_read_by_the_library(tmp_path: Path, made: dict[str, str]) -> None:
    from l4s_gym.data.logs import write_log
    from tests.data.conftest import make_random_records

    folder = tmp_path / "there" / "run-01"
    folder.mkdir(parents=True)
    write_log(folder / "messages", make_random_records(50), prefix="Nov 21 12:00:00 router kernel: ")
    done = call("collect", cwd=tmp_path, env=made | {"FAKE_RESULTS": str(folder.parent)})
    assert done.returncode == 0, done.stderr
    command = re.search(r"next: l4s-gym (.*)$", done.stdout, re.MULTILINE)
    assert command is not None
    shown = subprocess.run(
        ["sh", "-c", f"exec python -m l4s_gym.cli {command[1]}"],
        cwd=tmp_path,
        env=os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert shown.returncode == 0, shown.stderr
    assert "50" in shown.stdout + shown.stderr
    assert (tmp_path / "testbed.parquet").exists()


def test_the_recorder_understands_its_command(tmp_path: Path) -> None:
    text = dry("--runs", "1", "run", cwd=tmp_path, env={"L4S_TESTBED_LOGS": "binary"})
    in_order(
        text, "l4s-bridged --device /dev/l4s", "l4s.sock:/var/run/l4s/bridge.sock", "+ l4s-gym live record", "-O exit"
    )
    command = re.search(r"^\+ l4s-gym (live record .*)$", text, re.MULTILINE)
    assert command is not None
    (tmp_path / "runs" / "testbed" / "results" / "run-01").mkdir(parents=True)
    arguments = [sys.executable, "-m", "l4s_gym.cli", *command[1].split()]
    done = subprocess.run(arguments, cwd=tmp_path, capture_output=True, text=True, check=False)
    # It gets as far as to find nobody at that socket; options that it does not know are told in another form.
    assert done.returncode != 0
    assert re.match(r"l4s-gym: .*l4s\.sock", done.stderr), done.stderr


def inside(tmp_path: Path, script: str, commands: dict[str, str], **variables: str) -> subprocess.CompletedProcess[str]:
    """Carries a machine's script out here, with stand-ins for FreeBSD's commands."""
    (tmp_path / "guest").mkdir(exist_ok=True)
    for name, answer in commands.items():
        (tmp_path / "guest" / name).write_text(f"#!/bin/sh\n{answer}\n")
        (tmp_path / "guest" / name).chmod(0o755)
    env = variables | {"PATH": f"{tmp_path / 'guest'}:{os.environ['PATH']}"}
    script_file = str(FOLDER / "guest" / f"{script}.sh")
    return subprocess.run(["sh", "-eu", script_file], env=env, capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    ("matches", "as_published", "good"),
    [(20, "no", True), (40, "no", False), (0, "no", False), (80, "yes", True), (95, "yes", True), (20, "yes", False)],
)
def test_check_counts_matches(tmp_path: Path, matches: int, as_published: str, good: bool) -> None:
    ipfw = f"echo '00100 {matches} 1680 queue 1 ip from any to 172.16.1.0/24 out xmit lan1'"
    done = inside(tmp_path, "check-once", {"ipfw": ipfw}, PACKETS="20", AS_PUBLISHED=as_published)
    assert (done.returncode == 0) == good
    assert done.stdout.startswith("ok    " if good else "FAIL  ")


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({}, None),
        ({"kern.hz": "100"}, "kern.hz is 100: must be 1000"),
        ({"net.inet.tcp.ecn.enable": "2"}, "net.inet.tcp.ecn.enable is 2: must be 1"),
        ({"net.inet.ip.forwarding": "0"}, "net.inet.ip.forwarding is 0: must be 1"),
        ({"options": "TSO4,LRO,"}, "lan1 offloads on: TSO4 LRO"),
        ({"options": "RXCSUM,TXCSUM,"}, "lan1 offloads on: RXCSUM TXCSUM"),
        ({"address": "172.16.1.9"}, "lan1 has 172.16.1.1"),
    ],
)
def test_check_says_what_is_wrong(tmp_path: Path, wrong: dict[str, str], says: str | None) -> None:
    good = {"kern.hz": "1000", "net.inet.tcp.ecn.enable": "1", "net.inet.ip.forwarding": "1"}
    values = good | {"net.inet.tcp.cc.dctcp.ect1": "0", "options": "", "address": "172.16.1.1"} | wrong
    cases = "\n".join(f"{key}) echo {value} ;;" for key, value in values.items())
    ifconfig = (
        f"echo 'lan1: flags=1008843<UP> mtu 1500'\necho '\toptions=80028<{values['options']}VLAN_MTU,LINKSTATE>'\n"
        f"echo '\tinet {values['address']} netmask 0xffffff00 broadcast 172.16.1.255'"
    )
    done = inside(
        tmp_path,
        "check",
        {"sysctl": f"case $2 in\n{cases}\n*) exit 1 ;;\nesac", "ifconfig": ifconfig},
        HOST="router", LANS="1:172.16.1.1", FORWARD="1", HZ="1000", ECT1="0",
    )  # fmt: skip
    failures = [line for line in done.stdout.splitlines() if line.startswith("FAIL")]
    assert done.returncode == (0 if says is None else 1), done.stderr
    assert len(failures) == (0 if says is None else 1)
    assert says is None or says in failures[0]
