#!/usr/bin/python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""Clients that vanish, stall, never read and never stop: they disturb nobody."""
import os
import resource
import signal
import socket
import struct
import time

import nbd

import harness
from nbd_raw import (BLOCK_STATUS, DISC, ESHUTDOWN, FLUSH, FUA, OPT_EXPORT_NAME, OPT_GO, OPT_LIST, OPT_SET_META,
                     OPT_STRUCTURED_REPLY, READ, WRITE, WRITE_ZEROES, Closed, Raw, command_bytes, info_data, is_served,
                     meta_data, option_bytes)

MIB = 1 << 20


def serve(t, size=64 * MIB, **options):
    return t.daemon({"vda": t.disk("a.raw", size, fill=b"\xa5" * MIB)}, **options)


def private_memory(daemon):
    """Resident bytes that are the process's own: no files, no shared memory."""
    with open(f"/proc/{daemon.pid}/status", encoding="ascii") as f:
        return int([line for line in f if line.startswith("RssAnon")][0].split()[1]) << 10


def connections(daemon):
    """Sockets that the daemon has open."""
    folder = f"/proc/{daemon.pid}/fd"
    return sum(os.readlink(f"{folder}/{fd}").startswith("socket:") for fd in os.listdir(folder)
               if os.path.lexists(f"{folder}/{fd}"))


def settled(daemon, count):
    harness.wait_for("the daemon closes what its clients left", lambda: connections(daemon) <= count)


def whole_session():
    """Everything a client says, from the first byte on: options, then commands of every kind."""
    data = struct.pack(">I", 3) + option_bytes(OPT_LIST) + option_bytes(OPT_STRUCTURED_REPLY)
    data += option_bytes(OPT_SET_META, meta_data("vda", "base:allocation")) + option_bytes(OPT_GO, info_data("vda", 1, 3))
    data += command_bytes(READ, 0, 4096, cookie=1) + command_bytes(WRITE, 4096, 64, cookie=2, payload=bytes(64))
    data += command_bytes(BLOCK_STATUS, 0, MIB, cookie=3) + command_bytes(WRITE_ZEROES, 8192, 4096, FUA, 4)
    data += command_bytes(FLUSH, cookie=5) + command_bytes(READ, 0, 2 * MIB, cookie=6)
    return data + command_bytes(DISC)


def test_cut_at_every_byte(t):
    d = serve(t)
    before = connections(d)
    session = whole_session()
    assert len(session) > 350
    for at in range(len(session) + 1):
        c = Raw(d)
        c.send(session[:at])
        if at % 3 == 1:  # the server has time to act on it
            c.receive(18)
        if at % 3 == 2:  # it meets a peer that reads no more
            c.socket.shutdown(1)
        c.close()
    assert is_served(d)
    settled(d, before)


def test_cut_write_is_not_executed(t):
    """A WRITE whose payload does not arrive whole changes nothing."""
    d = serve(t)
    for length, sent in ((4096, 4095), (4096, 0), (65_536, 65_535), (65_536, 4096), (512, 100)):
        with Raw(d) as c:
            c.go()
            c.send(command_bytes(WRITE, 0, length, payload=b"w" * sent))
    with Raw(d) as c:
        c.go()
        assert c.read(0, 65_536) == b"\xa5" * 65_536


def test_vanish_with_writes_in_flight(t):
    """C14: what a new connection reads first does not change under it any more."""
    d = serve(t)
    for i in range(60):
        c = Raw(d)
        c.go()
        fill = bytes([i + 1]) * 65_536
        c.send(b"".join(command_bytes(WRITE, n * 65_536, 65_536, cookie=n, payload=fill) for n in range(3)))
        if i % 2:
            c.socket.shutdown(2)
        c.close()
        with Raw(d) as new:
            new.go()
            first = new.read(0, 3 * 65_536)
            assert new.command(WRITE, 0, 4096, payload=b"\xee" * 4096)[0] == 0
            time.sleep(0.002)
            again = new.read(0, 3 * 65_536)
            assert again == b"\xee" * 4096 + first[4096:], i


