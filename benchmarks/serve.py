"""The studio under load, beside diffusers behind a plain FastAPI queue: clients who ask for a picture, get it, ask again.

    python benchmarks/serve.py --clients 1,4,16,64 --seconds 60

Both servers, and a process that paints nothing but batches of 8, are up all the time, with the bundled model, steps and
size alike. They take turns of a few seconds, since a machine's speed changes from minute to minute: whose turn it is not
is stopped (SIGSTOP), its clients wait, and its clock stands. Printed are start to ready, to the first answer, idle
memory; for each number of clients pictures per second, failures, the median and 95% of the waiting; and the goal: what
16 clients get of the studio over those batches of 8, at least 0.95. Prompts are all different. A request's time is from
asking to the whole file.
"""

from __future__ import annotations

import argparse
import base64
import http.client
import json
import os
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

BATCH = 8
TURN = 5.0
"""Seconds."""
SIZE = 128
PNG = b"\x89PNG\r\n\x1a\n"
WORDS = ("apple", "heron", "rocket", "violin", "umbrella", "cactus", "teapot", "whale")
STYLES = ("3d style", "flat style", "noto style", "twemoji style")


def prompt(number: int) -> str:
    return f"{number} {WORDS[number % len(WORDS)]}, {STYLES[number // len(WORDS) % len(STYLES)]}"


# --- what the other processes do --------------------------------------------------------------------------------------


def paint_in_process(steps: int) -> None:
    """Batches of 8 without end. Prints a line once it is ready, and one for each."""
    from danqing.runtime.allocator import keep_memory

    keep_memory()
    import danqing

    model = danqing.load()

    def batch(number: int) -> None:
        danqing.paint(prompt(number), model, say=lambda line: None, batch_size=BATCH, seed=number, steps=steps)

    for number in count():
        batch(number)
        print(number, flush=True)


def serve_diffusers(dtype: str) -> None:
    """One pipeline, one lock, one route: what one writes first. Prints its address."""
    import io

    import torch
    import uvicorn
    from diffusers import DPMSolverMultistepScheduler, StableDiffusionPipeline
    from fastapi import FastAPI, Response

    from danqing.library.folders import BUNDLED

    pipeline = StableDiffusionPipeline.from_pretrained(
        BUNDLED.path, safety_checker=None, torch_dtype=getattr(torch, dtype)
    )
    pipeline.scheduler = DPMSolverMultistepScheduler.from_config(
        pipeline.scheduler.config, algorithm_type="dpmsolver++", solver_order=2, timestep_spacing="trailing"
    )
    pipeline.set_progress_bar_config(disable=True)
    app, turn = FastAPI(), threading.Lock()

    @app.post("/txt2img")
    def txt2img(body: dict[str, Any]) -> Response:
        with turn:
            image = pipeline(
                body["prompt"],
                height=SIZE,
                width=SIZE,
                num_inference_steps=body["steps"],
                guidance_scale=3.0,
                generator=torch.Generator().manual_seed(body["seed"]),
            ).images[0]
        data = io.BytesIO()
        image.save(data, "PNG")
        return Response(data.getvalue(), media_type="image/png")

    config = uvicorn.Config(app, port=0, log_level="error", timeout_keep_alive=60)
    bound = config.bind_socket()
    bound.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # as `uvicorn.run` has it
    bound.listen(1024)
    print(f"http://127.0.0.1:{bound.getsockname()[1]}", flush=True)
    uvicorn.Server(config).run(sockets=[bound])


# --- those who take turns ---------------------------------------------------------------------------------------------


