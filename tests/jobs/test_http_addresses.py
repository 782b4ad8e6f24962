"""HttpJob cannot be made to reach into a private network, nor to hold a node's memory or time."""

from __future__ import annotations

import contextlib
import gzip
import ipaddress
import ssl
import time
import tracemalloc
from pathlib import Path
from typing import Any

import pytest

from pgscheduler.jobs import HttpBlockedError, HttpCallError, HttpJob
from pgscheduler.jobs._addresses import Guard, is_public

CERTIFICATE = Path(__file__).with_name("shop.test.pem")  # of a shop.test that signed itself, with its key


def allowed(*servers: Any, **policy: Any) -> HttpJob:
    return HttpJob(allow=[server.place for server in servers], **policy)


# --- addresses ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "address",
    [
        "93.184.215.14", "1.1.1.1", "168.63.129.17", "192.0.1.1",
        "2606:4700:4700::1111", "2001:200::1", "2a00::1", "3ffe::1", "::ffff:1.1.1.1",
    ],
)  # fmt: skip
def test_public(address: str) -> None:
    """Addresses of the open internet are public."""
    assert is_public(ipaddress.ip_address(address))


@pytest.mark.parametrize(
    "address",
    [
        "0.0.0.0", "0.1.2.3", "10.0.0.1", "100.64.0.1", "127.0.0.1", "127.255.255.255", "169.254.169.254", "172.16.0.1",
        "172.31.255.255", "192.0.0.1", "192.0.2.1", "192.88.99.1", "192.168.1.1", "198.18.0.1", "203.0.113.1",
        "168.63.129.16", "192.0.0.0", "192.0.0.8", "192.0.0.9", "192.0.0.192", "192.0.0.255",
        "224.0.0.1", "239.255.255.255", "240.0.0.1", "255.255.255.255",
        "::", "::1", "::127.0.0.1", "::ffff:10.0.0.1", "::ffff:169.254.169.254", "64:ff9b::7f00:1", "64:ff9b:1::1",
        "100::1", "2001::1", "2001:db8::1", "2002:7f00:1::", "fc00::1", "fd12::1", "fe80::1", "fec0::1", "ff02::1",
        "::ffff:0:10.0.0.1", "100:0:0:1::1", "2001:2::1", "2001:10::1", "2001:1ff::1", "3fff::1", "3fff:fff::1",
        "4000::1", "5f00::1", "fd00:ec2::254", "::ffff:168.63.129.16", "::ffff:192.0.0.192", "2002:a9fe:a9fe::",
    ],
)  # fmt: skip
def test_not_public(address: str) -> None:
    """Private, local, reserved, multicast and translating addresses are not, in any of their spellings."""
    assert not is_public(ipaddress.ip_address(address))


@pytest.mark.parametrize(
    "host",
    [
        "127.0.0.1", "127.1", "0x7f.1", "2130706433", "localhost", "LOCALHOST",
        "[::ffff:127.0.0.1]", "[::1]", "0",
    ],
)  # fmt: skip
def test_loopback_is_blocked_however_it_is_spelt(web: Any, run: Any, host: str) -> None:
    """A URL that means this machine is refused in every spelling, and no request arrives."""
    server = web()
    with pytest.raises(HttpBlockedError, match=r"blocked.*not allowed"):
        run(HttpJob(ports=[server.port]), url=f"http://{host}:{server.port}/", method="GET")
    assert server.seen == []


def test_each_address_of_a_name_is_checked(web: Any, run: Any, names: Any) -> None:
    """A name with one private address among public ones is refused."""
    server = web()
    names["two.test"] = [["1.1.1.1", "127.0.0.1"]]
    with pytest.raises(HttpBlockedError, match=r"two\.test.*127\.0\.0\.1"):
        run(HttpJob(ports=[server.port]), url=f"http://two.test:{server.port}/", method="GET")
    assert server.seen == []


