"""The incidents that befell tools like this one, each as an attack: it works on a naive server, and not on the studio.

USERS.md section 5 lists them by their CVE numbers.
"""

from __future__ import annotations

import ast
import asyncio
import base64
import io
import json
import socket
import struct
import threading
import time
import urllib.request
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI, Request, Response
from fastapi.responses import FileResponse, RedirectResponse
from PIL import Image
from pydantic import BaseModel
from starlette.testclient import TestClient

import danqing.serve
from danqing.errors import DanqingError
from danqing.library.names import find
from danqing.requests import Painting
from danqing.serve import accept, fetch
from danqing.serve.accept import Rules, check_name, check_picture
from danqing.serve.app import create_app
from danqing.serve.engine import Engine
from danqing.serve.security import (
    Buckets,
    Guard,
    Users,
    check_exposure,
    host_allowed,
    is_loopback,
    known,
    token_hash,
    warning,
    write_users,
)
from danqing.serve.settings import ServeSettings
from danqing.serve.work import KINDS
from studio import fake_studio

BASE = "http://127.0.0.1:7860"
SECRET = "the secret of the house"
TOKEN = "0123456789abcdef-token"
Attack = Callable[[TestClient], bool]


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[Engine]:
    engine, _ = fake_studio(tmp_path / "data")
    (tmp_path / "secret.png").write_text(SECRET)
    (tmp_path / "data" / "secret.txt").write_text(SECRET)
    yield engine
    engine.close()


def studio(engine: Engine, **settings: Any) -> TestClient:
    app = create_app(engine, ServeSettings(**{"api": False, "page": False, **settings}))
    return TestClient(app, base_url=BASE, client=("127.0.0.1", 50000), raise_server_exceptions=False)


def naive(folder: Path) -> TestClient:
    """What such servers look like where nobody thought of it."""
    app = FastAPI()
    state: dict[str, Any] = {"model": "good"}

    @app.get("/view")
    @app.get("/api/v1/pictures/{name:path}/file")
    @app.get("/file={name:path}")
    def view(name: str = "", filename: str = "") -> FileResponse:
        path = folder / (name or filename)
        types = {".svg": "image/svg+xml", ".html": "text/html"}
        if not path.is_file():
            return Response(status_code=404)  # type: ignore[return-value]
        return FileResponse(path, media_type=types.get(path.suffix))

    @app.post("/api/v1/jobs")
    async def jobs(request: Request) -> dict[str, Any]:
        import json

        asked = json.loads(await request.body())  # whatever its type says
        for value in asked.get("request", {}).values():
            if isinstance(value, str) and value.startswith("http"):
                urllib.request.urlopen(value, timeout=2).read()
            elif isinstance(value, str) and (folder / value).is_file():
                return {"read": (folder / value).read_text(errors="replace")}
            elif isinstance(value, str) and value.startswith("data:"):
                data = base64.b64decode(value.partition(",")[2])
                (folder / "upload.svg").write_bytes(data)
                with Image.open(io.BytesIO(data)) as image:
                    return {"size": image.size}
        return {"state": "queued"}

    @app.post("/api/v1/queue/pause")
    def pause() -> dict[str, Any]:
        state["model"] = "evil"
        return {"paused": True}

    @app.get("/login_redirect")
    @app.get("/{place:path}/")
    def redirect(place: str = "") -> Response:
        return RedirectResponse("/" + place) if place.startswith("/") else Response(status_code=404)

    return TestClient(app, base_url=BASE, raise_server_exceptions=False)


def both(engine: Engine, tmp_path: Path, attack: Attack) -> None:
    """The attack works on the naive server, or it would show nothing; and not on the studio."""
    assert attack(naive(tmp_path / "data")), "the attack itself does not work"
    assert not attack(studio(engine))


def jpeg(width: int = 8, height: int = 8) -> str:
    data = io.BytesIO()
    Image.new("RGB", (width, height)).save(data, "JPEG")
    return "data:image/jpeg;base64," + base64.b64encode(data.getvalue()).decode()


# ComfyUI CVE-2026-56670 ... 56673: path traversal through the routes that show files


@pytest.mark.parametrize(
    "name", ["secret.txt", "../secret.png", "..%2fsecret.png", "%2e%2e/secret.png", "pictures/../secret.txt"]
)
def test_no_route_shows_a_file_by_its_path(engine: Engine, tmp_path: Path, name: str) -> None:
    def attack(client: TestClient) -> bool:
        places = (f"/api/v1/pictures/{name}/file", f"/view?filename={name}", f"/file={name}", f"/file/{name}")
        return any(SECRET in client.get(place).text for place in places)

    both(engine, tmp_path, attack)


