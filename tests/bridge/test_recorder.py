"""Recordings: every row, in order of arrival, in files that are whole however the recording ends."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from l4s_gym.bridge import wire
from l4s_gym.bridge.client import BridgeError, Client
from l4s_gym.bridge.recorder import Recorder, Sorter
from l4s_gym.data.logs import read_log
from l4s_gym.data.records import load_records
from l4s_gym.data.stream import RunSplitter, join, open_stream
from l4s_gym.errors import L4SError
from l4s_gym.schema import BY_NAME, PRINTED
from tests.bridge.conftest import Serve
from tests.bridge.server import Server, log_of


def test_records(serve: Serve, tmp_path: Path) -> None:
    records = log_of(5000)
    server = serve(records)
    shares: list[float] = []
    done = Recorder(Client(server.path), tmp_path / "a.rec").run(rows=3000, progress=shares.append)
    assert (done.rows, done.lost, done.missing, done.edges, done.faulty, done.sessions) == (3000, 0, 0, 0, 0, 1)
    assert done.files == [tmp_path / "a.rec"] and not done.failed and shares and "3000 rows" in done.summary()
    got = load_records(tmp_path / "a.rec")
    np.testing.assert_array_equal(got, records[:3000])
    assert open_stream(tmp_path / "a.rec").present == set(BY_NAME)


@pytest.mark.parametrize("name", ["a.log", "a.log.gz"])
def test_log_lines(serve: Serve, tmp_path: Path, name: str) -> None:
    records = log_of(500)
    Recorder(Client(serve(records).path), tmp_path / name).run(rows=500)
    got, report = read_log(tmp_path / name)
    assert report.skipped == {}
    for field in PRINTED:
        np.testing.assert_array_equal(got[field.name], records[field.name])


def test_rotation(serve: Serve, tmp_path: Path) -> None:
    records = log_of(10_000)
    done = Recorder(Client(serve(records).path), tmp_path / "a.rec.gz", rotate_mb=0.5).run(rows=10_000)
    assert [file.name for file in done.files] == ["a-0001.rec.gz", "a-0002.rec.gz", "a-0003.rec.gz"]
    stream = open_stream(sorted(tmp_path.glob("a-*.rec.gz")))
    np.testing.assert_array_equal(join(stream.blocks()), records)


def test_time_is_over(serve: Serve, tmp_path: Path) -> None:
    recorder = Recorder(Client(serve().path), tmp_path / "a.rec", clock=lambda: recorder.done.rows * 1e-3)
    done = recorder.run(0.3)
    assert done.ended == "the time is over" and done.rows == len(load_records(tmp_path / "a.rec")) >= 300


def test_stopped(serve: Serve, tmp_path: Path) -> None:
    def clock() -> float:
        if recorder.done.rows:
            recorder.stop()
        return 0.0

    recorder = Recorder(Client(serve().path), tmp_path / "a.rec", clock=clock)
    done = recorder.run()
    assert done.ended == "stopped" and len(load_records(tmp_path / "a.rec")) == done.rows > 0


def test_the_server_goes(tmp_path: Path) -> None:
    records = log_of(1000)
    server = Server(tmp_path / "s", records, limit=1000, batch=50)
    gone = threading.Event()

    def leave(server: Server) -> None:
        gone.set()
        server.closes.set()

    server.at_limit = leave
    with server:
        done = Recorder(Client(tmp_path / "s"), tmp_path / "a.rec").run()
    assert done.failed and "closed the connection" in done.ended
    np.testing.assert_array_equal(load_records(tmp_path / "a.rec"), records)


def test_nothing_came(serve: Serve, tmp_path: Path) -> None:
    done = Recorder(Client(serve(limit=0).path), tmp_path / "a.rec").run(0.2)
    assert done.rows == 0 and done.files == [] and "no file, for want of rows" in done.summary()
    assert not (tmp_path / "a.rec").exists()


def test_a_queue_started_anew_is_another_run(serve: Serve, tmp_path: Path) -> None:
    server = serve(log_of(500))

    def restart() -> None:
        with server.lock:  # which it holds while it waits for the recorder to read
            server.restart()

    other = threading.Thread(target=restart)
    again: list[int] = []

    def clock() -> float:
        if recorder.done.rows > 100 and other.ident is None:
            other.start()
        if recorder.done.sessions == 2:
            again.append(recorder.done.rows)
            if again[-1] > again[0]:
                recorder.stop()
        return 0.0

    recorder = Recorder(Client(server.path), tmp_path / "a.rec", clock=clock)
    done = recorder.run()
    other.join()
    rows = load_records(tmp_path / "a.rec")
    assert done.sessions == 2 and done.missing == 0
    starts = RunSplitter(frozenset(BY_NAME)).starts(rows)
    assert len(starts) == 2 and rows["sequence"][starts[1]] == 0


def test_rows_that_no_reader_takes_are_left_out(serve: Serve, tmp_path: Path) -> None:
    records = log_of(100)
    records["tupdate"][7] = 0
    done = Recorder(Client(serve(records).path), tmp_path / "a.rec").run(rows=99)
    assert done.faulty == 1 and 7 not in load_records(tmp_path / "a.rec")["sequence"].tolist()


# -- rows that come out of order


def test_rows_out_of_order(serve: Serve, tmp_path: Path) -> None:
    server = serve(log_of(5000), disorder=40, variant="rfc9332")
    done = Recorder(Client(server.path), tmp_path / "a.rec", window=1000).run(rows=4000)
    sequence = load_records(tmp_path / "a.rec")["sequence"].astype(int)
    assert len(sequence) == done.rows == 4000 and (np.diff(sequence) == 1).all()
    assert done.missing == 0 and done.lost == 0


def test_the_ends_of_a_recording(serve: Serve, tmp_path: Path) -> None:
    server = serve(log_of(5000), disorder=200, variant="rfc9332")
    with Client(server.path) as early:  # rows of packets that arrived before the recording come in it
        early.subscribe(True)
        while server.queue.sequence < 1000:
            early.entries(0.1)
    done = Recorder(Client(server.path), tmp_path / "a.rec").run(0.5)
    sequence = load_records(tmp_path / "a.rec")["sequence"].astype(int)
    assert done.edges > 0 and done.missing == 0 and (np.diff(sequence) == 1).all()


def shuffled(count: int, reach: int, seed: int = 0) -> Any:
    """Rows, none of them more than `reach` places late."""
    rng = np.random.default_rng(seed)
    return log_of(count)[np.argsort(np.arange(count) + rng.uniform(0, reach, count), kind="stable")]


@pytest.mark.parametrize("size", [1, 77, 5000])
def test_sorting(size: int) -> None:
    rows = shuffled(12_000, 300)
    sorter = Sorter(400, 0)
    out = [sorter.push(rows[start : start + size]) for start in range(0, len(rows), size)]
    out.append(sorter.finish(True))
    np.testing.assert_array_equal(join(out)["sequence"], np.arange(12_000))
    assert sorter.missing == sorter.edges == 0


def test_sorting_with_losses() -> None:
    rows = shuffled(12_000, 300)
    rows = rows[(rows["sequence"] < 5000) | (rows["sequence"] >= 5010)]
    for whole in (True, False):
        sorter = Sorter(400, 0)
        out = join([sorter.push(rows), sorter.finish(whole)])
        assert (sorter.missing, sorter.edges, len(out)) == (10, 0, 11_990)


def test_sorting_at_the_end() -> None:
    rows = log_of(100)
    rows = rows[rows["sequence"] != 90]
    for whole, kept, missing in ((True, 90, 0), (False, 99, 1)):
        sorter = Sorter(400, 0)
        assert len(sorter.push(rows)) == 0 and sorter.whole() == 90
        assert len(sorter.finish(whole)) == kept
        assert (sorter.missing, sorter.edges) == (missing, 99 - kept)


def test_sorting_at_the_start() -> None:
    sorter = Sorter(400, 5000)
    sorter.push(shuffled(50, 20))
    out = sorter.finish(True)
    assert out["sequence"].tolist() == list(range(5, 50)) and sorter.edges == 5


def test_rows_in_order_are_not_touched() -> None:
    sorter = Sorter(0, 99_999_999)
    rows = log_of(10)[[0, 1, 4, 5]]
    assert len(sorter.push(rows)) == 0
    np.testing.assert_array_equal(sorter.finish(True), rows)
    assert sorter.missing == 2


def test_many_rows_in_small_pieces() -> None:
    sorter = Sorter(1 << 15, 0)
    rows = shuffled(200_000, 10_000)
    out = [sorter.push(rows[at : at + 50]) for at in range(0, len(rows), 50)]
    assert sum(map(len, out)) + sorter.waiting == 200_000
    assert sum(len(part) > 0 for part in out) < 10  # they are sorted many at a time


# -- what can be wrong


@pytest.mark.parametrize("name", ["a.parquet", "a", "a.csv"])
def test_kinds_of_files(tmp_path: Path, name: str) -> None:
    with pytest.raises(L4SError, match=r"name a \.rec or \.log file"):
        Recorder(Client("x"), tmp_path / name)


def test_bad_arguments(tmp_path: Path) -> None:
    with pytest.raises(L4SError, match="there is no folder"):
        Recorder(Client("x"), tmp_path / "no" / "a.rec")
    with pytest.raises(L4SError, match="rotate_mb=0"):
        Recorder(Client("x"), tmp_path / "a.rec", rotate_mb=0)
    with pytest.raises(L4SError, match="rows=0"):
        Recorder(Client("x"), tmp_path / "a.rec").run(rows=0)
    with pytest.raises(BridgeError, match="no such socket"):
        Recorder(Client(tmp_path / "none"), tmp_path / "a.rec").run()
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_cannot_be_written(serve: Serve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import l4s_gym.data.records as module

    def fail(*args: Any) -> Any:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module.RecordWriter, "write", fail)
    (tmp_path / "out").mkdir()
    client = Client(serve().path)
    with pytest.raises(L4SError, match=r"a\.rec: cannot be written \(No space left"):
        Recorder(client, tmp_path / "out" / "a.rec").run(rows=100)
    assert list((tmp_path / "out").iterdir()) == [] and not client.connected


# -- to a dataset, to an agent


def test_to_a_dataset(serve: Serve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, simulated: Any) -> None:
    pytest.importorskip("minari", reason="needs l4s-gym[data]")
    from l4s_gym import cli
    from l4s_gym.data import minari_io
    from l4s_gym.data.arrays import episodes

    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "datasets"))
    server = serve(simulated)
    path = tmp_path / "live.rec"
    assert cli.main(["live", "record", str(path), "--socket", str(server.path), "--rows", "3000"]) == 0
    np.testing.assert_array_equal(load_records(path), simulated[:3000])
    name = "l4s/dualpi2/live-v0"
    assert cli.main(["log", "convert", str(path), "--to", "minari", "--id", name]) == 0
    stored = episodes(minari_io.load(name))
    assert [len(e.actions) for e in stored] == [2999]
    np.testing.assert_array_equal(stored[0].actions, simulated["action"][:2999])


@pytest.mark.slow
def test_to_an_agent_in_control(serve: Serve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, simulated: Any) -> None:
    for extra in ("minari", "torch", "d3rlpy"):
        pytest.importorskip(extra, reason="needs l4s-gym[data,baselines]")
    from l4s_gym import cli
    from l4s_gym.agents.bc import train_bc
    from l4s_gym.data import minari_io
    from l4s_gym.data.d3rlpy_io import replay_buffer

    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "datasets"))
    server = serve(simulated)
    path, name = tmp_path / "live.rec", "l4s/dualpi2/live-v0"
    assert cli.main(["live", "record", str(path), "--socket", str(server.path), "--rows", "4000"]) == 0
    assert cli.main(["log", "convert", str(path), "--to", "minari", "--id", name]) == 0
    agent = train_bc(replay_buffer(minari_io.load(name)), steps=30, seed=0)
    agent.save(tmp_path / "bc")
    who = f"bc:{tmp_path / 'bc'}"
    assert cli.main(["live", "control", who, "--socket", str(server.path), "--seconds", "0.5"]) == 0
    assert server.queue.refused[0] > 0 and sum(server.queue.counts["agent"]) > 0
    assert wire.REFUSALS[0] == "accepted"