def test_a_name_that_changes_its_address(web: Any, run: Any, names: Any) -> None:
    """A name is asked for once: the connection goes to the address that was checked, with the name as its host."""
    server = web()
    names["change.test"] = [["127.0.0.1"], ["169.254.169.254"]]

    run(HttpJob(allow=[server.place]), url=f"http://change.test:{server.port}/", method="GET")

    assert names["asked"] == ["change.test"]
    assert [seen.headers["host"] for seen in server.seen] == [f"change.test:{server.port}"]


def test_the_next_address_is_tried(web: Any, run: Any, names: Any) -> None:
    """If an address of a name does not answer, the next one is connected to."""
    server = web()
    names["two.test"] = [["127.0.0.3", "127.0.0.1"]]
    job = HttpJob(allow=[f"two.test:{server.port}"])
    assert run(job, url=f"http://two.test:{server.port}/", method="GET")["status"] == 200


PUBLIC = ipaddress.ip_address("1.1.1.1")
INSIDE = ipaddress.ip_address("10.1.2.3")
SIX = ipaddress.ip_address("fd00::1")


@pytest.mark.parametrize(
    ("allow", "host", "address", "port", "good"),
    [
        ([], "x.test", PUBLIC, 443, True),
        ([], "x.test", PUBLIC, 8080, False),
        (["x.test"], "x.test", PUBLIC, 8080, True),
        (["x.test:8080"], "X.test.", PUBLIC, 8080, True),
        (["x.test:8080"], "x.test", PUBLIC, 8081, False),
        (["x.test"], "y.x.test", INSIDE, 80, False),
        (["x.test"], "x.test", INSIDE, 80, True),
        (["10.0.0.0/8"], "x.test", INSIDE, 1234, True),
        (["10.0.0.0/8:80"], "x.test", INSIDE, 1234, False),
        (["10.1.2.3"], "10.1.2.3", INSIDE, 80, True),
        (["10.1.2.4"], "10.1.2.3", INSIDE, 80, False),
        (["10.1.2.3:81"], "10.1.2.3", INSIDE, 80, False),
        (["fd00::/8"], "x.test", SIX, 80, True),
        (["[fd00::1]:80"], "x.test", SIX, 80, True),
        (["[fd00::1]:80"], "x.test", SIX, 81, False),
        (["0.0.0.0/0"], "x.test", SIX, 80, False),
    ],
)
def test_allow_list(allow: list[str], host: str, address: Any, port: int, good: bool) -> None:
    """An entry opens what it names and nothing beside it."""
    guard = Guard(allow, [80, 443])
    with contextlib.nullcontext() if good else pytest.raises(HttpBlockedError):
        assert guard.check(host, [address], port) == [address]


# --- redirects ---------------------------------------------------------------------------------------


def hops(count: int) -> Any:
    """Redirects `count` times, then answers."""

    def answer(request: Any) -> None:
        step = int(request.path.rpartition("/")[2] or 0)
        if step < count:
            request.reply(302, location=f"/{step + 1}")
        else:
            request.reply(200, b"there")

    return answer


def test_three_redirects(web: Any, run: Any) -> None:
    """Three redirects are followed, and the result names the last place."""
    server = web(hops(3))
    result = run(allowed(server), url=f"{server.url}/0", method="GET")
    assert (result["body"], result["url"]) == ("there", f"{server.url}/3")


def test_four_redirects(web: Any, run: Any) -> None:
    """The fourth redirect is not followed."""
    server = web(hops(4))
    with pytest.raises(HttpCallError, match="More than 3 redirects"):
        run(allowed(server), url=f"{server.url}/0", method="GET")
    assert len(server.seen) == 4


@pytest.mark.parametrize(
    "target",
    [
        "http://169.254.169.254/latest/meta-data", "http://[::1]:{other}/", "//localhost:{other}/", "http://127.1:{other}/",
        "file:///etc/passwd", "ftp://example.org/", "http://u:p@127.0.0.1:{port}/",
    ],
)  # fmt: skip
def test_redirects_are_checked(web: Any, run: Any, target: str) -> None:
    """A redirect goes through the same check as the first URL."""
    other = web()
    server = web(lambda r: r.reply(302, location=target.format(other=other.port, port=server.port)))
    with pytest.raises((HttpBlockedError, HttpCallError), match=r"blocked|not a URL"):
        run(allowed(server), url=server.url, method="GET")
    assert (len(server.seen), other.seen) == (1, [])


