#!/usr/bin/python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""The commands of the NBD server: what they do, and which error a wrong one gets."""
import contextlib
import struct

import harness
from nbd_raw import (BLOCK_STATUS, CACHE, CHUNK_DATA, DF, DISC, EINVAL, ENOSPC, ENOTSUP, EOVERFLOW, EPERM, FAST_ZERO,
                     FLUSH, FUA, NO_HOLE, READ, REQ_ONE, TRIM, WRITE, WRITE_ZEROES, Raw, command_bytes, is_served)

MIB = 1 << 20
SIZE = 48 * MIB + 512


def serve(t):
    d = t.daemon({"vda": t.disk("a.raw", SIZE, fill=b"\xa5" * (4 * MIB))})
    return d


def test_reads_and_writes_of_all_sizes(t):
    d = serve(t)
    model = bytearray(t.path("a.raw").read_bytes())
    for structured in (True, False):
        with Raw(d) as c:
            c.go(structured=structured)
            assert c.size == SIZE
            for offset, length in ((0, 1), (511, 2), (4096, 4096), (100, 70_000), (SIZE - 1, 1), (SIZE - 513, 513),
                                   (12_345, 3 * MIB + 1), (0, 32 * MIB), (77, 256 << 10), (1, (256 << 10) + 1)):
                data = harness.pattern(length, offset + structured)
                assert c.command(WRITE, offset, length, payload=data)[0] == 0
                model[offset:offset + length] = data
                assert c.read(offset, length) == data, (offset, length)
            for offset in range(0, SIZE, 16 * MIB):
                length = min(16 * MIB, SIZE - offset)
                assert c.read(offset, length) == model[offset:offset + length]


def test_zero_length(t):
    d = serve(t)
    for structured in (True, False):
        with Raw(d) as c:
            c.go(structured=structured)
            for kind in (READ, WRITE, TRIM, WRITE_ZEROES, CACHE):
                if kind == TRIM and not c.flags & 1 << 5:
                    continue
                for offset in (0, 4096, SIZE):
                    assert c.command(kind, offset, 0)[0] == 0, (kind, offset)
            assert c.command(BLOCK_STATUS, 0, 0)[0] == EINVAL
            assert len(c.read(0, 512)) == 512


def test_out_of_range(t):
    d = serve(t)
    with Raw(d) as c:
        c.go()
        for offset, length in ((SIZE, 1), (SIZE - 1, 2), (SIZE + 4096, 4096), (1 << 63, 4096), ((1 << 64) - 4096, 4096),
                               ((1 << 64) - 1, 2)):
            for kind in (WRITE, WRITE_ZEROES):
                payload = bytes(length) if kind == WRITE else b""
                assert c.command(kind, offset, length, payload=payload)[0] == ENOSPC, (kind, offset)
            for kind in (READ, TRIM, CACHE, BLOCK_STATUS):
                assert c.command(kind, offset, length)[0] == EINVAL, (kind, offset)
        for kind in (TRIM, CACHE, BLOCK_STATUS, READ):
            assert c.command(kind, 0, 0xFFFFFFFF)[0] == EINVAL
        assert c.command(WRITE_ZEROES, 0, 0xFFFFFFFF)[0] == ENOSPC
        assert c.read(0, 512) == b"\xa5" * 512


def test_huge_lengths(t):
    d = t.daemon({"vda": t.disk("a.raw", 80 * MIB)})
    with Raw(d) as c:
        c.go()
        assert c.command(READ, 0, 32 * MIB + 1)[0] == EINVAL
        assert c.command(WRITE, 0, 33 * MIB, payload=bytes(33 * MIB))[0] == EINVAL
        assert len(c.read(0, 32 * MIB)) == 32 * MIB
    with Raw(d) as c:  # announced, never sent
        c.go()
        c.send(command_bytes(WRITE, 0, 0xFFFFFFFF, payload=b"x" * 100_000))
    assert is_served(d)


def test_reserved_fields_of_flush(t):
    d = serve(t)
    with Raw(d) as c:
        c.go()
        assert c.command(FLUSH)[0] == 0
        assert c.command(FLUSH, 1, 0)[0] == EINVAL
        assert c.command(FLUSH, 0, 1)[0] == EINVAL