def test_not_even_a_row_that_leads_outside_is_followed(engine: Engine, tmp_path: Path) -> None:
    from danqing.serve.store import NewPicture

    (tmp_path / "data" / "pictures").mkdir()
    (tmp_path / "data" / "pictures" / "link.png").symlink_to(tmp_path / "secret.png")
    rows = [NewPicture(0, path, 1, 1) for path in ("../secret.png", str(tmp_path / "secret.png"), "pictures/link.png")]
    client = studio(engine)
    for row in engine.store.add_pictures(rows):
        for place in ("file", "thumbnail", "request"):
            answer = client.get(f"/api/v1/pictures/{row.id}/{place}")
            assert answer.status_code == 400
            assert SECRET not in answer.text


# ComfyUI's LoadImage, Gradio CVE-2023-51449 and CVE-2024-1561: pictures named by their path


@pytest.mark.parametrize(
    "source", ["../secret.png", "secret.txt", "/etc/passwd", "inputs/../secret.txt", "file:///etc/passwd"]
)
def test_a_request_names_no_picture_by_its_path(engine: Engine, tmp_path: Path, source: str) -> None:
    def attack(client: TestClient) -> bool:
        named = source if source.startswith(("..", "secret", "inputs")) else str(tmp_path / "secret.png")
        (tmp_path / "data" / "inputs").mkdir(exist_ok=True)
        body = {"kind": "img2img", "request": {"image": named}}
        answer = client.post("/api/v1/jobs", json=body)
        return answer.status_code < 400 and SECRET in answer.text

    both(engine, tmp_path, attack)
    answer = studio(engine).post("/api/v1/jobs", json={"kind": "img2img", "request": {"image": source}})
    assert answer.status_code == 400
    assert "paths are not taken" in answer.json()["error"] or "not there" in answer.json()["error"]


def test_a_picture_hidden_in_a_part_of_a_request_is_no_path_either(engine: Engine) -> None:
    client = studio(engine)
    for request in (
        {"regions": [{"prompt": "a", "mask": "/etc/passwd"}]},
        {"controls": [{"model": "canny", "image": "/etc/passwd"}]},
        {"image_prompts": [{"model": "ip", "images": ["/etc/passwd"]}]},
        {"controls": "canny,/etc/passwd"},
    ):
        answer = client.post("/api/v1/jobs", json={"kind": "txt2img", "request": request})
        assert answer.status_code == 400, answer.text
        assert "paths are not taken" in answer.json()["error"]


# InvokeAI CVE-2024-12029: a model of the attacker's choice is loaded


@pytest.mark.parametrize(
    "request_",
    [
        {"model": "/etc/passwd"},
        {"model": "../../evil.ckpt"},
        {"model": "~/evil.ckpt"},
        {"model": "C:\\evil.ckpt"},
        {"model": "\\\\evil\\share\\evil.ckpt"},
        {"model": "http://evil.example/model.ckpt"},
        {"vae": "/tmp/evil.pt"},
        {"refiner_checkpoint": "/tmp/evil.ckpt"},
        {"enable_hr": True, "hr_upscaler": "/tmp/evil.pth"},
        {"prompt": "a <lora:/tmp/evil:1>"},
        {"prompt": "a <hypernet:../../evil>"},
        {"negative_prompt": "embedding:/tmp/evil.pt"},
        {"detailers": "/tmp/evil.onnx a face"},
        {"controls": "/tmp/evil.pth"},
        {"aesthetic": "/tmp/evil.pt"},
        {"image_prompts": [{"model": "reference only", "faces": "/tmp/evil.npy"}]},
        {"prompt": "{a|<lora:/tmp/evil>}", "dynamic": "all"},
    ],
    ids=lambda request: next(iter(request.values()))[:20] if isinstance(next(iter(request.values())), str) else "more",
)
def test_no_model_is_loaded_from_outside_the_model_folders(engine: Engine, request_: dict[str, Any]) -> None:
    answer = studio(engine).post("/api/v1/jobs", json={"kind": "txt2img", "request": request_})
    if request_.get("model", "").startswith("http"):  # a name like any other, which no file has
        assert answer.status_code in (201, 400)
        return
    assert answer.status_code == 400, answer.text
    assert "model folders" in answer.json()["error"]


def test_files_that_are_there_are_no_more_told_of_than_those_that_are_not(engine: Engine, tmp_path: Path) -> None:
    (tmp_path / "present.safetensors").write_bytes(b"")
    client = studio(engine)
    texts = [
        client.post("/api/v1/jobs", json={"kind": "txt2img", "request": {"model": str(tmp_path / name)}}).json()[
            "error"
        ]
        for name in ("present.safetensors", "missing.safetensors")
    ]
    assert texts[0].replace("present", "missing") == texts[1]