def test_four_readers_that_never_read(t):
    """Four clients with sixteen READs of 16 MiB each never take a reply: the cost is bounded, others are served."""
    d = serve(t)
    assert is_served(d)
    before = private_memory(d)
    stalled = [Raw(d).go(structured=bool(i % 2)) for i in range(4)]
    for c in stalled:
        c.send(b"".join(command_bytes(READ, 0, 16 * MIB, cookie=i) for i in range(16)))
    time.sleep(0.5)
    assert is_served(d)
    grown = private_memory(d) - before
    assert grown < 24 * MIB * harness.FACTOR, grown
    for c in stalled:  # they get what they asked for when they read at last
        error, _ = c.reply(READ, 16 * MIB, 0)
        assert error == 0
        c.close()
    assert is_served(d)


def test_paused_backup_keeps_no_memory_from_others(t):
    """Eight quick readers stop taking their replies: what they had earned is given back, and when they go on they get
    everything they asked for, right."""
    size = 24 * MIB
    d = t.daemon({"vda": t.disk("a.raw", size, fill=7)})
    image = t.path("a.raw").read_bytes()
    readers = []
    for i in range(8):
        c = Raw(d).go(structured=i != 0)
        for at in range(0, size, 4 * MIB):  # earns a window
            assert c.read(at, 4 * MIB) == image[at:at + 4 * MIB]
        asked = [((k * 37 + i) * 65_536 % (size - MIB), (65_536, 200_000, MIB, 4096, 300_000)[k % 5]) for k in range(100)]
        c.send(b"".join(command_bytes(READ, offset, length, cookie=k) for k, (offset, length) in enumerate(asked)))
        readers.append((c, asked))
    buffers = lambda: d.status()["nbd-server"]["buffer-bytes"]
    time.sleep(0.5)
    full = buffers()
    harness.wait_for("what they had earned is given back", lambda: buffers() < 5 * MIB, pause=0.1)
    assert is_served(d)
    print(f"buffers: {full / MIB:.1f} MiB when they stopped, {buffers() / MIB:.1f} MiB a while later", flush=True)
    for c, asked in readers:
        got = {k: bytearray(length) for k, (_, length) in enumerate(asked)}
        left = set(got)
        while left:
            magic, = c.unpack(">I")
            if magic == 0x67446698:
                error, k = c.unpack(">IQ")
                assert error == 0
                got[k][:] = c.receive(asked[k][1])
                left.remove(k)
                continue
            flags, what, k, length = c.unpack(">HHQI")
            assert magic == 0x668E33EF and what in (0, 1), (hex(magic), what)
            data = c.receive(length)
            if what:
                at = struct.unpack(">Q", data[:8])[0] - asked[k][0]
                got[k][at:at + length - 8] = data[8:]
            if flags & 1:
                left.remove(k)
        for k, (offset, length) in enumerate(asked):
            assert got[k] == image[offset:offset + length], k
        c.close()


def test_senders_that_never_read(t):
    """Clients that only send: small commands without end, and writes."""
    d = serve(t)
    before = private_memory(d)
    flood = [Raw(d).go() for _ in range(4)]
    batch = b"".join(command_bytes(READ, 0, 512, cookie=i) for i in range(1000))
    for c in flood:
        c.socket.settimeout(1)
        try:
            for _ in range(1000):
                c.send(batch)
            raise AssertionError("the server reads without end from a client that takes no reply")
        except TimeoutError:
            pass
    assert is_served(d)
    assert private_memory(d) - before < 24 * MIB * harness.FACTOR
    for c in flood:
        c.close()


def test_half_a_write_for_ever(t):
    d = serve(t)
    stalled = []
    for i in range(20):
        c = Raw(d).go()
        c.send(command_bytes(WRITE, 0, MIB, payload=bytes(100_000)) if i % 2 else command_bytes(READ)[:20])
        stalled.append(c)
    assert is_served(d)
    for c in stalled:
        c.close()