def test_unknown_commands_and_flags(t):
    d = serve(t)
    with Raw(d) as c:
        c.go()
        for kind in (8, 9, 100, 0xFFFF):
            assert c.command(kind, 0, 512)[0] == EINVAL
        for kind in (READ, WRITE, FLUSH, TRIM, CACHE, WRITE_ZEROES, BLOCK_STATUS):
            legal = {READ: FUA | DF, WRITE_ZEROES: FUA | NO_HOLE | FAST_ZERO, BLOCK_STATUS: FUA | REQ_ONE}.get(kind, FUA)
            for bit in range(16):
                if legal & 1 << bit:
                    continue
                length = 0 if kind == FLUSH else 512
                payload = bytes(length) if kind == WRITE else b""
                assert c.command(kind, 0, length, 1 << bit, payload)[0] == EINVAL, (kind, bit)
        assert c.read(0, 512) == b"\xa5" * 512
    with Raw(d) as c:
        c.go(structured=False)
        assert not c.flags & 1 << 7
        assert c.command(READ, 0, 512, DF)[0] == EINVAL


def test_fua_on_every_command(t):
    d = serve(t)
    with Raw(d) as c:
        c.go()
        assert c.flags & 1 << 3
        assert len(c.read(0, 4096, FUA)) == 4096
        assert c.command(WRITE, 8192, 4096, FUA, b"w" * 4096)[0] == 0
        assert c.command(WRITE_ZEROES, 16384, 4096, FUA)[0] == 0
        assert c.command(FLUSH, flags=FUA)[0] == 0
        assert c.command(CACHE, 0, 4096, FUA)[0] == 0
        assert c.status(0, 4096, FUA)
        if c.flags & 1 << 5:
            assert c.command(TRIM, 32768, 4096, FUA)[0] == 0
        assert c.read(8192, 4096) == b"w" * 4096 and c.read(16384, 4096) == bytes(4096)


def test_df(t):
    d = serve(t)
    with Raw(d) as c:
        c.go()
        assert c.flags & 1 << 7
        for offset, length in ((0, 1), (0, 4096), (1, 65_535), (100, 65_536), (4 * MIB - 100, 65_536)):
            error, chunks = c.command(READ, offset, length, DF)
            assert error == 0
            (what, data), = chunks
            assert what == CHUNK_DATA and struct.unpack(">Q", data[:8])[0] == offset and len(data) == length + 8
        assert c.command(READ, 0, 65_537, DF)[0] in (0, EOVERFLOW)
        assert c.command(READ, 0, 32 * MIB, DF) == (EOVERFLOW, [])


def test_block_status(t):
    d = serve(t)
    with Raw(d) as c:
        c.go()
        for offset, length in ((0, SIZE), (1, 100), (4 * MIB - 1, 2), (SIZE - 1, 1), (3 * MIB + 7, 2 * MIB)):
            extents = c.status(offset, length)
            assert extents and all(n > 0 for n, _ in extents), extents
            assert sum(n for n, _ in extents) <= length
            one = c.status(offset, length, REQ_ONE)
            assert len(one) == 1 and one[0][0] <= length, one
        # what is said to be zero is
        at = 0
        while at < SIZE:
            for length, flags in c.status(at, SIZE - at):
                if flags & 2:
                    assert not c.read(at, min(length, MIB)).strip(b"\0"), at
                at += length
    with Raw(d) as c:
        c.go(contexts=())
        assert c.command(BLOCK_STATUS, 0, 4096)[0] == EINVAL
        assert len(c.read(0, 512)) == 512
    with Raw(d) as c:
        c.go(structured=False)
        assert c.command(BLOCK_STATUS, 0, 4096)[0] == EINVAL


def test_zeroes(t):
    d = serve(t)
    with Raw(d) as c:
        c.go()
        for flags in (0, NO_HOLE, FUA | NO_HOLE):
            assert c.command(WRITE, 0, 65_536, payload=b"\x5a" * 65_536)[0] == 0
            assert c.command(WRITE_ZEROES, 1000, 60_001, flags)[0] == 0
            assert c.read(0, 65_536) == b"\x5a" * 1000 + bytes(60_001) + b"\x5a" * (65_536 - 61_001)


def test_fast_zero_is_fast_or_refused(t):
    d = serve(t)
    with Raw(d) as c:
        c.go()
        assert c.flags & 1 << 11
        for offset, length in ((0, 65_536), (1000, 3000), (4096, 4096)):
            before = b"\x5a" * length
            assert c.command(WRITE, offset, length, payload=before)[0] == 0
            error, _ = c.command(WRITE_ZEROES, offset, length, FAST_ZERO)
            assert error in (0, ENOTSUP), error
            assert c.read(offset, length) == (before if error else bytes(length))