def test_a_relative_path_is_held_to_the_model_folders_wherever_the_server_was_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    models = tmp_path / "models"
    models.mkdir()
    (models / "in.safetensors").write_bytes(b"")
    (tmp_path / "out.safetensors").write_bytes(b"")
    monkeypatch.chdir(tmp_path)
    roots = (models.resolve(),)
    check_name("models/in.safetensors", "model", roots)
    check_name("sub/a name [0123abcdef]", "model", roots)
    check_name(str(models / "in.safetensors"), "model", roots)
    for name in ("out.safetensors", "models/../out.safetensors", "a\0b"):
        with pytest.raises(DanqingError, match="model folders"):
            check_name(name, "model", roots)


def test_every_text_field_of_every_request_is_known_to_be_a_picture_a_file_a_prompt_or_plain() -> None:
    """A new field has to be put into one of the lists, so that none that names a file is forgotten."""
    known_fields = accept.PICTURES | accept.FILES | accept.PROMPTS | accept.PLAIN
    unknown: set[str] = set()
    seen: set[type[BaseModel]] = set()

    def look(annotation: Any) -> Iterator[Any]:
        yield annotation
        for inner in getattr(annotation, "__args__", ()):
            yield from look(inner)

    def walk(cls: type[BaseModel]) -> None:
        if cls in seen:
            return
        seen.add(cls)
        for name, info in cls.model_fields.items():
            parts = list(look(info.annotation))
            if any(part is str for part in parts) and name not in known_fields:
                unknown.add(f"{cls.__name__}.{name}")
            for part in parts:
                if isinstance(part, type) and issubclass(part, BaseModel):
                    walk(part)

    for cls in KINDS.values():
        walk(cls)
    # what Danqing writes itself
    unknown -= {f"Reference.{name}" for name in ("sha256", "autov3", "md5")}
    assert unknown == set()
    assert issubclass(next(iter(KINDS.values())), Painting)


# ComfyUI CVE-2026-5667x: stored cross-site scripting by SVG and HTML

SVG = b'<svg xmlns="http://www.w3.org/2000/svg"><script>alert(1)</script></svg>'


def test_nothing_uploaded_runs_in_a_browser(engine: Engine, tmp_path: Path) -> None:
    def attack(client: TestClient) -> bool:
        url = "data:image/svg+xml;base64," + base64.b64encode(SVG).decode()
        client.post("/api/v1/jobs", json={"kind": "img2img", "request": {"image": url}})
        for place in ("/view?filename=upload.svg", "/api/v1/pictures/upload.svg/file"):
            answer = client.get(place)
            inline = "attachment" not in answer.headers.get("content-disposition", "")
            if "svg" in answer.headers.get("content-type", "") and b"<script>" in answer.content and inline:
                return True
        return False

    both(engine, tmp_path, attack)
    url = "data:image/png;base64," + base64.b64encode(SVG).decode()
    answer = studio(engine).post("/api/v1/jobs", json={"kind": "img2img", "request": {"image": url}})
    assert answer.status_code == 400
    assert list((tmp_path / "data").glob("inputs/*")) == []


def test_whatever_a_route_answers_browsers_are_told_not_to_run_it(engine: Engine) -> None:
    app = create_app(engine, ServeSettings(api=False, page=False))

    @app.get("/evil/{kind:path}")
    def evil(kind: str) -> Response:
        return Response(SVG, media_type=kind)

    client = TestClient(app, base_url=BASE, client=("127.0.0.1", 1))
    for kind in ("image/svg+xml", "text/html", "application/xhtml+xml", "text/xml"):
        answer = client.get(f"/evil/{kind}")
        assert answer.headers["content-disposition"] == "attachment"
        assert "sandbox" in answer.headers["content-security-policy"]
        assert "default-src 'none'" in answer.headers["content-security-policy"]
    for place in ("/healthz", "/openapi.json", "/nothing", "/api/v1/jobs"):
        headers = client.get(place).headers
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["x-frame-options"] == "DENY"
        assert headers["cross-origin-resource-policy"] == "same-origin"
        assert "server" not in headers


# ComfyUI #4850, CVE-2024-10481 and the way around its fix (#13245), ComfyUI-Manager #2818: CSRF on localhost


