"""Datasets on a hub: the whole round trip against a local service, by our commands and by Minari's own."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from l4s_gym import L4SError, cli
from l4s_gym.data import build, minari_io, recipes, remote
from tests.data.hub import TOKEN, Hub, serve

minari = pytest.importorskip("minari", reason="needs Minari: pip install 'l4s-gym[data]'")
pytest.importorskip("matplotlib", reason="needs matplotlib: pip install 'l4s-gym[report]'")
hf: Any = pytest.importorskip("huggingface_hub", reason="needs huggingface_hub: pip install 'l4s-gym[data]'")
constants: Any = pytest.importorskip("huggingface_hub.constants")

# The hub's client sends files in a way that its own HTTP library has given up.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")

ID = "l4s/dualpi2/tiny-small-v0"
REMOTE = "hf://lab"
REPO = "lab/l4s"
SHARD = "dualpi2/tiny-small-v0/data/shard-00001.hdf5"
ROOT = Path(__file__).parents[2]


def files(folder: Path) -> dict[str, bytes]:
    """Contents of all files under a folder, by path."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A root of datasets with a small one in two shards, with card and checksums."""
    size = recipes.Size(2, 0.5, 1)
    behaviour = (recipes.BehaviourSpec("dualpi2_freebsd", 0.5),)
    recipe = recipes.Recipe("Tiny", "For tests.", ("web",), behaviour, size, size, name="tiny")
    root = tmp_path_factory.mktemp("built")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MINARI_DATASETS_PATH", str(root))
        build.build(recipe, "small", workers=1)
    return root