def test_read_only(t):
    t.disk("a.raw", SIZE, fill=b"\xa5" * MIB)
    d = t.daemon({"vda": f"{t.path('a.raw')},read-only=on"})
    with Raw(d) as c:
        c.go()
        assert c.flags & 2
        for offset in (0, SIZE + 4096):
            assert c.command(WRITE, offset, 512, payload=bytes(512))[0] == EPERM
            assert c.command(WRITE_ZEROES, offset, 512)[0] == EPERM
            assert c.command(TRIM, offset, 512)[0] == EPERM
        assert c.command(FLUSH)[0] == 0
        assert c.read(0, 512) == b"\xa5" * 512


def test_flush_covers_other_connections(t):
    d = serve(t)
    with Raw(d) as a, Raw(d) as b:
        a.go()
        b.go()
        assert a.flags & 1 << 8
        assert a.command(WRITE, 0, 4096, payload=b"m" * 4096)[0] == 0
        assert b.command(FLUSH)[0] == 0
        assert b.read(0, 4096) == b"m" * 4096


def test_pipelines(t):
    """Hundreds of commands in one send, and their replies in any order."""
    d = serve(t)
    with Raw(d) as c:
        c.go(structured=False)
        blocks = [harness.pattern(512, i) for i in range(600)]
        c.send(b"".join(command_bytes(WRITE, i * 512, 512, cookie=i, payload=b) for i, b in enumerate(blocks)))
        seen = set()
        for _ in blocks:
            magic, error, cookie = c.unpack(">IIQ")
            assert (magic, error) == (0x67446698, 0)
            seen.add(cookie)
        assert seen == set(range(600))
        c.send(b"".join(command_bytes(READ, i * 512, 512, cookie=i) for i in range(600)))
        for _ in blocks:
            magic, error, cookie = c.unpack(">IIQ")
            assert (magic, error) == (0x67446698, 0)
            assert c.receive(512) == blocks[cookie]


def test_long_simple_replies_in_a_pipeline(t):
    """Without structured replies the data of a long READ is one run of bytes, whatever else is asked for meanwhile."""
    d = serve(t)
    image = harness.pattern(8 * MIB, 3)
    with Raw(d) as c:
        c.go(structured=False)
        assert c.command(WRITE, 0, len(image), payload=image)[0] == 0
        asked = []
        for i in range(40):
            length = (512, 3 * MIB + 512, 4096, 300 << 10, 0)[i % 5]
            asked.append((READ, 512 * i, length) if length else (FLUSH, 0, 0))
        c.send(b"".join(command_bytes(*command, cookie=i) for i, command in enumerate(asked)))
        for _ in asked:
            magic, error, cookie = c.unpack(">IIQ")
            assert (magic, error) == (0x67446698, 0), hex(magic)
            kind, offset, length = asked[cookie]
            assert kind == FLUSH or c.receive(length) == image[offset:offset + length], cookie


def test_disc_answers_what_is_under_way(t):
    d = serve(t)
    with Raw(d) as c:
        c.go(structured=False)
        c.send(b"".join(command_bytes(WRITE, i * 4096, 4096, cookie=i, payload=bytes([i]) * 4096) for i in range(64)) +
               command_bytes(DISC))
        assert {c.unpack(">IIQ")[2] for _ in range(64)} == set(range(64))
        assert c.is_closed()
    with Raw(d) as c:
        c.go()
        assert c.read(63 * 4096, 4096) == bytes([63]) * 4096


def test_half_closed_client_gets_its_replies(t):
    d = serve(t)
    with Raw(d) as c:
        c.go(structured=False)
        c.send(command_bytes(READ, 0, MIB, cookie=9))
        c.socket.shutdown(1)
        assert c.reply(READ, MIB, 9)[0] == 0
        assert c.is_closed()


def test_stock_library(t):
    nbd = None
    with contextlib.suppress(ImportError):
        import nbd
    if nbd is None:
        raise harness.Skip("libnbd's Python module is not installed")
    d = serve(t)
    h = nbd.NBD()
    h.add_meta_context("base:allocation")
    h.connect_uri(d.uri("vda"))
    assert h.get_size() == SIZE and h.can_multi_conn() and h.can_df() and h.can_fua() and h.can_fast_zero()
    assert h.get_block_size(nbd.SIZE_MAXIMUM) == 32 * MIB
    h.pwrite(b"lib" * 1000, 5)
    assert h.pread(3000, 5) == b"lib" * 1000
    found = []
    h.block_status(SIZE, 0, lambda name, offset, entries, error: found.append((name, sum(entries[::2]))))
    assert found and found[0][0] == "base:allocation"
    h.flush()
    h.shutdown()


harness.main()