@pytest.mark.parametrize(
    "headers",
    [
        {"origin": "https://evil.example"},
        {"origin": "null"},
        {"origin": "http://127.0.0.1:7860.evil.example"},
        {"origin": "http://127.0.0.1:8000"},
        {"origin": "http://evil.example:7860"},
        {"origin": "http://127.0.0.1:7860@evil.example"},
        {"origin": "http://localhost.evil.example:7860"},
        {"origin": ""},
        {"sec-fetch-site": "cross-site"},
        {"sec-fetch-site": "same-site"},
    ],
    ids=str,
)
def test_another_sites_page_changes_nothing(engine: Engine, tmp_path: Path, headers: dict[str, str]) -> None:
    def attack(client: TestClient) -> bool:
        form = {"content-type": "text/plain", **headers}
        posted = client.post("/api/v1/jobs", content='{"kind": "txt2img", "request": {"prompt": "a"}}', headers=form)
        paused = client.post("/api/v1/queue/pause", headers=headers)
        return posted.status_code < 400 or paused.status_code < 400

    both(engine, tmp_path, attack)
    assert engine.jobs() == ()
    assert not engine.paused


def test_another_sites_page_reads_nothing(engine: Engine) -> None:
    client = studio(engine)
    answer = client.get("/api/v1/pictures", headers={"origin": "https://evil.example"})
    assert answer.status_code == 403
    assert "access-control-allow-origin" not in answer.headers
    preflight = {"origin": "https://evil.example", "access-control-request-method": "POST"}
    assert client.options("/api/v1/jobs", headers=preflight).status_code == 403


def test_its_own_page_and_tools_and_pages_that_were_allowed_may(engine: Engine) -> None:
    client = studio(engine, origins=("https://friend.example",))
    for headers in (
        {},
        {"origin": "http://127.0.0.1:7860"},
        {"origin": "http://127.0.0.1:7860", "sec-fetch-site": "same-origin"},
        {"sec-fetch-site": "none"},
    ):
        assert client.post("/api/v1/queue/resume", headers=headers).status_code == 200
    answer = client.post("/api/v1/queue/resume", headers={"origin": "https://friend.example"})
    assert answer.headers["access-control-allow-origin"] == "https://friend.example"
    assert client.get("/healthz", headers={"sec-fetch-site": "cross-site"}).status_code == 200  # a link is clicked


# ComfyUI #12860: DNS rebinding


@pytest.mark.parametrize(
    "host",
    [
        "evil.example",
        "evil.example:7860",
        "127.0.0.1.evil.example",
        "localhost.evil.example",
        "",
        "127.0.0.1:x",
        "[::1",
    ],
)
def test_a_name_that_was_rebound_to_this_machine_is_refused(engine: Engine, tmp_path: Path, host: str) -> None:
    def attack(client: TestClient) -> bool:
        origin = {"host": host, "origin": f"http://{host}"}
        return client.post("/api/v1/queue/pause", headers=origin).status_code < 400

    both(engine, tmp_path, attack)
    assert studio(engine).get("/api/v1/jobs", headers={"host": host}).status_code == 421


def test_hosts_that_are_this_machines() -> None:
    from danqing.serve.security import allowed_hosts

    local = allowed_hosts(ServeSettings())
    for host in ("127.0.0.1:7860", "localhost", "LOCALHOST:1", "[::1]:7860"):
        assert host_allowed(host, local)
    assert not host_allowed("192.168.1.5:7860", local)
    open_ = allowed_hosts(ServeSettings(host="0.0.0.0", hosts=("studio.example",)))
    for host in ("192.168.1.5:7860", "studio.example", "[fe80::1]:7860", socket.gethostname()):
        assert host_allowed(host, open_)
    assert not host_allowed("evil.example", open_)


# 1,000 open ComfyUIs and a botnet (2026-04), A1111's share links (#2571), Manager's CVE-2025-67303: no password


def test_nobody_listens_to_the_world_without_a_password() -> None:
    for host in ("0.0.0.0", "::", "192.168.1.5", ""):
        with pytest.raises(DanqingError, match="--auth"):
            check_exposure(ServeSettings(host=host))
        check_exposure(ServeSettings(host=host, tokens=(token_hash(TOKEN),)))
    check_exposure(ServeSettings())
    assert "--tls-certfile" in (warning(ServeSettings(host="0.0.0.0")) or "")
    assert warning(ServeSettings(host="0.0.0.0", certificate=Path("cert.pem"))) is None
    assert warning(ServeSettings()) is None
    assert is_loopback("127.0.0.53")
    assert not is_loopback("127.0.0.1.evil.example")


