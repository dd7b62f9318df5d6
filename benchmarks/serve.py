"""The studio under load, beside diffusers behind a plain FastAPI queue: clients who ask for a picture, get it, ask again.

    python benchmarks/serve.py --clients 1,4,16,64 --seconds 60

Both servers are up all the time and asked in turns, with the bundled model, steps and size alike. Printed are start to
ready, to the first answer, idle memory; for each number of clients pictures per second, failures, the median and 95%
of the waiting; and the goal: what 16 clients get of the studio over what a process paints that does nothing but
batches of 8, at least 0.95. Prompts are all different. A request's time is from asking to the whole file.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

BATCH = 8
SIZE = 128
PNG = b"\x89PNG\r\n\x1a\n"
WORDS = ("apple", "heron", "rocket", "violin", "umbrella", "cactus", "teapot", "whale")
STYLES = ("3d style", "flat style", "noto style", "twemoji style")


def prompt(number: int) -> str:
    return f"{number} {WORDS[number % len(WORDS)]}, {STYLES[number // len(WORDS) % len(STYLES)]}"


# --- what the other processes do --------------------------------------------------------------------------------------


def paint_in_process(seconds: float, steps: int) -> None:
    """Prints pictures per second of batches of 8."""
    from danqing.runtime.allocator import keep_memory

    keep_memory()
    import danqing

    model = danqing.load()

    def batch(number: int) -> None:
        danqing.paint(prompt(number), model, say=lambda line: None, batch_size=BATCH, seed=number, steps=steps)

    batch(0)
    began, done = time.perf_counter(), 0
    while time.perf_counter() - began < seconds:
        done += 1
        batch(done)
    print(BATCH * done / (time.perf_counter() - began), flush=True)


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

    config = uvicorn.Config(app, port=0, log_level="error")
    socket = config.bind_socket()
    socket.listen(1024)
    print(f"http://127.0.0.1:{socket.getsockname()[1]}", flush=True)
    uvicorn.Server(config).run(sockets=[socket])


# --- the servers ------------------------------------------------------------------------------------------------------


@dataclass
class Server:
    """A server's process, its address, and how long it took."""

    process: subprocess.Popen[str]
    port: int
    began: float
    ready: float

    def memory(self) -> float:
        """Resident, in MB."""
        lines = Path(f"/proc/{self.process.pid}/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS")) / 1000


@contextmanager
def started(*command: str, **env: str) -> Iterator[Server]:
    """The server of that command, which says its address with the last word of its first line."""
    began = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, *command], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
        env={**os.environ, **env},
    )  # fmt: skip
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        if not line:
            raise SystemExit(f"{' '.join(command)} did not start")
        port = int(line.split()[-1].rpartition(":")[2])
        yield Server(process, port, began, time.perf_counter() - began)
    finally:
        process.terminate()
        process.wait(60)


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
    """A job, its end, its file."""
    request = {"prompt": prompt(number), "seed": number, "steps": steps, "width": SIZE, "height": SIZE}
    job = json.loads(ask("/api/v1/jobs", {"kind": "txt2img", "request": request}))
    while job["state"] in ("queued", "running"):
        job = json.loads(ask(f"/api/v1/jobs/{job['id']}?wait=60"))
    if job["state"] != "done":
        raise OSError(f"job {job['state']}: {job['error']}")
    (picture,) = json.loads(ask(f"/api/v1/jobs/{job['id']}/pictures"))
    return ask(picture["url"])


def from_diffusers(ask: Caller, number: int, steps: int) -> bytes:
    return ask("/txt2img", {"prompt": prompt(number), "seed": number, "steps": steps})


Get = Callable[[Caller, int, int], bytes]


# --- the load ---------------------------------------------------------------------------------------------------------


@dataclass
class Load:
    """What came of so many clients."""

    seconds: float
    times: list[float] = field(default_factory=list)
    within: int = 0
    """Pictures that came before the time was over; those that were under way then come later."""
    failures: list[str] = field(default_factory=list)

    @property
    def rate(self) -> float:
        return self.within / self.seconds


