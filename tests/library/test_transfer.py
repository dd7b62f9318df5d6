import errno
import hashlib
import io
import os
import random
import socket
import urllib.request
from collections import namedtuple

import pytest

from danqing.errors import DanqingError
from danqing.library import transfer
from danqing.library.transfer import BLOCK, Refused, fetch, fetch_json, safe_name, settle

BODY = random.Random(0).randbytes(3 * BLOCK + 123)
HASH = hashlib.sha256(BODY).hexdigest()


def get(url, folder, **options):
    return fetch(url, folder, pause=0.0, **options)


def test_a_file_comes_with_its_hash_and_is_renamed_when_settled(site, tmp_path):
    url = site.put("/a/model.safetensors", BODY)
    steps = []
    fetched = get(url, tmp_path, sha256=HASH.upper(), size=len(BODY), progress=lambda *step: steps.append(step))
    assert fetched.name == "model.safetensors"
    assert fetched.sha256 == HASH
    assert fetched.part == tmp_path / "model.safetensors.part"
    assert steps[-1] == ("model.safetensors", len(BODY), len(BODY))
    assert [done for _, done, _ in steps] == sorted({done for _, done, _ in steps})
    settle(fetched.part, tmp_path / "deep" / "m.safetensors")
    assert (tmp_path / "deep" / "m.safetensors").read_bytes() == BODY
    assert os.listdir(tmp_path) == ["deep"]
    assert os.listdir(tmp_path / "deep") == ["m.safetensors"]