def test_without_a_password_no_route_answers(engine: Engine, tmp_path: Path) -> None:
    users = tmp_path / "users"
    write_users(users, [("anna", "correct horse")])
    client = studio(engine, users=users, logins_per_minute=1000)
    paths = client.get("/openapi.json", auth=("anna", "correct horse")).json()["paths"]
    assert len(paths) > 20
    for path, methods in [*paths.items(), ("/openapi.json", {"get": None}), ("/nothing", {"get": None})]:
        for method in methods:
            answer = client.request(method, path.replace("{job}", "0" * 32).replace("{picture}", "0" * 32))
            assert answer.status_code == (200 if path == "/healthz" else 401), path
            if path != "/healthz":
                assert answer.headers["www-authenticate"].startswith("Basic")


def test_passwords_and_tokens(tmp_path: Path) -> None:
    file = tmp_path / "users"
    write_users(file, [("anna", "correct horse"), ("李", "密码密码")])
    assert "correct" not in file.read_text()
    assert file.stat().st_mode & 0o077 == 0
    users, tokens = Users(file), (token_hash(TOKEN),)

    def basic(text: str) -> str:
        return "Basic " + base64.b64encode(text.encode()).decode()

    for good in (basic("anna:correct horse"), basic("李:密码密码"), f"Bearer {TOKEN}", basic(f"any:{TOKEN}")):
        assert known(good, users, tokens)
    for bad in (
        basic("anna:wrong"),
        basic("anna:"),
        basic("bert:correct horse"),
        basic("correct horse"),
        "Basic ***",
        "Bearer",
        "Bearer " + token_hash(TOKEN),
        "Digest x",
        "",
    ):
        assert not known(bad, users, tokens), bad
    assert known(basic("anna:correct horse"), users, tokens)  # what was right is known for a while
    time.sleep(0.01)
    write_users(file, [("anna", "another one")])
    assert not known(basic("anna:correct horse"), users, tokens)
    assert known(basic("anna:another one"), users, tokens)
    assert known(basic("李:密码密码"), users, tokens)
    with pytest.raises(DanqingError, match="16 characters"):
        token_hash("short")
    with pytest.raises(DanqingError, match="USER:PASSWORD"):
        write_users(file, [("an\nna", "x")])
    file.write_text("anna:plain\n")
    with pytest.raises(DanqingError, match="argon2"):
        Users(file)


def test_passwords_are_not_guessed_one_after_another(engine: Engine) -> None:
    client = studio(engine, tokens=(token_hash(TOKEN),), logins_per_minute=5)
    statuses = [client.get("/api/v1/jobs", headers={"authorization": f"Bearer {n}"}).status_code for n in range(7)]
    assert statuses == [401] * 5 + [429] * 2
    assert client.get("/api/v1/jobs", headers={"authorization": f"Bearer {TOKEN}"}).status_code == 429


def test_guesses_that_come_at_once_count_at_once(engine: Engine, tmp_path: Path) -> None:
    """A password takes its time to be looked at: no guess may slip in while others are."""
    users = tmp_path / "users"
    write_users(users, [("anna", "correct horse")])
    guard = Guard(create_app(engine, ServeSettings()), ServeSettings(users=users, logins_per_minute=3))
    looked = 0

    def slowly(*_: object, quickly: bool = False) -> bool:
        nonlocal looked
        looked += not quickly
        return False

    async def guesses() -> list[int]:
        scope: dict[str, Any] = {"type": "http", "method": "GET", "path": "/api/v1/jobs", "client": ("10.0.0.9", 1)}
        rows = [
            guard._unknown(scope, {"authorization": f"Bearer guess-number-{number}-of-many"}, "10.0.0.9")
            for number in range(20)
        ]
        return [refusal[0] for refusal in await asyncio.gather(*rows) if refusal is not None]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("danqing.serve.security.known", slowly)
        statuses = asyncio.run(guesses())
    assert looked == statuses.count(401) == 3
    assert statuses.count(429) == 17


def test_other_machines_are_held_to_a_rate(engine: Engine) -> None:
    app = create_app(engine, ServeSettings(api=False, page=False, requests_per_minute=3, proxies=("10.0.0.1",)))

    def statuses(address: str, **headers: str) -> list[int]:
        client = TestClient(app, base_url=BASE, client=(address, 5))
        return [client.get("/healthz", headers=headers).status_code for _ in range(4)]

    assert statuses("192.168.1.5") == [200, 200, 200, 429]
    assert statuses("192.168.1.6", **{"x-forwarded-for": "127.0.0.1"}) == [200, 200, 200, 429]
    assert statuses("10.0.0.1", **{"x-forwarded-for": "127.0.0.1, 192.168.1.7"}) == [200, 200, 200, 429]
    assert statuses("127.0.0.1") == [200] * 4
    assert Buckets(60).take("a") == 0.0


# ComfyUI-Manager CVE-2026-22777: line breaks that end up where they act


