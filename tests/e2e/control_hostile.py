#!/usr/bin/python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""Control clients that are broken or mean: they are answered or dropped, and disturb nobody."""
import json
import os
import socket
import time

import harness

MIB = 1 << 20


def connect(d):
    s = socket.socket(socket.AF_UNIX)
    s.settimeout(harness.SOON)
    s.connect(str(d.control))
    return s


def negotiated(d):
    s = connect(d)
    s.sendall(b'{"execute":"qmp_capabilities"}\n')
    received = b""
    while received.count(b"\n") < 2:
        received += s.recv(4096)
    return s


def read_to_end(s):
    received = b""
    try:
        while data := s.recv(65536):
            received += data
    except ConnectionError:
        pass
    return received.decode(errors="replace")


def serve(t):
    return t.daemon({"vda": t.disk("a.raw", 4 * MIB)})


def alive(q):
    assert q.execute("query-status")["running"]


def assert_grown_less(d, before, limit):
    """The daemon's memory; a sanitizer keeps what was freed, so not with one."""
    grown = d.status()["rss-bytes"] - before
    assert grown < limit or harness.FACTOR > 1, f"memory grew by {grown} bytes"


def test_garbage(t):
    d = serve(t)
    with d.qmp() as q:
        for garbage in (b"GET / HTTP/1.1\r\n\r\n", b"\x00" * 1000 + b"\n", os.urandom(50000).replace(b"{", b"x") + b"\n",
                        b"\xff\xfe\n", b"]\n", b'"text"\n', b'{"execute":"quit\n', b'{"execute" "quit"}', b'{"a":]}\n',
                        b'{"execute":"\xc0\x80"}', b'{"execute":"\\u0000"}', b'{"execute":"a","execute":"quit"}'):
            s = negotiated(d)
            s.sendall(garbage)
            answer = s.recv(65536).decode()
            assert '"GenericError"' in answer and "JSON" in answer, (garbage[:50], answer)
            # The same connection is of use again.
            s.sendall(b'\n{"execute":"query-status","id":"after"}')
            while '"after"' not in answer:
                answer += s.recv(65536).decode()
            s.close()
            alive(q)


def test_too_long_and_too_deep(t):
    d = serve(t)
    with d.qmp() as q:
        for text, reason in ((b'{"execute":"' + b"x" * MIB, "too long: 65536 bytes"),
                             (b'{"a":' + b"[" * 100, "too deeply: 16 levels"),
                             (b'{"a":' * 5000, "too deeply")):
            s = connect(d)
            try:
                s.sendall(text)
            except ConnectionError:
                pass  # it hangs up while we talk
            answer = read_to_end(s)
            assert reason in answer or not answer.partition("\n")[2], answer
            alive(q)
        s = connect(d)
        s.sendall(b'{"execute":"' + b"x" * 65000)  # short of the limit, and never more: it may wait
        alive(q)
        s.sendall(b"x" * 524)
        assert "too long" in read_to_end(s)


def test_half_messages_and_hasty_ends(t):
    d = serve(t)
    message = b'{"execute":"qmp_capabilities"}{"execute":"fleece-snapshot-create","arguments":{"lease":true}}'
    with d.qmp() as q:
        for length in range(len(message) + 1):
            s = connect(d)
            s.sendall(message[:length])
            s.close()
        for _ in range(200):
            connect(d).close()
        alive(q)
        harness.wait_for("no snapshot stays", lambda: q.execute("fleece-query-snapshots") == [])


def test_byte_by_byte(t):
    d = serve(t)
    s = connect(d)
    s.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1)
    for byte in b'{"execute":"qmp_capabilities"} {"execute":"query-status","id":"slow"}':
        s.sendall(bytes([byte]))
    received = ""
    while '"slow"' not in received:
        received += s.recv(4096).decode()
    assert "error" not in received, received


def test_too_many_connections(t):
    d = serve(t)
    with d.qmp() as q:
        crowd = [connect(d) for _ in range(63)]
        for s in crowd:
            assert b"QMP" in s.recv(4096)
        one_more = connect(d)
        assert "too many control connections: 64 at most" in read_to_end(one_more)
        refused = d.fleece("status", status=1)
        assert "too many control connections" in refused.stderr, refused.stderr
        alive(q)
        for s in crowd:
            s.close()
        harness.wait_for("there is room again", lambda: t.fleece("--control", d.control, "status", status=None)
                         .returncode == 0)


def test_events_that_nobody_reads(t):
    """A client that never reads is dropped at a bound; those that read get every event."""
    d = serve(t)
    deaf = [negotiated(d) for _ in range(5)]
    for s in deaf:
        s.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
    with d.qmp() as q:
        before, events = d.status()["rss-bytes"], 0
        end = time.monotonic() + 60 * harness.FACTOR
        while "does not read" not in d.log():
            for _ in range(200):
                q.execute("fleece-snapshot-create", name="x" * 64)
                q.execute("fleece-snapshot-delete", name="x" * 64)
                events += 2
            q.events.clear()
            assert time.monotonic() < end, f"{events} events and nobody dropped"
        assert_grown_less(d, before, 32 * MIB)
        alive(q)
    for s in deaf:
        s.close()


def test_replies_that_nobody_reads(t):
    """Commands without end from somebody who takes no answers: they wait, at a bound, and nobody else does."""
    d = serve(t)
    s = negotiated(d)
    s.setblocking(False)
    command = json.dumps({"execute": "fleece-query-status"}).encode() * 100
    with d.qmp() as q:
        before, end = d.status()["rss-bytes"], time.monotonic() + 5
        while time.monotonic() < end:
            try:
                s.send(command)
            except BlockingIOError:
                time.sleep(0.05)
            started = time.monotonic()
            alive(q)
            assert time.monotonic() - started < 20 * harness.FACTOR
        assert_grown_less(d, before, 16 * MIB)
    s.close()
    d.stop()


harness.main()