def loaded(get: Get, server: Server, clients: int, seconds: float, steps: int, first: int) -> Load:
    load, lock = Load(seconds), threading.Lock()
    ends = time.perf_counter() + seconds

    def client(index: int) -> None:
        ask, number = Caller(server.port), first + index
        while (asked := time.perf_counter()) < ends:
            try:
                data = get(ask, number, steps)
                problem = "" if data.startswith(PNG) and data.endswith(b"IEND\xaeB`\x82") else "no whole PNG"
            except (OSError, ValueError, http.client.HTTPException) as error:
                problem, ask = f"{type(error).__name__}: {error}", Caller(server.port)
            now = time.perf_counter()
            with lock:
                if problem:
                    load.failures.append(problem)
                else:
                    load.times.append(now - asked)
                    load.within += now <= ends
            number += clients

    threads = [threading.Thread(target=client, args=(index,)) for index in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return load


def told(name: str, clients: int, load: Load) -> None:
    times = sorted(load.times) or [float("nan")]
    p95 = times[min(round(0.95 * len(times)), len(times) - 1)]
    print(
        f"{clients:3} clients  {name:9} {load.rate:7.3f} pictures/s  {len(load.failures)} failed  "
        f"p50 {statistics.median(times):6.2f} s  p95 {p95:6.2f} s  ({len(load.times)} pictures)",
        flush=True,
    )
    for line in sorted(set(load.failures))[:3]:
        print(f"             {line}")


def in_process(seconds: float, steps: int) -> float:
    command = [sys.executable, __file__, "--in-process", str(seconds), "--steps", str(steps)]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--clients", default="1,4,16,64", help="apart by commas")
    parser.add_argument("--seconds", type=float, default=60, help="of each load")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--batch", type=int, default=1, help="the studio's --batch")
    parser.add_argument("--page", action="store_true", help="with the web page")
    parser.add_argument("--peer-dtype", default="bfloat16", help="of diffusers; the studio chooses by the machine")
    parser.add_argument("--in-process", type=float, metavar="SECONDS", help=argparse.SUPPRESS)
    parser.add_argument("--diffusers", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.in_process:
        return paint_in_process(args.in_process, args.steps)
    if args.diffusers:
        return serve_diffusers(args.peer_dtype)

    studio = [
        "-m",
        "danqing",
        "serve",
        "--port",
        "0",
        "--batch",
        str(args.batch),
        *([] if args.page else ["--nowebui"]),
    ]
    with tempfile.TemporaryDirectory() as folder, started(*studio, DANQING_HOME=folder) as ours:
        from_studio(Caller(ours.port), 0, args.steps)
        answered = time.perf_counter() - ours.began
        print(f"studio     ready after {ours.ready:.2f} s, first picture after {answered:.2f} s", flush=True)
        with started(__file__, "--diffusers", "--peer-dtype", args.peer_dtype) as theirs:
            from_diffusers(Caller(theirs.port), 0, args.steps)
            answered = time.perf_counter() - theirs.began
            print(f"diffusers  ready after {theirs.ready:.2f} s, first picture after {answered:.2f} s")
            print(f"idle       studio {ours.memory():.0f} MB, diffusers {theirs.memory():.0f} MB", flush=True)
            alone = [in_process(args.seconds, args.steps)]
            rates: dict[int, tuple[float, float]] = {}
            number = 1
            for clients in map(int, args.clients.split(",")):
                mine = loaded(from_studio, ours, clients, args.seconds, args.steps, number)
                told("studio", clients, mine)
                other = loaded(from_diffusers, theirs, clients, args.seconds, args.steps, number)
                told("diffusers", clients, other)
                rates[clients] = mine.rate, other.rate
                number += 100_000
                alone.append(in_process(args.seconds, args.steps))
                print(f"             batches of {BATCH} in a process: {alone[-1]:.3f} pictures/s", flush=True)
            print(f"memory     studio {ours.memory():.0f} MB, diffusers {theirs.memory():.0f} MB")
    best = statistics.median(alone)
    print(f"in process {best:.3f} pictures/s ({min(alone):.3f} to {max(alone):.3f})")
    for clients, (mine_rate, other_rate) in rates.items():
        against = f"{mine_rate / other_rate:.2f} of diffusers" if other_rate else "diffusers gave none"
        print(f"{clients:3} clients  {mine_rate / best:.3f} of in process, {against}")


if __name__ == "__main__":
    main()
