import hashlib
import json
import multiprocessing
import os
import threading

import pytest

from danqing.errors import DanqingError
from danqing.library import hash_cache
from danqing.library.hash_cache import FILE_NAME, HashCache

ABC = hashlib.sha256(b"abc").hexdigest()


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "m.safetensors"
    path.write_bytes(b"abc")
    return path


@pytest.fixture
def cache(tmp_path):
    return HashCache(tmp_path / "data")


@pytest.fixture
def reads(monkeypatch):
    """The files that are read to be hashed."""
    read = []
    real = hash_cache.sha256
    monkeypatch.setattr(hash_cache, "sha256", lambda path: read.append(path) or real(path))
    return read


def test_a_hash_is_computed_once(file, cache, reads):
    assert cache.known(file) is None
    assert cache.later(file).result(10) == ABC
    assert cache.later(file).result(0) == ABC  # done at once
    assert HashCache(cache.data_dir).known(file) == ABC
    assert reads == [file]
    assert cache.paths(ABC[:6].upper()) == [file]
    assert cache.paths("0" * 6) == []


def test_nothing_waits_for_it(file, cache, monkeypatch):
    go = threading.Event()
    monkeypatch.setattr(hash_cache, "sha256", lambda path: go.wait(10) and ABC)
    future = cache.later(file)
    assert not future.done()
    go.set()
    assert future.result(10) == ABC


def test_the_thread_does_not_hold_the_program(file, cache, monkeypatch):
    go = threading.Event()
    monkeypatch.setattr(hash_cache, "sha256", lambda path: go.wait(10) and ABC)
    future = cache.later(file)
    (thread,) = [thread for thread in threading.enumerate() if thread.name == "danqing-hash"]
    assert thread.daemon
    go.set()
    future.result(10)


@pytest.mark.parametrize("change", ["content", "time", "inode"])
def test_a_changed_file_is_hashed_again(file, cache, change):
    cache.later(file).result(10)
    status = file.stat()
    if change == "content":
        file.write_bytes(b"abcd")
        os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))
    elif change == "time":
        os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns + 1000))
    else:
        copy = file.with_name("copy")
        copy.write_bytes(b"abd")
        os.utime(copy, ns=(status.st_atime_ns, status.st_mtime_ns))
        os.replace(copy, file)
    assert cache.known(file) is None
    assert cache.paths(ABC[:8]) == []
    assert cache.later(file).result(10) == hashlib.sha256(file.read_bytes()).hexdigest()


def test_a_file_that_changes_while_it_is_read_is_not_remembered(file, cache, monkeypatch):
    def changing(path):
        path.write_bytes(b"other content")
        return ABC

    monkeypatch.setattr(hash_cache, "sha256", changing)
    cache.later(file).result(10)
    assert cache.known(file) is None


def test_a_file_that_is_not_there(tmp_path, cache):
    assert cache.known(tmp_path / "absent") is None
    with pytest.raises(DanqingError, match="absent"):
        cache.later(tmp_path / "absent").result(10)


def _hash_many(data_dir, files, start):
    start.wait(30)
    for path in files:
        HashCache(data_dir).later(path).result(30)


def test_several_processes_share_it(tmp_path):
    files = []
    for number in range(20):
        files.append(tmp_path / f"{number}.bin")
        files[-1].write_bytes(bytes([number]) * 1000)
    context = multiprocessing.get_context("fork")
    start = context.Event()
    workers = [context.Process(target=_hash_many, args=(tmp_path / "data", files[::step], start)) for step in (1, -1)]
    for worker in workers:
        worker.start()
    start.set()
    for worker in workers:
        worker.join(60)
    assert [worker.exitcode for worker in workers] == [0, 0]
    cache = HashCache(tmp_path / "data")
    assert all(cache.known(path) == hashlib.sha256(path.read_bytes()).hexdigest() for path in files)


def test_a_damaged_or_unwritable_memory_is_said_and_hashing_goes_on(file, cache, caplog):
    cache.data_dir.mkdir()
    (cache.data_dir / FILE_NAME).write_bytes(b"no database" * 100)
    assert cache.later(file).result(10) == ABC
    assert "hashes are not remembered" in caplog.text
    caplog.clear()
    assert HashCache(file / "no folder").later(file).result(10) == ABC
    assert "hashes are not remembered" in caplog.text


def a1111(tmp_path, mtime_after):
    path = tmp_path / "webui" / "models" / "Stable-diffusion" / "sub" / "m.safetensors"
    path.parent.mkdir(parents=True)
    path.write_bytes(b"abc")
    row = {"mtime": path.stat().st_mtime + mtime_after, "sha256": "f" * 64}
    (tmp_path / "webui" / "cache.json").write_text(json.dumps({"hashes": {"checkpoint/sub/m.safetensors": row}}))
    return path


def test_automatic1111s_memory_is_used(tmp_path, cache):
    path = a1111(tmp_path, 0.5)
    assert cache.later(path).result(0) == "f" * 64


@pytest.mark.parametrize("text", [None, "{", "[]", '{"hashes": {"checkpoint/sub/m.safetensors": 3}}'])
def test_automatic1111s_memory_when_stale_or_damaged(tmp_path, cache, text):
    path = a1111(tmp_path, -0.5)
    if text is not None:
        (tmp_path / "webui" / "cache.json").write_text(text)
    assert cache.known(path) is None
