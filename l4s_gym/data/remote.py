"""Datasets on a hub, through Minari's remotes: list, upload, and download so that only complete datasets arrive."""

from __future__ import annotations

import io
import os
import shutil
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, redirect_stdout
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

import numpy as np

from l4s_gym import schema
from l4s_gym.data import build, minari_io
from l4s_gym.data.files import atomic_write, locked, printable, put_in_place
from l4s_gym.data.minari_io import datasets_in, environment, import_minari
from l4s_gym.data.storage import MAIN, h5py, mapped, readable
from l4s_gym.errors import L4SError

SUMS: Final = "SHA256SUMS"
DEFAULT: Final = "hf://l4s-gym"
"""The remote to use if none is named."""
NOT_YET: Final = "the project has published nothing there yet: `l4s-gym datasets build NAME` makes datasets here"
NAMESPACE: Final = "l4s/dualpi2"
_NAMESPACE_FILE: Final = "namespace_metadata.json"
_ANEW: Final = "download it with --force, or build it with --overwrite"
_PROBE_S: Final = 10.0
_PAGE: Final = """\
---
pretty_name: Decisions of L4S DualPI2
tags: [minari, offline-rl, aqm, l4s, dualpi2]
---
# Decisions of L4S DualPI2
Minari datasets of l4s-gym, a folder each; card (with the licence) and checksums are beside the data.

```sh
l4s-gym datasets list --remote {remote}
l4s-gym datasets download {namespace}/NAME-v0 --remote {remote}
```
"""


def remote_name(given: str = "", default: str = "") -> str:
    """Return the remote to use: the given one, else that of `$MINARI_REMOTE`, else the default.

    Raises:
        L4SError: There is none, or it is not of the form `hf://ORG` or `gcp://BUCKET`.
    """
    remote = given or os.environ.get("MINARI_REMOTE") or default
    kind, _, name = remote.partition("://")
    if not remote:
        raise L4SError("remote: none is named: give --remote hf://ORG, or set MINARI_REMOTE")
    if kind not in ("hf", "gcp") or not name or "/" in name:
        raise L4SError(f"remote {remote!r}: is not of the form hf://ORG or gcp://BUCKET")
    return remote


def _explain(remote: str, error: BaseException) -> L4SError:
    """Return one line that says what went wrong and what to do."""
    while error.__cause__ is not None:
        error = error.__cause__
    status = getattr(getattr(error, "response", None), "status_code", None)
    text = str(error).strip().split("\n")[0].rstrip(".:") or type(error).__name__
    if status in (401, 403):
        remedy = "log in (`hf auth login`), or give --token of an account that may do this"
    elif status is not None and status != 404:
        remedy = "try again later"
    elif isinstance(error, ImportError):
        remedy = "pip install 'l4s-gym[data]'"
    elif "offline mode" in text:
        remedy = "unset HF_HUB_OFFLINE"
    else:
        remedy = "check the network, the name of the remote and HF_ENDPOINT, and try again"
        remedy += f"; {NOT_YET}" if remote == DEFAULT else ""
    return L4SError(f"{remote}: {text}: {remedy}")


@contextmanager
def _talking(remote: str, token: str = "", **variables: str) -> Iterator[None]:
    """Set up Minari's calls to a remote: its settings, no messages, and every failure as a one-line error."""
    values = {"MINARI_REMOTE": remote, **variables, **({"HF_TOKEN": token} if token else {})}
    with environment(values), redirect_stdout(io.StringIO()), warnings.catch_warnings():
        # Minari takes `x-small-v1` for a newer version of `x-v0`, and the owner's other repositories for broken ones.
        warnings.filterwarnings("ignore", "We recommend you install a higher|Skipping .* malformed", UserWarning)
        try:
            with _hub_client() if remote.startswith("hf://") else nullcontext():
                yield
        except Exception as error:  # the hubs' clients and their HTTP libraries have no common base class
            raise _explain(remote, error) from error


