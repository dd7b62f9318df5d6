"""The server is killed by SIGKILL at random moments under load: nothing acknowledged is lost, nothing is there twice."""

from __future__ import annotations

import http.client
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from danqing.metadata.read import read_record
from danqing.serve.store import Store

HERE = Path(__file__).parent
SOURCE = "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mP8z8BQDwAEhQGAhKmMIQAAAABJRU5ErkJggg=="


class Server:
    """The process and its address."""

    def __init__(self, folder: Path, step: float) -> None:
        path = os.pathsep.join((str(HERE.parent), os.environ.get("PYTHONPATH", "")))
        env = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
        command = [sys.executable, str(HERE / "crash_server.py"), str(folder), "0", str(step)]
        self.process = subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        self.url = self.process.stdout.readline().strip()
        if not self.url:
            assert self.process.stderr is not None
            raise AssertionError(self.process.stderr.read())

    def ask(self, path: str, body: Any = None, method: str | None = None) -> Any:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, data, {"content-type": "application/json"}, method=method)
        with urllib.request.urlopen(request, timeout=120) as answer:
            return json.load(answer)

    def over(self, job: str) -> str:
        """The state that the job ends in, however long that takes."""
        while (state := str(self.ask(f"/api/v1/jobs/{job}?wait=30")["state"])) in ("queued", "running"):
            pass
        return state

    def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        self.end()

    def end(self) -> None:
        self.process.wait(30)
        for stream in (self.process.stdout, self.process.stderr):
            assert stream is not None
            stream.close()


class Clients:
    """Threads that ask for pictures as fast as they can, and remember what was acknowledged."""

    def __init__(self, server: Server, seed: int) -> None:
        self.acknowledged: dict[str, int] = {}
        self.failed: list[str] = []
        self.stop, self.begun = threading.Event(), threading.Event()
        self.threads = [threading.Thread(target=self._run, args=(server, seed * 10 + n)) for n in range(3)]
        for thread in self.threads:
            thread.start()

    def _run(self, server: Server, seed: int) -> None:
        chance = random.Random(seed)
        while not self.stop.is_set():
            count = chance.choice((1, 1, 2, 3))
            fields = {"prompt": f"picture {seed}", "seed": chance.randrange(2**32), "width": 64, "height": 64}
            kind, more = ("img2img", {"image": SOURCE}) if chance.random() < 0.3 else ("txt2img", {})
            request = {**fields, **more, "n_iter": count, "batch_size": chance.choice((1, 2))}
            try:
                job = server.ask("/api/v1/jobs", {"kind": kind, "request": request})
                self.acknowledged[job["id"]] = job["total"]
                self.begun.set()
            except urllib.error.HTTPError as error:
                self.failed.append(error.read().decode())
                return
            except (
                OSError,
                ValueError,
                http.client.HTTPException,
            ):  # the server was killed meanwhile: not acknowledged
                return
            self.stop.wait(chance.random() * 0.05)

    def join(self) -> dict[str, int]:
        self.stop.set()
        for thread in self.threads:
            thread.join()
        assert self.failed == []
        return self.acknowledged


def _run(folder: Path, kills: int, seed: int) -> None:
    chance = random.Random(seed)
    acknowledged: dict[str, int] = {}
    kept: dict[str, tuple[str, bytes]] = {}
    for number in range(kills):
        server = Server(folder, 0.002)
        clients = Clients(server, seed + number)
        if number % 2 == 0:  # however slow the machine is, something is asked for; else it is killed as it starts, too
            assert clients.begun.wait(60)
        time.sleep(chance.random() * 0.6)
        server.kill()
        acknowledged |= clients.join()
        # what was in the gallery once stays as it is
        store = Store(f"sqlite:///{folder / 'studio.db'}")
        now = {p.id: (p.path, (folder / p.path).read_bytes()) for job in acknowledged for p in store.pictures(job)}
        store.close()
        assert kept.items() <= now.items()
        kept = now
    assert acknowledged, "nothing was asked for between the kills"
    server = Server(folder, 0.0)
    for job in acknowledged:
        assert server.over(job) == "done"
    while server.ask("/api/v1/jobs?state=queued&state=running"):  # what came to be and was not acknowledged any more
        time.sleep(0.05)
    server.process.send_signal(signal.SIGTERM)
    server.end()
    assert server.process.returncode in (0, -signal.SIGTERM)
    _check(folder, acknowledged)


def _check(folder: Path, acknowledged: dict[str, int]) -> None:
    store = Store(f"sqlite:///{folder / 'studio.db'}")
    every = [job.id for job in store.jobs(limit=100_000)]
    assert set(acknowledged) <= set(every)
    files: Counter[Path] = Counter()
    for identity in every:
        job, pictures = store.job(identity), store.pictures(identity)
        assert job.state == "done", job.error
        assert [picture.index for picture in pictures] == list(range(job.total))
        for picture in pictures:
            path = folder / picture.path
            files[path] += 1
            with Image.open(path) as image:
                image.load()
                seed = (job.request["seed"] + picture.index) % 2**64
                assert image.getpixel((0, 0)) == (seed % 256, seed // 256 % 256, picture.index % 256)
                assert read_record(image.info["danqing"]).request.seed == picture.seed == seed
    store.close()
    on_disk = {path for path in (folder / "pictures").rglob("*") if path.is_file()}
    assert on_disk == set(files)
    assert set(files.values()) == {1}
    assert not list(folder.rglob("*.part"))


def test_a_server_that_is_killed_loses_nothing(tmp_path: Path) -> None:
    _run(tmp_path / "data", kills=2, seed=1)


@pytest.mark.long
def test_a_server_that_is_killed_fifty_times_loses_nothing(tmp_path: Path) -> None:
    _run(tmp_path / "data", kills=int(os.environ.get("DANQING_KILLS", "50")), seed=2)


def test_a_server_that_is_told_to_end_ends_after_its_step_and_goes_on_later(tmp_path: Path) -> None:
    server = Server(tmp_path / "data", 0.05)
    body = {"kind": "txt2img", "request": {"prompt": "a", "seed": 1, "n_iter": 40}}
    job = server.ask("/api/v1/jobs", body)["id"]
    while not server.ask(f"/api/v1/jobs/{job}/pictures"):
        time.sleep(0.02)
    server.process.send_signal(signal.SIGTERM)
    server.end()
    store = Store(f"sqlite:///{tmp_path / 'data' / 'studio.db'}")
    assert store.job(job).state == "queued"
    done = len(store.pictures(job))
    assert 0 < done < 40
    store.close()
    again = Server(tmp_path / "data", 0.0)
    assert again.over(job) == "done"
    assert len(again.ask(f"/api/v1/jobs/{job}/pictures")) == 40
    again.kill()