def test_a_lost_connection_goes_on_where_it_ended(site, tmp_path):
    url = site.put("/m.bin", BODY, drops=[BLOCK + 7, None, BLOCK // 2])
    assert get(url, tmp_path).sha256 == HASH
    starts = [int(text.removeprefix("bytes=").rstrip("-")) for text in site.ranges()]
    assert starts == [BLOCK + 7, BLOCK + 7 + BLOCK // 2]
    assert all(headers["If-Range"] for _, headers in site.asked if "Range" in headers)


def test_the_next_command_goes_on_too(site, tmp_path):
    url = site.put("/m.bin", BODY, drops=[BLOCK] + [0] * 10)
    with pytest.raises(
        DanqingError, match=f"the connection was lost after {BLOCK} of {len(BODY)} bytes; what came is kept"
    ):
        get(url, tmp_path)
    assert (tmp_path / "m.bin.part").stat().st_size == BLOCK
    site.pages["/m.bin"].drops.clear()
    site.asked.clear()
    assert get(url, tmp_path).sha256 == HASH
    assert site.ranges() == [f"bytes={BLOCK}-"]


def test_a_part_of_other_content_is_begun_anew(site, tmp_path):
    url = site.put("/m.bin", b"x" * len(BODY), drops=[BLOCK] + [0] * 10)
    with pytest.raises(DanqingError):
        get(url, tmp_path)
    site.put("/m.bin", BODY)
    site.asked.clear()
    assert get(url, tmp_path).sha256 == HASH
    assert site.ranges() == []


def test_a_part_that_changes_between_two_requests_is_begun_anew(site, tmp_path):
    url = site.put("/m.bin", BODY)
    (tmp_path / "m.bin.part").write_bytes(b"y" * 1000)
    (tmp_path / "m.bin.part.of").write_text(site.pages["/m.bin"].headers["ETag"])
    site.pages["/m.bin"].ranges = False  # the server sends all of it in answer to the range
    assert get(url, tmp_path).sha256 == HASH
    assert site.ranges() == ["bytes=1000-"]


def test_a_server_that_never_gets_further_is_given_up(site, tmp_path):
    url = site.put("/m.bin", BODY, drops=[BLOCK] * 20, ranges=False)
    with pytest.raises(DanqingError, match="the connection was lost"):
        get(url, tmp_path)
    assert len(site.ranges()) == 4


def test_another_range_than_asked(site, tmp_path):
    url = site.put("/m.bin", BODY, status=206, headers={"Content-Range": "bytes 5-9/10"})
    (tmp_path / "m.bin.part").write_bytes(BODY[:1000])
    (tmp_path / "m.bin.part.of").write_text(site.pages["/m.bin"].headers["ETag"])
    with pytest.raises(DanqingError, match="another range than asked"):
        get(url, tmp_path)


def test_a_connection_that_breaks_without_a_length(site, tmp_path):
    body = b"%x\r\n" % len(BODY) + BODY[:-5]  # a chunk that ends early
    url = site.put("/m.bin", body, length=False, headers={"Transfer-Encoding": "chunked"})
    with pytest.raises(DanqingError, match="the connection was lost"):
        get(url, tmp_path)


def test_without_validator_a_part_is_used_only_under_a_promised_hash(site, tmp_path):
    url = site.put("/m.bin", BODY, drops=[BLOCK], headers={"ETag": 'W/"weak"'})
    assert get(url, tmp_path).sha256 == HASH
    assert site.ranges() == []
    (tmp_path / "m.bin.part").unlink()
    site.pages["/m.bin"].drops = [BLOCK]
    assert get(url, tmp_path, sha256=HASH).sha256 == HASH
    assert site.ranges() == [f"bytes={BLOCK}-"]
    assert all("If-Range" not in headers for _, headers in site.asked)


def test_a_complete_part_is_only_checked(site, tmp_path):
    url = site.put("/m.bin", BODY)
    get(url, tmp_path)
    site.asked.clear()
    assert get(url, tmp_path).sha256 == HASH
    assert len(site.asked) == 1


def test_a_wrong_hash_is_said_and_leaves_nothing(site, tmp_path):
    url = site.put("/m.bin", BODY)
    with pytest.raises(DanqingError, match=f"SHA-256 is {HASH}, but {'0' * 64} was promised") as error:
        get(url, tmp_path, sha256="0" * 64)
    assert "\n" not in str(error.value)
    assert os.listdir(tmp_path) == []


def test_the_hubs_redirect_promises_a_hash(site, other_site, tmp_path):
    target = other_site.put("/blob", BODY)
    url = site.redirect("/m.bin", target, **{"X-Linked-Etag": f'"{"0" * 64}"'})
    with pytest.raises(DanqingError, match="was promised"):
        get(url, tmp_path)
    site.redirect("/m.bin", target, **{"X-Linked-Etag": f'"{HASH}"'})
    assert get(url, tmp_path).name == "m.bin"


@pytest.mark.parametrize("size", [1, len(BODY) + 1])
def test_another_size_than_promised(site, tmp_path, size):
    url = site.put("/m.bin", BODY)
    with pytest.raises(DanqingError, match=f"{len(BODY)} bytes are offered, but {size} were promised"):
        get(url, tmp_path, size=size)
    assert os.listdir(tmp_path) == []


def test_without_a_length_the_promised_size_is_held(site, tmp_path):
    url = site.put("/m.bin", BODY, length=False)
    assert get(url, tmp_path).sha256 == HASH
    with pytest.raises(DanqingError, match=f"{len(BODY)} bytes came, but 5 were promised; what came is removed"):
        get(site.put("/n.bin", BODY, length=False), tmp_path, size=5)
    assert not (tmp_path / "n.bin.part").exists()


@pytest.mark.parametrize(
    ("status", "words"),
    [
        (401, "access is refused .401.: it needs a token"),
        (403, "needs a token"),
        (404, "not found"),
        (418, "answers 418"),
    ],
)
def test_what_the_server_refuses(site, tmp_path, status, words):
    url = site.put("/m.bin", b"", status=status)
    with pytest.raises(Refused, match=words) as error:
        get(url, tmp_path)
    assert error.value.status == status
    assert str(error.value).startswith(url)
    assert len(site.asked) == 1
    assert os.listdir(tmp_path) == []


def test_tokens(site, tmp_path):
    url = site.put("/m.bin", BODY, token="secret")
    assert get(url, tmp_path, token="secret").sha256 == HASH
    with pytest.raises(Refused, match="the token does not open it") as error:
        get(url, tmp_path, token="wrong")
    assert "wrong" not in str(error.value)
    site.pages["/m.bin"].headers["X-Error-Code"] = "GatedRepo"
    with pytest.raises(Refused, match=r"gated .401.: accept its licence"):
        get(url, tmp_path)


def test_a_token_stays_with_its_host(site, other_site, tmp_path):
    site.put("/own.bin", BODY, token="secret")
    assert get(site.redirect("/same", "/own.bin"), tmp_path, token="secret").sha256 == HASH
    other_site.put("/m.bin", BODY)
    assert get(site.redirect("/away", f"{other_site.url}/m.bin"), tmp_path, token="secret").sha256 == HASH
    assert [headers.get("Authorization") for _, headers in other_site.asked] == [None]
    other_site.redirect("/back", f"{site.url}/own.bin")
    with pytest.raises(Refused):  # gone once, it does not come back
        get(site.redirect("/there", f"{other_site.url}/back"), tmp_path, token="secret")


def test_a_token_does_not_go_over_plain_http_to_another_machine(monkeypatch, tmp_path):
    asked = []

    def refuse(self, request, timeout):
        asked.append(request)
        raise OSError("no network here")

    monkeypatch.setattr("urllib.request.OpenerDirector.open", refuse)
    for url in ("http://example.com/m.bin", "https://example.com/m.bin"):
        with pytest.raises(DanqingError, match="no network here"):
            get(url, tmp_path, token="secret")
    carried = {request.full_url: request.get_header("Authorization") for request in asked}
    assert carried == {"http://example.com/m.bin": None, "https://example.com/m.bin": "Bearer secret"}


@pytest.mark.parametrize("target", ["file:///etc/passwd", "ftp://127.0.0.1/x"])
def test_redirects_lead_only_to_the_web(site, tmp_path, target):
    with pytest.raises(DanqingError, match="safe to follow"):
        get(site.redirect("/m.bin", target), tmp_path)


def test_redirects_do_not_leave_encryption():
    request = urllib.request.Request("https://example.com/a")
    with pytest.raises(DanqingError, match="safe to follow"):
        transfer._Redirects().redirect_request(request, io.BytesIO(), 302, "", {}, "http://example.com/a")


def test_the_name_may_come_from_where_a_redirect_leads(site, tmp_path):
    site.put("/files/ink.safetensors", BODY)
    assert get(site.redirect("/download?id=3", "/files/ink.safetensors"), tmp_path).name == "ink.safetensors"
    assert get(site.redirect("/own.pt", "/files/ink.safetensors"), tmp_path).name == "own.pt"


def test_redirects_in_a_circle_end(site, tmp_path):
    with pytest.raises(DanqingError, match="lead nowhere"):
        get(site.redirect("/m.bin", "/m.bin"), tmp_path)


def test_a_web_page_is_no_file(site, tmp_path):
    url = site.put("/login", b"<html>", headers={"Content-Type": "text/html; charset=utf-8"})
    with pytest.raises(DanqingError, match="a web page, not a file"):
        get(url, tmp_path)
    assert os.listdir(tmp_path) == []


def test_a_busy_server_is_asked_again(site, tmp_path):
    url = site.put("/m.bin", BODY, failures=3)
    assert get(url, tmp_path).sha256 == HASH
    site.pages["/m.bin"].failures = 9
    with pytest.raises(DanqingError, match="the server answers 503"):
        get(url, tmp_path)


def test_nobody_there(tmp_path):
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{unused.getsockname()[1]}/m.bin"
        with pytest.raises(DanqingError, match="cannot be reached") as error:
            get(url, tmp_path)
    assert "\n" not in str(error.value)
    assert "kept" not in str(error.value)


@pytest.mark.parametrize(
    "url", ["ftp://x/y", "http://", "http://127.0.0.1:99999/x", "https:///x", "http://127.0.0.1:1/a b"]
)
def test_what_is_no_address(tmp_path, url):
    with pytest.raises(DanqingError, match="not a web address"):
        get(url, tmp_path)


def test_a_disk_with_too_little_room_is_said_before_anything_comes(site, tmp_path, monkeypatch):
    url = site.put("/m.bin", BODY)
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(transfer.shutil, "disk_usage", lambda _: usage(10, 5, 5))
    with pytest.raises(DanqingError, match=r"the disk is full: 0.00 GB to come"):
        get(url, tmp_path)
    assert os.listdir(tmp_path) == []


def test_a_disk_that_fills_keeps_what_came(site, tmp_path, monkeypatch):
    url = site.put("/m.bin", BODY)

    class Small(io.FileIO):
        def write(self, block):
            if self.tell() >= BLOCK:
                raise OSError(errno.ENOSPC, "No space left on device")
            return super().write(block)

    with monkeypatch.context() as patch:
        patch.setattr(transfer, "open", Small, raising=False)
        with pytest.raises(DanqingError, match="the disk is full; what came is kept, the same command goes on"):
            get(url, tmp_path)
    assert (tmp_path / "m.bin.part").stat().st_size == BLOCK
    assert get(url, tmp_path).sha256 == HASH
    assert site.ranges() == [f"bytes={BLOCK}-"]


@pytest.mark.parametrize(
    ("header", "name"),
    [
        ('attachment; filename="m.safetensors"', "m.safetensors"),
        ('attachment; filename="../../etc/passwd"', "passwd"),
        ('attachment; filename="..\\\\..\\\\evil.pt"', "evil.pt"),
        ("attachment; filename*=UTF-8''%E4%B8%B9%2F%E9%9D%92.ckpt", "青.ckpt"),
        ('attachment; filename=".."', None),
        ('attachment; filename="丹青.pt"', "丹青.pt"),
        (None, "page"),
    ],
)
def test_the_servers_name_is_made_safe(site, tmp_path, header, name):
    headers = {"Content-Disposition": header.encode().decode("latin-1")} if header else {}
    url = site.put("/a/page", BODY, headers=headers)
    if name is None:
        with pytest.raises(DanqingError, match="tells no file name"):
            get(url, tmp_path / "in")
        return
    assert get(url, tmp_path / "in").name == name
    assert os.listdir(tmp_path) == ["in"]
    assert sorted(os.listdir(tmp_path / "in")) == [f"{name}.part", f"{name}.part.of"]


@pytest.mark.parametrize(
    ("foreign", "name"),
    [
        ("a/b\\c.pt", "c.pt"),
        ("..", ""),
        (".hidden.pt", "hidden.pt"),
        ("a\x00b\n:c?.pt", "a_b__c_.pt"),
        ("con.pt", "_con.pt"),
        ("NUL", "_NUL"),
        ("x" * 300 + ".safetensors", "x" * 188 + ".safetensors"),
        ("丹" * 100 + ".pt", "丹" * 65 + ".pt"),
        ("a." + "x" * 300, "a." + "x" * 198),
        ("模型 v1.5.ckpt. ", "模型 v1.5.ckpt"),
    ],
)
def test_safe_names(foreign, name):
    assert safe_name(foreign) == name


def test_settling_across_disks(tmp_path, monkeypatch):
    part = tmp_path / "a" / "m.part"
    part.parent.mkdir()
    part.write_bytes(b"abc")
    rename = os.rename

    def across(old, new, **_):
        if os.path.dirname(old) != os.path.dirname(new):
            raise OSError(errno.EXDEV, "Invalid cross-device link")
        rename(old, new)

    monkeypatch.setattr(os, "rename", across)
    settle(part, tmp_path / "b" / "m.bin")
    assert (tmp_path / "b" / "m.bin").read_bytes() == b"abc"
    assert not part.exists()


def test_json(site):
    assert fetch_json(site.put("/api", b'{"a": [1]}', failures=2), pause=0) == {"a": [1]}
    with pytest.raises(DanqingError, match="the answer is not JSON"):
        fetch_json(site.put("/page", b"<html>"), pause=0)
    with pytest.raises(DanqingError, match="503"):
        fetch_json(site.put("/busy", b"{}", failures=9), pause=0)
    with pytest.raises(Refused, match="not found"):
        fetch_json(site.url + "/absent", pause=0)