@pytest.fixture(autouse=True)
def here(built: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The dataset in a place of the test's own, and the remote's name."""
    shutil.copytree(built, tmp_path / "here")
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "here"))
    monkeypatch.setenv("MINARI_REMOTE", REMOTE)
    monkeypatch.delenv("HF_TOKEN", raising=False)
    return tmp_path / "here"


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """The service, and the hub's client turned to it (it reads its environment when it is imported)."""
    with serve() as service:
        settings = {"ENDPOINT": service.url, "HF_HUB_OFFLINE": False, "HF_HUB_DISABLE_XET": True}
        settings["HUGGINGFACE_CO_URL_TEMPLATE"] = service.url + "/{repo_id}/resolve/{revision}/{filename}"
        cache = {"HF_HUB_CACHE": str(tmp_path / "hub"), "HF_TOKEN_PATH": str(tmp_path / "token")}
        for name, value in (settings | cache).items():
            monkeypatch.setattr(constants, name, value)
        yield service
        hf.close_session()


@pytest.fixture
def published(hub: Hub, here: Path) -> Hub:
    """The service with the dataset on it, as uploads leave it."""
    hub.repos[REPO] = files(here / "l4s")
    known = {"namespaces": ["l4s/dualpi2"], "datasets": [ID]}
    hub.repos[REPO]["namespace_metadata.json"] = json.dumps(known).encode()
    return hub


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty place, that of another user."""
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "elsewhere"))
    return tmp_path / "elsewhere"


def get(hub: Hub, part: str) -> list[str]:
    """The requests so far for the content of a file."""
    return [request for request in hub.requests if request.startswith("GET") and part in request]


def test_round_trip_by_command(hub: Hub, here: Path, tmp_path: Path, capsys: Any, monkeypatch: Any) -> None:
    def run(*args: str) -> str:
        code = cli.main(["datasets", *args])
        out, err = capsys.readouterr()
        assert (code, err) == (0, "")
        return str(out)

    assert f"{ID}: is published on {REMOTE}" in run("upload", ID, "--token", TOKEN)
    sent = {name for name in hub.repos[REPO] if name.startswith("dualpi2/tiny")}
    assert sent == {f"dualpi2/tiny-small-v0/{name}" for name in files(here / ID)}
    assert b"--remote hf://lab" in hub.repos[REPO]["README.md"]
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "elsewhere"))
    assert ID in run("list", "--remote", "--recipes", str(ROOT / "datasets"))
    monkeypatch.delenv("MINARI_REMOTE")
    assert "complete and valid" in run("download", ID, "--remote", REMOTE)
    assert files(tmp_path / "elsewhere" / ID) == files(here / ID)
    assert "2 files as in SHA256SUMS" in run("show", ID, "--verify")
    env = minari.load_dataset(ID).recover_environment(eval_env=True)
    env.reset(seed=0)
    env.close()
    assert minari.namespace.list_local_namespaces() == ["l4s", "l4s/dualpi2"]
    assert not [path for path in (tmp_path / "elsewhere").rglob("*") if path.name.startswith(".")]


def test_round_trip_by_minari(hub: Hub, here: Path, elsewhere: Path, monkeypatch: Any) -> None:
    testing: Any = pytest.importorskip("typer.testing")
    from minari.cli import app

    monkeypatch.setenv("MINARI_DATASETS_PATH", str(here))
    minari.upload_dataset(ID, TOKEN)
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(elsewhere))
    for args in (["list", "remote"], ["show", ID]):
        shown = testing.CliRunner().invoke(app, args, env={"COLUMNS": "200"})
        assert shown.exit_code == 0 and "tiny-small-v0" in shown.output
    minari.download_dataset(ID)
    assert files(elsewhere / ID) == files(here / ID)
    assert remote.verify(ID) == 2


@pytest.mark.slow
def test_round_trip_by_programs(here: Path, tmp_path: Path) -> None:
    """As users do: settings by environment, a program a step."""
    with serve() as service:
        settings = {"HF_ENDPOINT": service.url, "HF_HOME": str(tmp_path / "hf"), "HF_HUB_DISABLE_XET": "1"}
        env = {**os.environ, **settings, "HF_HUB_OFFLINE": "0", "COLUMNS": "200", "PYTHONWARNINGS": "default"}

        def run(*args: str, **more: str) -> str:
            command = [sys.executable, "-m", *args]
            done = subprocess.run(command, env=env | more, capture_output=True, text=True, check=False)
            assert done.returncode == 0, done.stderr
            return done.stdout

        run("minari.cli", "upload", ID, "--key-path", TOKEN)
        assert "tiny-small-v0" in run("minari.cli", "list", "remote")
        run("minari.cli", "download", ID, MINARI_DATASETS_PATH=str(tmp_path / "one"))
        run("l4s_gym.cli", "datasets", "download", ID, MINARI_DATASETS_PATH=str(tmp_path / "two"))
        assert files(tmp_path / "one" / ID) == files(tmp_path / "two" / ID) == files(here / ID)


@pytest.mark.parametrize(
    ("path", "message"),
    [
        (SHARD, "shard-00001.hdf5 differs from SHA256SUMS"),
        ("dualpi2/tiny-small-v0/data/main_data.hdf5", "cannot be read"),
        ("dualpi2/tiny-small-v0/SHA256SUMS", "cannot be read"),
    ],
)
def test_what_is_damaged_on_the_way_is_refused(published: Hub, elsewhere: Path, path: str, message: str) -> None:
    data = published.repos[REPO][path]
    published.repos[REPO][path] = bytes(255 - byte for byte in data)
    with pytest.raises(L4SError, match=f"{REMOTE}: what arrived is damaged.*{message}.*try again"):
        remote.download(ID)
    assert remote.here() == {} and files(elsewhere) == {}
    published.repos[REPO][path] = data
    remote.download(ID)
    assert remote.verify(ID) == 2


def test_one_changed_bit_is_found(published: Hub, elsewhere: Path) -> None:
    published.corrupt(REPO, SHARD)
    with pytest.raises(L4SError, match=r"shard-00001.hdf5 differs"):
        remote.download(ID)


def test_a_file_that_is_not_there_is_missed(published: Hub, elsewhere: Path) -> None:
    del published.repos[REPO][SHARD]
    with pytest.raises(L4SError, match=r"shard-00001.hdf5 is missing"):
        remote.download(ID)


def test_a_stopped_download_goes_on(published: Hub, elsewhere: Path) -> None:
    published.fail = {"shard-00001": 507}
    with pytest.raises(L4SError, match=r"hf://lab: .*507.*try again later"):
        remote.download(ID)
    assert remote.here() == {} and not (elsewhere / ID).exists()
    published.fail = {}
    fetched = len(get(published, "shard-00000"))
    remote.download(ID)
    assert remote.verify(ID) == 2
    assert len(get(published, "shard-00000")) == fetched == 1
    assert not list((elsewhere / ID).parent.glob(".*"))


def test_one_download_at_a_time(published: Hub, elsewhere: Path) -> None:
    staging = (elsewhere / ID).parent / ".tiny-small-v0.download"
    staging.mkdir(parents=True)
    with open(staging / "lock", "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(L4SError, match="another process downloads it"):
            remote.download(ID)


def test_a_dataset_that_is_here_is_kept_unless_forced(published: Hub, here: Path) -> None:
    with pytest.raises(L4SError, match="is here already: use it, or give --force"):
        remote.download(ID)
    (here / ID / "data" / "shard-00000.hdf5").write_bytes(b"")
    with pytest.raises(L4SError, match=r"differs from SHA256SUMS: download it with --force"):
        remote.verify(ID)
    published.corrupt(REPO, SHARD)
    with pytest.raises(L4SError, match="damaged"):
        remote.download(ID, force=True)
    assert (here / ID / "data" / "shard-00000.hdf5").stat().st_size == 0
    published.corrupt(REPO, SHARD)  # a second time: as it was
    remote.download(ID, force=True)
    assert remote.verify(ID) == 2


def test_what_is_not_published_is_told(published: Hub, elsewhere: Path) -> None:
    with pytest.raises(L4SError, match=f"{REMOTE}: has no dataset 'l4s/dualpi2/tiny-v0': it has {ID}"):
        remote.download("l4s/dualpi2/tiny-v0")
    with pytest.raises(L4SError, match=r"hf://other: has no dataset .*: it has none of l4s/dualpi2"):
        remote.download(ID, "hf://other")


def test_upload_refuses(published: Hub, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(L4SError, match=f"has '{ID}' already.*publish a new version"):
        remote.upload(ID, token=TOKEN)
    for token in ("", "hf_wrong"):
        with pytest.raises(L4SError, match=r"hf://other: .*401.*log in \(`hf auth login`\)"):
            remote.upload(ID, "hf://other", token=token)
    (here / ID / "data" / "shard-00000.hdf5").unlink()
    with pytest.raises(L4SError, match=r"shard-00000.hdf5 is missing"):
        remote.upload(ID, "hf://other", token=TOKEN)
    assert list(published.repos) == [REPO]
    assert "HF_TOKEN" not in os.environ and os.environ["MINARI_REMOTE"] == REMOTE


@pytest.mark.parametrize("failing", [4, *(pytest.param(call, marks=pytest.mark.slow) for call in (1, 2, 3, 5))])
def test_a_stopped_upload_goes_on(hub: Hub, here: Path, tmp_path: Path, failing: int, monkeypatch: Any) -> None:
    """Minari sends its own files one by one, and looks into its cache for what it believes to have sent."""
    send, calls = hf.HfApi.upload_file, list[str]()

    def stops_once(*args: Any, **options: Any) -> Any:
        calls.append(options["path_in_repo"])
        if len(calls) == failing:
            raise ConnectionResetError("connection reset")
        return send(*args, **options)

    monkeypatch.setattr(hf.HfApi, "upload_file", stops_once)
    with pytest.raises(L4SError, match=r"connection reset.*try again"):
        remote.upload(ID, token=TOKEN)
    remote.upload(ID, token=TOKEN)
    assert {"README.md", "namespace_metadata.json", "dualpi2/namespace_metadata.json"} <= set(hub.repos[REPO])
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "elsewhere"))
    minari.download_dataset(ID)
    assert remote.verify(ID) == 2


@pytest.mark.slow
def test_a_dataset_of_another_namespace(published: Hub, here: Path, tmp_path: Path, monkeypatch: Any) -> None:
    """What was fetched from one owner goes to another one; nothing else is said to be there."""
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "elsewhere"))
    minari.download_dataset(ID)
    monkeypatch.setenv("MINARI_REMOTE", "hf://other")
    remote.upload(ID, token=TOKEN)
    assert list(remote.listed()) == [ID]
    shutil.copytree(here / ID, tmp_path / "elsewhere" / "mine" / "x-v0")
    about = tmp_path / "elsewhere" / "mine" / "x-v0" / "data" / "metadata.json"
    about.write_text(about.read_text().replace(ID, "mine/x-v0"))
    (about.parents[1] / "SHA256SUMS").unlink()
    (about.parents[2] / "namespace_metadata.json").write_text('{"datasets": ["mine/not-here-v0"]}')
    remote.upload("mine/x-v0", token=TOKEN)
    assert list(remote.listed(namespace="mine")) == ["mine/x-v0"]
    remote.download("mine/x-v0", force=True)
    assert remote.verify("mine/x-v0") == 2


def test_upload_adds_checksums(hub: Hub, here: Path) -> None:
    (here / ID / "SHA256SUMS").rename(here / "old")
    remote.upload(ID, token=TOKEN)
    assert hub.repos[REPO]["dualpi2/tiny-small-v0/SHA256SUMS"] == (here / "old").read_bytes()


@pytest.mark.parametrize("command", [("list", "--remote"), ("download", ID, "--force"), ("upload", ID)])
def test_a_hub_out_of_reach_is_told_at_once(command: tuple[str, ...], hub: Hub, capsys: Any, monkeypatch: Any) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    start = time.monotonic()
    assert cli.main(["datasets", *command]) == 2
    out, err = capsys.readouterr()
    assert time.monotonic() - start < 5
    assert out == "" and err.count("\n") == 1
    assert err.startswith("l4s-gym: hf://lab: ") and "check the network" in err
    assert remote.verify(ID) == 2


def test_what_is_no_hub_is_told(hub: Hub) -> None:
    hub.fail = {"/api/datasets": 404}
    with pytest.raises(L4SError, match=r"404.*check the network, the name of the remote and HF_ENDPOINT"):
        remote.listed()


def test_offline_mode_is_told(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(L4SError, match="unset HF_HUB_OFFLINE"):
        remote.listed()


def test_names_of_remotes(monkeypatch: pytest.MonkeyPatch) -> None:
    assert remote.remote_name() == REMOTE and remote.remote_name("gcp://bucket") == "gcp://bucket"
    for name in ("lab", "hf://", "hf://lab/l4s", "s3://bucket"):
        with pytest.raises(L4SError, match="is not of the form hf://ORG"):
            remote.remote_name(name)
    monkeypatch.delenv("MINARI_REMOTE")
    with pytest.raises(L4SError, match="give --remote hf://ORG, or set MINARI_REMOTE"):
        remote.remote_name()
    assert remote.remote_name("hf://mine", remote.DEFAULT) == "hf://mine"


@pytest.mark.parametrize("status", [200, 404])
def test_the_default_remote_says_that_it_is_empty(status: int, hub: Hub, capsys: Any, monkeypatch: Any) -> None:
    monkeypatch.delenv("MINARI_REMOTE")
    if status != 200:
        hub.fail = {"/api/datasets": status}
    assert cli.main(["datasets", "download", ID, "--force"]) == 2
    err = capsys.readouterr().err
    assert err.startswith(f"l4s-gym: {remote.DEFAULT}: ") and err.endswith(f" {remote.NOT_YET}\n")


def test_without_the_hubs_client(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(L4SError, match=r"pip install 'l4s-gym\[data\]'"):
        remote.listed()


def test_what_is_here(here: Path) -> None:
    assert list(remote.here()) == [ID]
    dataset = minari_io.load(ID)
    assert sum(remote.count_actions(here / ID / "data")) == dataset.total_steps