@contextmanager
def _hub_client() -> Iterator[None]:
    """Give `hf://` an empty cache: Minari edits cached files before it sends them, and trusts them later.

    The hub is tried once before: the client's own retries take long without a network.
    """
    from huggingface_hub import constants, get_session
    from huggingface_hub.utils.tqdm import disable_progress_bars

    if not sys.stderr.isatty():
        disable_progress_bars()
    get_session().head(constants.ENDPOINT, timeout=_PROBE_S)
    old = constants.HF_HUB_CACHE
    with TemporaryDirectory(prefix="l4s-gym-") as cache:
        constants.HF_HUB_CACHE = cache
        try:
            yield
        finally:
            constants.HF_HUB_CACHE = old


def listed(remote: str = "", token: str = "", namespace: str = NAMESPACE) -> dict[str, dict[str, Any]]:
    """Return the ids and metadata of the datasets of a namespace on a remote."""
    remote = remote_name(remote, DEFAULT)
    minari = import_minari()
    with _talking(remote, token):
        found: dict[str, dict[str, Any]] = minari.list_remote_datasets(remote, prefix=f"{namespace}/")
    return found


def here() -> dict[str, dict[str, Any]]:
    """Return the ids and metadata of our datasets on this machine."""
    minari = import_minari()
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        found: dict[str, dict[str, Any]] = minari.list_local_datasets(prefix=NAMESPACE)
    for each in said:
        print(f"l4s-gym: {printable(each.message)}", file=sys.stderr)
    return found


def count_actions(folder: Path) -> list[int]:
    """Count how often each action was decided, in a dataset's `data` folder."""
    counts = np.zeros(len(schema.ACTIONS), np.int64)
    with readable(folder), h5py().File(folder / MAIN, "r") as main:
        for name in main:
            counts += np.bincount(mapped(main[name]["actions"]), minlength=len(counts))
    numbers: list[int] = counts.tolist()
    return numbers


def verify(dataset_id: str) -> int:
    """Check a dataset on this machine: its checksums, and what `minari_io.validate` checks.

    Returns:
        The number of files that were compared with `SHA256SUMS`; 0 if it has none.

    Raises:
        L4SError: The first thing that is wrong.
    """
    try:
        compared = _compare(minari_io.dataset_folder(dataset_id), dataset_id)
        minari_io.validate(minari_io.load(dataset_id))
    except L4SError:
        raise
    except (OSError, KeyError, ValueError, RuntimeError) as error:  # the errors of h5py for damaged files
        raise L4SError(f"dataset {dataset_id!r}: cannot be read ({error}): {_ANEW}") from error
    return compared


def _compare(folder: Path, dataset_id: str) -> int:
    """Compare the shards of a dataset's folder with its `SHA256SUMS`; return the number of files compared."""
    path = folder / SUMS
    if not path.exists():
        return 0
    where = f"dataset {dataset_id!r}"
    there = {line.split()[1]: line.split()[0] for line in build.checksums(folder / "data", dataset_id)}
    listed = {name: digest for digest, name in (line.split(maxsplit=1) for line in path.read_text().splitlines())}
    for name in sorted(there.keys() | listed.keys()):
        if name not in there:
            raise L4SError(f"{where}: {name} is missing: {_ANEW}")
        if name not in listed:
            raise L4SError(f"{where}: {name} is not in {SUMS}: {_ANEW}")
        if there[name] != listed[name]:
            raise L4SError(f"{where}: {name} differs from {SUMS}: {_ANEW}")
    return len(there)


@contextmanager
def _staging(target: Path, dataset_id: str) -> Iterator[Path]:
    """Make a hidden datasets folder beside a dataset's place; a failure keeps what has arrived."""
    staging = target.with_name(f".{target.name}.download").absolute()
    staging.mkdir(parents=True, exist_ok=True)
    with locked(staging, f"dataset {dataset_id!r}: another process downloads it: wait for it"):
        yield staging
        shutil.rmtree(staging)


