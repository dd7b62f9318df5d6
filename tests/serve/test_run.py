"""The server's process: who is slow, what it writes of itself, who is taken for whom."""

from __future__ import annotations

import asyncio
import http.client
import json
import logging
import queue
import shutil
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import uvicorn

from danqing.errors import DanqingError
from danqing.serve import run
from danqing.serve.logs import JsonLines, PlainLines
from danqing.serve.settings import ServeSettings
from studio import fake_studio

HEAD = 0.3


@pytest.fixture
def port(monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """A server that answers after twice the time that it gives a request's first lines."""
    monkeypatch.setattr(run, "_HEAD_SECONDS", HEAD)

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await asyncio.sleep(2 * HEAD)
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
        await send({"type": "http.response.body", "body": b"ok"})

    config = uvicorn.Config(app, port=0, http=run.Impatient, ws="none", lifespan="off", log_config=None)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        time.sleep(0.005)
    yield server.servers[0].sockets[0].getsockname()[1]
    server.should_exit = True
    thread.join()


def test_a_request_that_does_not_come_is_given_up_and_a_slow_answer_is_not(port: int) -> None:
    whole = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"
    with socket.create_connection(("127.0.0.1", port)) as slow, socket.create_connection(("127.0.0.1", port)) as good:
        slow.settimeout(15)
        good.settimeout(15)
        slow.sendall(b"GET / HT")
        good.sendall(whole)
        began = time.monotonic()
        assert slow.recv(100) == b""
        assert time.monotonic() - began > HEAD / 2
        answer = b""
        while not answer.endswith(b"ok"):
            answer += good.recv(1000) or b"\0closed\0ok"
        assert b"closed" not in answer
        good.sendall(whole[:10])  # the second one on the same connection is as slow
        assert good.recv(100) == b""


def test_a_port_that_is_taken_is_told(tmp_path: Path) -> None:
    engine, _ = fake_studio(tmp_path, start=False)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        settings = ServeSettings(port=taken.getsockname()[1], api=False, page=False)
        with pytest.raises(DanqingError, match="--port"):
            run.serve(engine, settings)


def test_no_answer_waits_for_the_callers_word_that_its_head_has_come(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine, _ = fake_studio(tmp_path, start=False)
    met: list[int] = []

    def met_by(server: uvicorn.Server, sockets: list[socket.socket]) -> None:
        (listening,) = sockets
        listening.listen()
        with socket.create_connection(listening.getsockname()), listening.accept()[0] as accepted:
            met.append(accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))

    monkeypatch.setattr(uvicorn.Server, "run", met_by)
    monkeypatch.setattr(run, "_warm", lambda engine, page: None)
    run.serve(engine, ServeSettings(port=0, api=False, page=False))
    engine.close()
    assert met == [1]


def test_tls_by_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("there is no openssl")
    certificate, key = tmp_path / "certificate.pem", tmp_path / "key.pem"
    make = f"{openssl} req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=studio"
    make += f" -addext subjectAltName=IP:127.0.0.1 -keyout {key} -out {certificate}"
    subprocess.run(make.split(), check=True, capture_output=True)
    servers: list[Any] = []

    class Server(run._Server):
        def __init__(self, *given: Any) -> None:
            super().__init__(*given)
            servers.append(self)

    monkeypatch.setattr(run, "_Server", Server)
    monkeypatch.setattr(run, "_warm", lambda engine, page: None)
    engine, _ = fake_studio(tmp_path / "data", start=False)
    settings = ServeSettings(port=0, api=False, page=False, certificate=certificate, key=key)
    told: queue.Queue[str] = queue.Queue()
    thread = threading.Thread(target=run.serve, args=(engine, settings, told.put))
    thread.start()
    url = urlsplit(told.get(timeout=60))
    assert url.scheme == "https"
    context = ssl.create_default_context(cafile=certificate)
    secure = http.client.HTTPSConnection(str(url.hostname), url.port, context=context, timeout=30)
    secure.request("GET", "/healthz")
    assert secure.getresponse().status == 200
    secure.close()
    plain = http.client.HTTPConnection(str(url.hostname), url.port, timeout=30)
    plain.request("GET", "/healthz")
    with pytest.raises((OSError, http.client.HTTPException)):
        plain.getresponse()
    plain.close()
    servers[0].should_exit = True
    thread.join(60)
    assert not thread.is_alive()


def test_a_certificate_that_is_none_is_told(tmp_path: Path) -> None:
    engine, _ = fake_studio(tmp_path / "data", start=False)
    (tmp_path / "certificate.pem").write_text("no certificate")
    settings = ServeSettings(port=0, api=False, page=False, certificate=tmp_path / "certificate.pem")
    with pytest.raises(DanqingError, match=r"certificate\.pem: TLS"):
        run.serve(engine, settings)


def test_log_lines() -> None:
    record = logging.makeLogRecord(
        {
            "name": "danqing.serve",
            "levelname": "INFO",
            "msg": "queued %s",
            "args": ("a\nb",),
            "job": "a\nb",
            "event": "queued",
        }
    )
    line = JsonLines().format(record)
    assert "\n" not in line
    told = json.loads(line)
    assert (told["message"], told["job"], told["event"], told["level"]) == ("queued a\nb", "a\nb", "queued", "info")
    assert "queued" in PlainLines().format(record)
    try:
        raise ValueError("x")
    except ValueError:
        import sys

        record.exc_info = sys.exc_info()
    assert "ValueError: x" in json.loads(JsonLines().format(record))["traceback"]