def test_many_that_stop_leave_room_for_the_next(t):
    """Each reads well for a while, so that it may borrow memory, and then takes no more of its replies."""
    d = t.daemon({"vda": ",driver=null,size=64M"})
    stopped = []
    for _ in range(60):
        h = nbd.NBD()
        h.connect_uri(d.uri("vda"))
        start = time.monotonic()
        for at in range(0, 13 * MIB, MIB):
            h.pread(MIB, at)
        assert time.monotonic() - start < 10, f"client {len(stopped)} waited for those that stopped"
        for k in range(30):
            h.aio_pread(nbd.Buffer(256 << 10), k << 18)
        stopped.append(h)


def test_stop_with_clients_in_every_phase(t):
    d = serve(t)
    everybody = [Raw(d) for _ in range(6)]
    everybody[1].greet()
    everybody[2].greet().send(option_bytes(OPT_GO, length=50))
    everybody[3].go()
    everybody[4].go().send(command_bytes(WRITE, 0, MIB, payload=bytes(1000)))
    everybody[5].go().send(b"".join(command_bytes(READ, 0, 16 * MIB, cookie=i) for i in range(4)))
    started = time.monotonic()
    d.stop()
    assert time.monotonic() - started < 20 * harness.FACTOR  # and does not wait for them
    for c in everybody:
        c.close()


def errors_of_a_stop(t):
    """What the replies say to a client with twenty long READs under way when the daemon is told to stop."""
    d, errors = serve(t), []
    with Raw(d) as c:
        c.go(structured=False)
        with d.qmp() as watcher:
            c.send(b"".join(command_bytes(READ, 0, 4 * MIB, cookie=i) for i in range(20)))
            assert c.socket.recv(1, socket.MSG_PEEK)  # the first one has begun
            time.sleep(0.3)
            d.process.send_signal(signal.SIGTERM)
            watcher.event("SHUTDOWN")
        time.sleep(0.2)
        try:
            for i in range(20):
                errors.append(c.reply(READ, 4 * MIB, i)[0])
        except Closed:
            pass
    d.wait()
    t.daemons.clear()
    return errors


def test_stop_answers_eshutdown(t):
    """Commands that the server had not begun when it was told to stop."""
    for _ in range(8):  # it waits a second for us to take what was begun: not always enough on a busy machine
        errors = errors_of_a_stop(t)
        assert set(errors) <= {0, ESHUTDOWN} and errors == sorted(errors), errors
        if len(set(errors)) == 2:
            return
    raise AssertionError(f"never was one answered with ESHUTDOWN: {errors}")


def test_refused_addresses(t):
    t.disk("a.raw", MIB)
    for address in ("tcp:0.0.0.0:10809", "tcp:[::]:10809", "tcp:192.0.2.1:10809"):
        d = t.daemon({"vda": t.path("a.raw")}, nbd=address, wait=False)
        harness.wait_for("the daemon ends", lambda: d.process.poll() is not None)
        d.ended = True
        assert d.process.returncode == 1, d.process.returncode
        assert address in d.log() and "loopback" in d.log(), d.log()


def test_tcp(t):
    port = harness.free_port()
    d = serve(t, nbd=f"tcp:127.0.0.1:{port}")
    with Raw(d) as c:
        c.go()
        assert c.read(0, MIB) == b"\xa5" * MIB
    for _ in range(50):  # reset in mid-reply
        c = Raw(d).go()
        c.send(command_bytes(READ, 0, 8 * MIB))
        c.receive(1000)
        c.close()
    assert is_served(d)


def test_out_of_descriptors(t):
    """A daemon without descriptors left serves those it has, and the next ones when some come back."""
    d = serve(t)
    with Raw(d) as live:
        live.go()
        used = len(os.listdir(f"/proc/{d.pid}/fd"))
        resource.prlimit(d.pid, resource.RLIMIT_NOFILE, (used + 20, used + 20))
        many = [Raw(d) for _ in range(60)]
        time.sleep(0.3)
        for _ in range(100):
            assert len(live.read(0, 4096)) == 4096
        for c in many:
            c.close()
        harness.wait_for("new clients are served again", lambda: is_served(d))


harness.main()