def test_line_breaks_make_no_line_of_their_own(engine: Engine, caplog: pytest.LogCaptureFixture) -> None:
    client = studio(engine)
    with caplog.at_level("INFO", "danqing.access"):
        client.get("/nothing%0d%0aforged: yes")
    assert all("\n" not in record.getMessage() and "\r" not in record.getMessage() for record in caplog.records)
    assert any("forged" in record.getMessage() for record in caplog.records)
    job = client.post("/api/v1/jobs", json={"kind": "txt2img", "request": {"prompt": "a\r\nset-cookie: b"}}).json()
    answer = client.get(f"/api/v1/jobs/{job['id']}", params={"wait": 5})
    assert "set-cookie" not in answer.headers


# Gradio CVE-2024-4940: open redirect


@pytest.mark.parametrize("path", ["//evil.example/", "/%2fevil.example/", "/\\evil.example/", "//evil.example/%2e%2e"])
def test_nobody_is_sent_elsewhere(engine: Engine, tmp_path: Path, path: str) -> None:
    def attack(client: TestClient) -> bool:
        answer = client.get(BASE + path, follow_redirects=False)
        where = answer.headers.get("location", "").replace("\\", "/")
        return answer.is_redirect and "evil.example" in where

    if path == "//evil.example/":
        both(engine, tmp_path, attack)
    assert not attack(studio(engine))


# Gradio CVE-2026-28416, A1111's pictures by URL: SSRF


def _listening() -> tuple[int, list[bytes], socket.socket]:
    """A service of this machine that nobody outside should reach: its port, and who came."""
    server = socket.create_server(("127.0.0.1", 0))
    seen: list[bytes] = []

    def serve() -> None:
        while True:
            try:
                connection, _ = server.accept()
            except OSError:
                return
            seen.append(connection.recv(1000))
            connection.sendall(b"HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\nok")
            connection.close()

    threading.Thread(target=serve, daemon=True).start()
    return server.getsockname()[1], seen, server


def test_no_url_reaches_what_only_this_machine_should(engine: Engine, tmp_path: Path) -> None:
    port, seen, server = _listening()

    def attack(client: TestClient) -> bool:
        seen.clear()
        body = {"kind": "img2img", "request": {"image": f"http://127.0.0.1:{port}/admin"}}
        client.post("/api/v1/jobs", json=body)
        return bool(seen)

    both(engine, tmp_path, attack)
    engine.rules = Rules(urls=True)  # and where it is switched on, neither
    assert not attack(studio(engine))
    server.close()


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1", "10.1.2.3", "172.16.0.1", "192.168.1.1", "169.254.169.254", "100.64.0.1", "0.0.0.0", "224.0.0.1",
        "255.255.255.255", "::1", "::", "fe80::1", "fe80::1%eth0", "fc00::1", "::ffff:127.0.0.1", "64:ff9b::7f00:1",
        "2002:7f00:1::", "ff02::1",
    ],
)  # fmt: skip
def test_private_addresses(address: str) -> None:
    assert not fetch.is_public(address)


def test_public_addresses() -> None:
    for address in ("1.1.1.1", "93.184.216.34", "2606:4700:4700::1111", "::ffff:1.1.1.1"):
        assert fetch.is_public(address)


@pytest.mark.parametrize(
    "url",
    [
        "http://127.1/a.png", "http://2130706433/a.png", "http://0x7f000001/a.png", "http://[::1]/a.png",
        "http://[::ffff:127.0.0.1]/", "http://localhost/", "http://evil@127.0.0.1/", "http://127.0.0.1:22/",
        "ftp://127.0.0.1/", "http:///a", "http://[::1", "http://a:99999999/",
    ],
)  # fmt: skip
def test_urls_of_this_machine_in_all_their_spellings(url: str) -> None:
    with pytest.raises(DanqingError, match="image"):
        fetch.fetch(url, "image", 1000)


def test_a_name_is_resolved_once_and_redirections_are_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    """A public server that redirects to this machine, and a name that is rebound between look and call."""
    _, seen, server = _listening()
    answers = iter([[("93.184.216.34", 80)], [("127.0.0.1", 80)]])
    connected: list[tuple[str, int]] = []

    def resolve(*_: Any, **__: Any) -> list[Any]:
        return [(0, 0, 0, "", address) for address in next(answers)]

    class Redirecting:
        def sendall(self, data: bytes) -> None: ...
        def close(self) -> None: ...
        def makefile(self, *_: Any, **__: Any) -> io.BytesIO:
            return io.BytesIO(b"HTTP/1.1 302 Found\r\nLocation: http://rebound.example/\r\nContent-Length: 0\r\n\r\n")

    def connect(address: tuple[str, int], **_: Any) -> Redirecting:
        connected.append(address)
        return Redirecting()

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    monkeypatch.setattr(socket, "create_connection", connect)
    with pytest.raises(DanqingError, match="not on the public internet"):
        fetch.fetch("http://rebound.example/a.png", "image", 1000)
    assert connected == [("93.184.216.34", 80)]
    assert seen == []
    server.close()