def download(dataset_id: str, remote: str = "", *, token: str = "", force: bool = False) -> Any:
    """Download a dataset, check it, and put it in its place.

    Args:
        dataset_id: ``l4s/dualpi2/<name>-v0``.
        remote: `hf://ORG` or `gcp://BUCKET`; `$MINARI_REMOTE` if empty, and without it `DEFAULT`.
        token: Token of the hub; that of the login if empty.
        force: Replace the dataset that is there.

    Returns:
        The `minari.MinariDataset`.

    Raises:
        L4SError: It is here already, cannot be fetched, or what arrived is damaged; nothing has changed then.
    """
    remote, target = remote_name(remote, DEFAULT), minari_io.dataset_folder(dataset_id)
    if target.exists() and not force:
        raise L4SError(f"dataset {dataset_id!r}: is here already: use it, or give --force")
    namespace = dataset_id.rpartition("/")[0]
    there = sorted(listed(remote, token, namespace))
    if dataset_id not in there:
        others = f"it has {', '.join(there)}" if there else f"it has none of {namespace}"
        raise L4SError(f"{remote}: has no dataset {dataset_id!r}: {NOT_YET if remote == DEFAULT else others}")
    minari = import_minari()
    with _staging(target, dataset_id) as staging:
        new = staging / dataset_id
        with _talking(remote, token, MINARI_DATASETS_PATH=str(staging)):
            minari.download_dataset(dataset_id, force_download=new.exists())
        try:
            with datasets_in(staging):
                verify(dataset_id)
        except L4SError as error:
            shutil.rmtree(staging)
            what = str(error).removesuffix(f": {_ANEW}")
            remedy = "nothing was changed; try again, and if the error stays, tell the publisher"
            raise L4SError(f"{remote}: what arrived is damaged ({what}): {remedy}") from error
        minari_io.ensure_namespace(namespace)
        put_in_place(new, target, overwrite=force)
    return minari_io.load(dataset_id)


def upload(dataset_id: str, remote: str = "", *, token: str = "") -> None:
    """Publish a dataset after its checks; on `hf://` the repository gets a page if it has none.

    Args:
        dataset_id: ``l4s/dualpi2/<name>-v0``.
        remote: `hf://ORG` or `gcp://BUCKET`; `$MINARI_REMOTE` if empty.
        token: Token of the hub (for `gcp://` path of a key file); that of the login if empty.

    Raises:
        L4SError: It is not here, is damaged or stale, is published already, or the hub refuses.
    """
    remote, folder = remote_name(remote), minari_io.dataset_folder(dataset_id)
    if not verify(dataset_id):
        with atomic_write(folder / SUMS) as file:
            file.write("".join(f"{line}\n" for line in build.checksums(folder / "data", dataset_id)).encode())
    minari_io.check_simulator(minari_io.load(dataset_id))
    namespace = dataset_id.rpartition("/")[0]
    if dataset_id in listed(remote, token, namespace):
        raise L4SError(f"{remote}: has {dataset_id!r} already, and it cannot be replaced: publish a new version")
    minari = import_minari()
    with _talking(remote, token):
        if remote.startswith("hf://"):
            _prepare_repository(remote, namespace)
        minari.upload_dataset(dataset_id, token or None)


def _prepare_repository(remote: str, namespace: str) -> None:
    """Send what the repository lacks: its page, and the namespace files, which Minari sends only once."""
    from huggingface_hub import HfApi

    namespaces = import_minari("minari.namespace")
    storage = import_minari("minari.storage.remotes").get_cloud_storage(remote)
    api, name = HfApi(), namespace.split("/", maxsplit=1)[0]
    repo = f"{remote.removeprefix('hf://')}/{name}"
    for each in namespaces.namespace_hierarchy(namespace):
        path = f"{each}/{_NAMESPACE_FILE}".removeprefix(f"{name}/")
        if not api.file_exists(repo, path, repo_type="dataset"):
            # A namespace file that Minari downloaded lists the datasets of its source.
            known = namespaces.get_namespace_metadata(each)
            namespaces.update_namespace_metadata(each, known.get("description"))
            storage.upload_namespace(each)
    if not api.file_exists(repo, "README.md", repo_type="dataset"):
        page = _PAGE.format(remote=remote, namespace=namespace).encode()
        api.upload_file(path_or_fileobj=page, path_in_repo="README.md", repo_id=repo, repo_type="dataset")