def test_secrets_do_not_follow_to_another_origin(web: Any, run: Any) -> None:
    """A redirect elsewhere, and from there back, carries no header that may be secret, nor the node's credentials."""
    other = web(lambda r: r.reply(302, location=f"{server.url}/back"))
    server = web(
        lambda r: r.reply(200) if r.path == "/back" else r.reply(302, location=f"{other.url}/elsewhere")
    )
    job = allowed(server, other, credentials={server.url: {"X-Node": "mine"}})

    run(job, url=server.url, method="GET", headers={"Authorization": "me", "X-Own": "me", "Accept": "text/x"})

    first, back = server.seen
    (elsewhere,) = other.seen
    assert (first.headers["authorization"], first.headers["x-node"]) == ("me", "mine")
    assert {"authorization", "x-own", "x-node"} & elsewhere.headers.keys() == set()
    assert elsewhere.headers["accept"] == "text/x"
    assert {"authorization", "x-own"} & back.headers.keys() == set()


@pytest.mark.parametrize(
    ("status", "method", "then", "body"),
    [
        (301, "POST", "GET", ""),
        (302, "POST", "GET", ""),
        (303, "PUT", "GET", ""),
        (302, "PUT", "PUT", "data"),
        (307, "POST", "POST", "data"),
        (308, "PATCH", "PATCH", "data"),
    ],
)
def test_method_after_a_redirect(web: Any, run: Any, status: int, method: str, then: str, body: str) -> None:
    """A redirect keeps the method and data, or makes it a GET without, as its status says."""
    server = web(lambda r: r.reply(200) if r.path == "/b" else r.reply(status, location="/b"))
    run(allowed(server), url=f"{server.url}/a", method=method, data="data")
    assert [(s.method, s.body) for s in server.seen] == [(method, "data"), (then, body)]


def test_data_does_not_follow_to_another_origin(web: Any, run: Any) -> None:
    """A redirect that would carry the data elsewhere is refused."""
    other = web()
    server = web(lambda r: r.reply(307, location=other.url))
    with pytest.raises(HttpCallError, match="data to another origin"):
        run(allowed(server, other), url=server.url, method="POST", data={"card": 1})
    assert other.seen == []


# --- limits ------------------------------------------------------------------------------------------


def test_deadline_is_for_everything(web: Any, run: Any) -> None:
    """A server that sends a byte now and then does not get past the timeout."""

    def drip(request: Any) -> None:
        request.send_response(200)
        request.end_headers()
        while not server.closing.wait(0.02):
            request.wfile.write(b".")

    server = web(drip)
    began = time.monotonic()
    with pytest.raises(HttpCallError, match=r"No answer from http://.* within 0\.5 s"):
        run(allowed(server), url=server.url, method="GET", timeout=0.5)
    assert time.monotonic() - began < 5


def test_deadline_holds_for_redirects_together(web: Any, run: Any) -> None:
    """Redirects share one timeout, the node's if the job names none."""

    def slowly(request: Any) -> None:
        server.closing.wait(0.3)
        request.reply(302, location="/")

    server = web(slowly)
    with pytest.raises(HttpCallError, match=r"within 0\.5 s"):
        run(allowed(server, timeout=0.5), url=server.url, method="GET")


def test_default_timeout() -> None:
    """Without a timeout of its own a request has 30 seconds."""
    assert HttpJob()._timeout == 30


@pytest.mark.parametrize("chunked", [True, False])
def test_size_limit(web: Any, run: Any, chunked: bool) -> None:
    """An answer that is too long fails the run as soon as it is, announced or endless."""

    def endless(request: Any) -> None:
        request.send_response(200)
        if not chunked:
            request.send_header("Content-Length", str(10**10))
        request.end_headers()
        while not server.closing.is_set():
            request.wfile.write(b"x" * 10_000)

    server = web(endless)
    with pytest.raises(HttpCallError, match=r"larger than 100000 bytes \(max_response_bytes\)"):
        run(allowed(server, max_response_bytes=100_000), url=server.url, method="GET")