# sizes: uploads, bombs, slow callers


def _bomb(width: int, height: int) -> bytes:
    """A PNG of a few bytes that says it has many pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 100)) + chunk(b"IEND", b"")
    )


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_a_picture_of_too_many_pixels_is_refused_before_one_is_read(engine: Engine, tmp_path: Path) -> None:
    url = "data:image/png;base64," + base64.b64encode(_bomb(12_000, 9_000)).decode()

    def attack(client: TestClient) -> bool:
        answer = client.post("/api/v1/jobs", json={"kind": "img2img", "request": {"image": url}})
        return answer.status_code < 400

    both(engine, tmp_path, attack)
    for size in ((12_000, 9_000), (60_000, 60_000), (2**31 - 1, 2**31 - 1)):
        with pytest.raises(DanqingError, match=r"pixels|damaged"):
            check_picture(_bomb(*size), "image", Rules())


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x89PNG\r\n\x1a\n",
        b"GIF89a",
        b"RIFF\0\0\0\0WEBP",
        b"%!PS-Adobe\n",
        b"%PDF-1.4",
        SVG,
        b"\xff\xd8\xff",
        b"BM" + b"\0" * 60,
    ],
)
def test_what_is_no_picture_is_refused_in_one_line(data: bytes) -> None:
    with pytest.raises(DanqingError, match="image: "):
        check_picture(data, "image", Rules())


def test_bodies_are_limited_whether_or_not_they_say_how_long_they_are(engine: Engine) -> None:
    client = studio(engine, body_bytes=10_000)
    body = b'{"kind": "txt2img", "request": {"prompt": "' + b"a" * 20_000 + b'"}}'
    assert client.post("/api/v1/jobs", content=body).status_code == 413

    def pieces() -> Iterator[bytes]:
        for start in range(0, len(body), 1000):
            yield body[start : start + 1000]

    assert client.post("/api/v1/jobs", content=pieces()).status_code == 413
    assert engine.jobs() == ()
    assert client.post("/api/v1/jobs", json={"kind": "txt2img", "request": {}}).status_code == 201


def test_a_body_that_does_not_come_is_given_up(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    import asyncio

    from danqing.serve import security

    monkeypatch.setattr(security, "_BODY_SECONDS", 0.05)
    app = create_app(engine, ServeSettings(api=False, page=False))
    sent: list[Any] = []

    async def receive() -> Any:
        await asyncio.sleep(60)

    async def send(message: Any) -> None:
        sent.append(message)

    headers = [(b"host", b"127.0.0.1"), (b"content-type", b"application/json"), (b"content-length", b"100")]
    scope = {
        "type": "http", "method": "POST", "path": "/api/v1/jobs", "raw_path": b"/api/v1/jobs", "query_string": b"",
        "headers": headers, "client": ("127.0.0.1", 1), "scheme": "http", "server": ("127.0.0.1", 7860),
        "http_version": "1.1", "root_path": "",
    }  # fmt: skip
    asyncio.run(asyncio.wait_for(app(scope, receive, send), 50))  # before the body comes, in a minute
    assert sent[0]["status"] == 408


@pytest.mark.parametrize(
    ("request_", "words"),
    [
        ({"width": 16384, "height": 16384}, "million pixels"),
        ({"width": 4104, "height": 4096}, "million pixels"),
        ({"width": 8000, "height": 8000, "enable_hr": True, "hr_scale": 4}, "million pixels"),
        ({"prompt": "a" * 200_000}, "characters"),
        ({"controls": [{"model": "canny", "image": jpeg()}] * 300}, "may bring 256 pictures"),
        ({"prompt": "{a|b}" * 20, "dynamic": "all"}, "combinations"),
    ],
    ids=["canvas", "one piece", "hires", "prompt", "pictures", "combinations"],
)
def test_what_one_request_may_ask_for_is_limited(engine: Engine, request_: dict[str, Any], words: str) -> None:
    answer = studio(engine).post("/api/v1/jobs", json={"kind": "txt2img", "request": request_})
    assert answer.status_code == 400, answer.text[:300]
    assert words in answer.json()["error"]
    assert len(answer.text) < 1000


@pytest.mark.parametrize("name", ["a" * 300, "a" * 5000, "\ud800"], ids=["long", "longer", "no unicode"])
def test_a_name_that_no_file_can_have_is_the_callers_fault(engine: Engine, name: str) -> None:
    client = studio(engine, api=True)
    adetailer = {"ADetailer": {"args": [True, False, {"ad_model": name}]}}
    bodies: list[tuple[str, dict[str, Any]]] = [
        ("/api/v1/jobs", {"kind": "txt2img", "request": {"model": name}}),
        ("/api/v1/jobs", {"kind": "txt2img", "request": {"detailers": name}}),
        ("/sdapi/v1/txt2img", {"override_settings": {"sd_model_checkpoint": name}}),
        ("/sdapi/v1/txt2img", {"refiner_checkpoint": name, "refiner_switch_at": 0.5}),
        ("/sdapi/v1/txt2img", {"alwayson_scripts": adetailer}),
        ("/v1/images/generations", {"prompt": "a", "model": name}),
    ]
    for path, body in bodies:
        answer = client.post(path, content=json.dumps(body), headers={"content-type": "application/json"})
        assert answer.status_code < 500, (path, body, answer.text[:300])
        assert answer.is_success or len(answer.text) < 2000
    with pytest.raises(DanqingError):
        find(name, "checkpoint", engine.models.settings)


@pytest.mark.parametrize("body", [b"[" * 200_000, b'{"a": "\xff"}', b"9" * 5000], ids=["nested", "no text", "number"])
def test_json_that_cannot_be_read_is_told_in_each_apis_own_form(engine: Engine, body: bytes) -> None:
    client, json_ = studio(engine, api=True), {"content-type": "application/json"}
    own, theirs, openai = (client.post(path, content=body, headers=json_) for path in ("/api/v1/jobs", *OTHER_BODIES))
    assert [answer.status_code for answer in (own, theirs, openai)] == [400, 400, 400]
    assert own.json()["error"] == theirs.json()["detail"] == openai.json()["error"]["message"]
    assert theirs.json().keys() == {"error", "detail", "body", "errors"}


OTHER_BODIES = ("/sdapi/v1/txt2img", "/v1/images/generations")


def test_a_body_that_does_not_say_that_it_is_json_is_told_how(engine: Engine) -> None:
    """As curl -d sends it."""
    client, form = studio(engine, api=True), {"content-type": "application/x-www-form-urlencoded"}
    for path in ("/api/v1/jobs", *OTHER_BODIES):
        answer = client.post(path, content=b'{"prompt": "a"}', headers=form)
        assert answer.status_code in (400, 422)
        assert "Content-Type: application/json" in answer.text
    assert client.get("/nothing").json() == {"error": "Not Found", "detail": "Not Found"}


def test_only_folders_that_were_named_are_imported(engine: Engine, tmp_path: Path) -> None:
    client = studio(engine, folders=(tmp_path / "mine",))
    (tmp_path / "mine").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "outside.png")
    (tmp_path / "mine" / "link.png").symlink_to(tmp_path / "outside.png")
    for folder in ("/", str(tmp_path), str(tmp_path / "mine" / ".."), "../..", "~", "/etc", "a\0b" * 2):
        answer = client.post("/api/v1/pictures/import", json={"folder": folder})
        assert answer.status_code == 400 or "\0" in folder, folder
    answer = client.post("/api/v1/pictures/import", json={"folder": str(tmp_path / "mine")})
    assert answer.json() == {"added": 0, "known": 0, "failed": []}


# Pickles (nullifAI, CVE-2025-32434), eval and their kin: "no endpoint evaluates code or unpickles"


def test_no_code_of_the_studio_evaluates_or_unpickles() -> None:
    forbidden = {"eval", "exec", "compile", "__import__", "pickle", "dill", "shelve", "marshal", "subprocess", "popen"}
    forbidden |= {"system", "spawnl", "torch.load", "yaml"}
    for file in Path(danqing.serve.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            names: set[str] = set()
            if isinstance(node, ast.Import):
                names = {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                names = {(node.module or "").partition(".")[0]}
            elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                names = {node.func.id}
            elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr != "compile":
                names = {node.func.attr, ast.unparse(node.func)}
            assert not names & forbidden, f"{file.name}:{getattr(node, 'lineno', 0)}: {names & forbidden}"


def test_an_error_of_its_own_tells_the_caller_nothing(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any) -> Any:
        raise RuntimeError(f"{SECRET} at /home/anna/model")

    monkeypatch.setattr(engine.store, "tags", broken)
    answer = studio(engine).get("/api/v1/tags")
    assert answer.status_code == 500
    assert SECRET not in answer.text
    assert answer.headers["x-content-type-options"] == "nosniff"