class Side:
    """A process that is stopped but for its turns, and a clock that goes in them alone."""

    def __init__(self, *command: str, **env: str) -> None:
        """Start it, and read its first line; with that it is stopped."""
        self._before, self._since = 0.0, time.perf_counter()
        self._running = True
        self.process = subprocess.Popen(
            [sys.executable, *command], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
            env={**os.environ, **env},
        )  # fmt: skip
        self.told = self.line()
        if not self.told:
            raise SystemExit(f"{' '.join(command)} did not start")
        self.ready = self.clock()

    @property
    def port(self) -> int:
        """Of a server, which says its address with the last word of its first line."""
        return int(self.told.split()[-1].rpartition(":")[2])

    def line(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline()

    def clock(self) -> float:
        """Seconds of its turns so far."""
        return self._before + (time.perf_counter() - self._since if self._running else 0.0)

    @contextmanager
    def turn(self) -> Iterator[None]:
        self.go()
        try:
            yield
        finally:
            self.stop()

    def go(self) -> None:
        if not self._running:
            self._running, self._since = True, time.perf_counter()
            self.process.send_signal(signal.SIGCONT)

    def stop(self) -> None:
        self.process.send_signal(signal.SIGSTOP)
        self._before, self._running = self.clock(), False

    def memory(self) -> float:
        """Resident, in MB."""
        lines = Path(f"/proc/{self.process.pid}/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS")) / 1000

    def end(self) -> None:
        self.go()
        self.process.terminate()
        self.process.wait(60)


@contextmanager
def started(*command: str, **env: str) -> Iterator[Side]:
    side = Side(*command, **env)
    try:
        yield side
    finally:
        side.end()


class Batches:
    """What the process that paints batches has painted, by its clock."""

    def __init__(self, side: Side) -> None:
        self.side = side
        self.ends = [side.clock()]
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        while self.side.line():
            self.ends.append(self.side.clock())

    def rate(self, since: int) -> float:
        """Pictures per second of whole batches after that one."""
        ends = self.ends[since:]
        return BATCH * (len(ends) - 1) / (ends[-1] - ends[0]) if len(ends) > 1 else float("nan")


class Caller:
    """One client with one connection, which is opened again where the server closed it."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.connection = http.client.HTTPConnection("127.0.0.1", port, timeout=600)

    def __call__(self, path: str, body: Any = None) -> bytes:
        method, data = ("GET", None) if body is None else ("POST", json.dumps(body))
        self.connection.request(method, path, data, {"content-type": "application/json"})
        answer = self.connection.getresponse()
        content = answer.read()
        if answer.status >= 300:
            raise OSError(f"{path}: {answer.status}: {content[:200]!r}")
        return content


def from_studio(ask: Caller, number: int, steps: int) -> bytes:
    """A job, its picture once there is one, its file."""
    request = {"prompt": prompt(number), "seed": number, "steps": steps, "width": SIZE, "height": SIZE}
    job = json.loads(ask("/api/v1/jobs", {"kind": "txt2img", "request": request}))
    while not (pictures := json.loads(ask(f"/api/v1/jobs/{job['id']}/pictures?wait=60"))):
        job = json.loads(ask(f"/api/v1/jobs/{job['id']}"))
        if job["state"] not in ("queued", "running"):
            raise OSError(f"job {job['state']}: {job['error']}")
    return ask(pictures[0]["url"])


def from_a1111(ask: Caller, number: int, steps: int) -> bytes:
    """One request of AUTOMATIC1111's API, which is answered with the picture."""
    body = {"prompt": prompt(number), "seed": number, "steps": steps, "width": SIZE, "height": SIZE}
    return base64.b64decode(json.loads(ask("/sdapi/v1/txt2img", body))["images"][0])


def from_diffusers(ask: Caller, number: int, steps: int) -> bytes:
    return ask("/txt2img", {"prompt": prompt(number), "seed": number, "steps": steps})


Get = Callable[[Caller, int, int], bytes]
APIS: dict[str, Get] = {"danqing": from_studio, "a1111": from_a1111}


# --- the load ---------------------------------------------------------------------------------------------------------


@dataclass
class Load:
    """So many clients of one server, and what came of them. They begin at once, and end some time after `seconds`."""

    get: Get
    side: Side
    clients: int
    seconds: float
    steps: int
    first: int
    """Number of the first prompt."""
    times: list[float] = field(default_factory=list)
    within: int = 0
    """Pictures that came before the time was over; those that were under way then come later."""
    failures: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._lock, self._ends = threading.Lock(), self.side.clock() + self.seconds
        self._threads = [threading.Thread(target=self._client, args=(index,)) for index in range(self.clients)]
        for thread in self._threads:
            thread.start()

    @property
    def rate(self) -> float:
        return self.within / self.seconds

    def finish(self) -> None:
        """What is under way comes to its end."""
        with self.side.turn():
            for thread in self._threads:
                thread.join()

    def _client(self, index: int) -> None:
        ask, number = Caller(self.side.port), self.first + index
        while (asked := self.side.clock()) < self._ends:
            try:
                data = self.get(ask, number, self.steps)
                problem = "" if data.startswith(PNG) and data.endswith(b"IEND\xaeB`\x82") else "no whole PNG"
            except (OSError, ValueError, http.client.HTTPException) as error:
                problem, ask = f"{type(error).__name__}: {error}", Caller(self.side.port)
            now = self.side.clock()
            with self._lock:
                if problem:
                    self.failures.append(problem)
                else:
                    self.times.append(now - asked)
                    self.within += now <= self._ends
            number += self.clients