def test_what_is_small_packed_and_huge_unpacked(web: Any, run: Any) -> None:
    """An answer is unpacked no further than the limit: a bomb costs no memory."""
    bomb = gzip.compress(bytes(200_000_000), 9)
    server = web(lambda r: r.reply(200, bomb, content_encoding="gzip"))
    job = allowed(server, max_response_bytes=2_000_000)
    tracemalloc.start()
    try:
        with pytest.raises(HttpCallError, match="larger than 2000000 bytes"):
            run(job, url=server.url, method="GET")
        assert tracemalloc.get_traced_memory()[1] < 20_000_000
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    ("coding", "sent", "body"),
    [
        ("gzip", gzip.compress(b"packed", mtime=0), "packed"),
        ("identity", b"plain", "plain"),
        ("br", b"12345", "<5 bytes of br>"),
    ],
)
def test_packed_answers(web: Any, run: Any, coding: str, sent: bytes, body: str) -> None:
    """What a server packs although nobody asked is unpacked if that can be bounded, and described if not."""
    server = web(lambda r: r.reply(200, sent, content_encoding=coding))
    result = run(allowed(server), url=server.url, method="GET")
    assert (result["body"], result["bytes"]) == (body, len(sent))


def test_packed_wrongly(web: Any, run: Any) -> None:
    """What claims to be packed and is not fails the run."""
    server = web(lambda r: r.reply(200, b"nothing of the kind", content_encoding="gzip"))
    with pytest.raises(HttpCallError, match="not gzip"):
        run(allowed(server), url=server.url, method="GET")


def test_nonsense_instead_of_http(web: Any, run: Any) -> None:
    """A server that does not speak HTTP fails the run; what it said is not repeated."""
    server = web(lambda r: r.wfile.write(b"hunter2\r\n\r\n"))
    with pytest.raises(HttpCallError, match=r"No answer from .*RemoteProtocolError") as caught:
        run(allowed(server), url=server.url, method="GET")
    assert "hunter2" not in str(caught.value)


# --- TLS ---------------------------------------------------------------------------------------------


def test_certificates_are_checked(web: Any, run: Any, names: Any) -> None:
    """A certificate that nobody vouches for fails the run, and no request is sent."""
    server = web(tls=True)
    names["shop.test"] = [["127.0.0.1"]]
    with pytest.raises(HttpCallError, match="CERTIFICATE_VERIFY_FAILED"):
        run(allowed(server), url=f"https://shop.test:{server.port}/", method="GET")
    assert server.seen == []


def test_the_name_of_the_url_is_checked(web: Any, run: Any, names: Any) -> None:
    """With an authority of one's own the certificate must be for the URL's host, though an address is dialled."""
    server = web(tls=True)
    names["shop.test"] = names["other.test"] = [["127.0.0.1"]]
    job = allowed(server, tls=ssl.create_default_context(cafile=str(CERTIFICATE)))
    assert run(job, url=f"https://shop.test:{server.port}/", method="GET")["status"] == 200
    with pytest.raises(HttpCallError, match="CERTIFICATE_VERIFY_FAILED"):
        run(job, url=f"https://other.test:{server.port}/", method="GET")


def test_no_way_from_https_to_http(web: Any, run: Any, names: Any) -> None:
    """A redirect that leaves TLS is refused."""
    plain = web()
    server = web(lambda r: r.reply(302, location=plain.url), tls=True)
    names["shop.test"] = [["127.0.0.1"]]
    job = allowed(server, plain, tls=ssl.create_default_context(cafile=str(CERTIFICATE)))
    with pytest.raises(HttpBlockedError, match="from https to http"):
        run(job, url=f"https://shop.test:{server.port}/", method="GET")
    assert plain.seen == []