def told(name: str, load: Load) -> None:
    times = sorted(load.times) or [float("nan")]
    p95 = times[min(round(0.95 * len(times)), len(times) - 1)]
    print(
        f"{load.clients:3} clients  {name:9} {load.rate:7.3f} pictures/s  {len(load.failures)} failed  "
        f"p50 {statistics.median(times):6.2f} s  p95 {p95:6.2f} s  ({len(load.times)} pictures)",
        flush=True,
    )
    for line in sorted(set(load.failures))[:3]:
        print(f"             {line}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--clients", default="1,4,16,64", help="apart by commas")
    parser.add_argument("--seconds", type=float, default=60, help="of each load, in turns")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--batch", type=int, default=1, help="the studio's --batch")
    parser.add_argument("--api", choices=APIS, default="danqing", help="which of the studio's the clients speak")
    parser.add_argument("--page", action="store_true", help="with the web page")
    parser.add_argument("--no-peer", action="store_true", help="without diffusers")
    parser.add_argument("--peer-dtype", default="bfloat16", help="of diffusers; the studio chooses by the machine")
    parser.add_argument("--in-process", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--diffusers", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.in_process:
        return paint_in_process(args.steps)
    if args.diffusers:
        return serve_diffusers(args.peer_dtype)

    page = [] if args.page else ["--nowebui"]
    studio = ["-m", "danqing", "serve", "--port", "0", "--batch", str(args.batch), *page]
    peer = [__file__, "--diffusers", "--peer-dtype", args.peer_dtype]
    servers: dict[str, tuple[Side, Get]] = {}
    with ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        for name, get, command in (("studio", APIS[args.api], studio), ("diffusers", from_diffusers, peer)):
            if name == "diffusers" and args.no_peer:
                continue
            side = stack.enter_context(started(*command, DANQING_HOME=folder))
            get(Caller(side.port), 0, args.steps)
            print(f"{name:10} ready after {side.ready:.2f} s, first picture after {side.clock():.2f} s", flush=True)
            side.stop()
            servers[name] = side, get
        print(f"idle       {', '.join(f'{name} {side.memory():.0f} MB' for name, (side, _) in servers.items())}")
        alone = stack.enter_context(started(__file__, "--in-process", "--steps", str(args.steps)))
        alone.stop()
        batches = Batches(alone)
        number, against = 1, []
        for clients in map(int, args.clients.split(",")):
            since = len(batches.ends) - 1
            loads = {
                name: Load(get, side, clients, args.seconds, args.steps, number)
                for name, (side, get) in servers.items()
            }
            for _ in range(round(args.seconds / TURN)):
                for side in (*(side for side, _ in servers.values()), alone):
                    with side.turn():
                        time.sleep(TURN)
            for name, load in loads.items():
                load.finish()
                told(name, load)
            number += 100_000
            rates = {f"batches of {BATCH} in a process": batches.rate(since)}
            rates |= {name: load.rate for name, load in loads.items() if name != "studio"}
            print(f"             batches of {BATCH} in a process: {batches.rate(since):.3f} pictures/s", flush=True)
            shares = (f"{loads['studio'].rate / rate:.3f} of {name}" for name, rate in rates.items() if rate)
            against.append(f"{clients:3} clients  the studio paints {', '.join(shares)}")
        print(f"memory     {', '.join(f'{name} {side.memory():.0f} MB' for name, (side, _) in servers.items())}")
    print(*against, sep="\n")


if __name__ == "__main__":
    main()
