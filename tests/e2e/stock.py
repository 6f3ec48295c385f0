#!/usr/bin/python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""Stock clients on live disks and on snapshots: nbdinfo, nbdcopy, nbdsh, libnbd's Python, qemu-img, qemu-io."""
import json

import harness

MIB = 1 << 20


def sparse_disk(t, name="a.raw", size=16 * MIB):
    """1 MiB of data at 0 and at 4 MiB, 64 KiB at the end; holes between."""
    disk = t.disk(name, size)
    with open(disk, "r+b") as f:
        for start, length in ((0, MIB), (4 * MIB, MIB), (size - 65536, 65536)):
            f.seek(start)
            f.write(harness.pattern(length, start))
    return disk


def test_nbdinfo(t):
    harness.need("nbdinfo")
    d = t.daemon({"vda": sparse_disk(t), "vdb": t.disk("b.raw", 3 * MIB + 512, fill=1)})
    d.fleece("snapshot", "create", "s")
    live, snapshot = (json.loads(t.run("nbdinfo", "--json", d.uri(name)).stdout)["exports"][0]
                      for name in ("vda", "vda@s"))
    for export in (live, snapshot):
        assert export["export-size"] == 16 * MIB and export["can_df"] and export["can_cache"], export
        assert "base:allocation" in export["contexts"], export
    # A snapshot is no read-only export for clients: they would not send the TRIM that releases blocks.
    assert not live["is_read_only"] and not snapshot["is_read_only"] and snapshot["can_trim"]
    assert not snapshot["can_zero"] and not snapshot["can_fast_zero"], snapshot
    assert live["can_fua"] and live["can_trim"] and live["can_zero"] and live["can_fast_zero"], live
    odd = json.loads(t.run("nbdinfo", "--json", d.uri("vdb")).stdout)["exports"][0]
    assert odd["export-size"] == 3 * MIB + 512, odd
    names = t.run("nbdinfo", "--list", d.uri("")).stdout
    assert all(f'export="{n}"' in names for n in ("vda", "vdb", "vda@s", "vdb@s")), names


def test_maps_tell_holes(t):
    harness.need("nbdinfo")
    d = t.daemon({"vda": sparse_disk(t)})
    d.fleece("snapshot", "create", "s")

    def data(name):
        extents = json.loads(t.run("nbdinfo", "--json", "--map", d.uri(name)).stdout)
        assert sum(e["length"] for e in extents) == 16 * MIB, extents
        return [(e["offset"], e["offset"] + e["length"]) for e in extents if e["type"] == 0]

    expected = [(0, MIB), (4 * MIB, 5 * MIB), (16 * MIB - 65536, 16 * MIB)]
    assert data("vda") == expected and data("vda@s") == expected
    t.run("qemu-io", "-f", "raw", "-c", f"write -P 7 {8 * MIB} {MIB}", d.uri("vda"))
    # What the snapshot holds is what it was; a block that was preserved may count as data, a block of data never as a hole.
    assert (8 * MIB, 9 * MIB) in data("vda")
    covered = data("vda@s")
    assert all(any(a <= start and end <= b for a, b in covered) for start, end in expected), covered


def test_nbdcopy_both_ways(t):
    harness.need("nbdcopy")
    disk, new = sparse_disk(t), t.disk("new.raw", 16 * MIB, fill=9)
    old = disk.read_bytes()
    d = t.daemon({"vda": disk})
    d.fleece("snapshot", "create", "s")
    t.run("nbdcopy", "--flush", new, d.uri("vda"))
    t.run("nbdcopy", d.uri("vda@s"), t.path("s.raw"))
    t.run("nbdcopy", d.uri("vda"), t.path("live.raw"))
    refused = t.run("nbdcopy", new, d.uri("vda@s"), status=None)
    assert refused.returncode != 0, "nbdcopy wrote to a snapshot"
    d.stop()
    assert t.path("s.raw").read_bytes() == old, "the snapshot is not what the disk was"
    assert t.path("live.raw").read_bytes() == disk.read_bytes() == new.read_bytes()


def test_nbdsh(t):
    harness.need("nbdsh")
    d = t.daemon({"vda": t.disk("a.raw", 4 * MIB, fill=3)})
    d.fleece("snapshot", "create", "s")
    said = t.run("nbdsh", "-u", d.uri("vda"), "-c", """
before = h.pread(8192, 12288)
h.pwrite(b"x" * 1000, 4000)
h.pwrite(b"y" * 512, 8192, nbd.CMD_FLAG_FUA)
assert h.pread(1000, 4000) == b"x" * 1000 and h.pread(512, 8192) == b"y" * 512
h.zero(4096, 12288)
h.zero(4096, 16384, nbd.CMD_FLAG_NO_HOLE)
assert h.pread(8192, 12288) == bytes(8192) != before
h.trim(65536, 1048576)
h.cache(65536, 0)
h.flush()
for call in (lambda: h.pwrite(b"z", h.get_size()), lambda: h.pread(2, h.get_size() - 1)):
    h.set_strict_mode(0)
    try:
        call()
    except nbd.Error as error:
        print("refused", error.errno)
print("fine")
""").stdout
    assert said.splitlines() == ["refused ENOSPC", "refused EINVAL", "fine"], said
    t.run("nbdsh", "-u", d.uri("vda@s"), "-c", "open(r'%s', 'wb').write(h.pread(4 << 20, 0))" % t.path("s.raw"))
    assert t.path("s.raw").read_bytes() == t.disk("old.raw", 4 * MIB, fill=3).read_bytes()


def test_libnbd_pipelining(t):
    """64 commands in flight on each of several connections, answered out of order, all right."""
    nbd = __import__("nbd")
    d = t.daemon({"vda": t.disk("a.raw", 8 * MIB)})
    connections = []
    for _ in range(4):
        h = nbd.NBD()
        h.connect_uri(d.uri("vda"))
        assert h.can_multi_conn()
        connections.append(h)
    blocks = {i: harness.pattern(8192, i) for i in range(512)}
    for i, block in blocks.items():
        h = connections[i % 4]
        while h.aio_in_flight() >= 64:
            h.poll(-1)
        h.aio_pwrite(nbd.Buffer.from_bytearray(bytearray(block)), i * 16384 + 300, completion=lambda error: 1)
    for h in connections:
        while h.aio_in_flight():
            h.poll(-1)
    for i, block in blocks.items():
        assert connections[(i + 1) % 4].pread(8192, i * 16384 + 300) == block, f"block {i}"
    for h in connections:
        h.shutdown()


def test_qemu_img(t):
    harness.need("qemu-img", "qemu-io")
    disk = sparse_disk(t)
    t.run("cp", disk, t.path("old.raw"))
    d = t.daemon({"vda": disk})
    d.fleece("snapshot", "create", "s")
    t.run("qemu-io", "-f", "raw", "-c", f"write -P 1 {MIB - 700} 70000", "-c", "write -z 4M 512k",
          "-c", "discard 0 64k", "-c", "flush", "-c", f"read -P 1 {MIB - 700} 70000", d.uri("vda"))
    t.run("qemu-img", "convert", "-n", "-O", "raw", d.uri("vda@s"), t.disk("s.raw", 16 * MIB))
    t.run("qemu-img", "convert", "-O", "qcow2", d.uri("vda@s"), t.path("s.qcow2"))
    for copy, form in (("s.raw", "raw"), ("s.qcow2", "qcow2")):
        t.run("qemu-img", "compare", "-f", "raw", "-F", form, t.path("old.raw"), t.path(copy))
    t.run("qemu-img", "compare", "-f", "raw", "-F", "raw", t.path("old.raw"), d.uri("vda@s"))
    different = t.run("qemu-img", "compare", "-f", "raw", "-F", "raw", t.path("old.raw"), d.uri("vda"), status=1)
    assert "mismatch" in different.stdout
    d.stop()


def test_tcp(t):
    harness.need("nbdcopy")
    disk = t.disk("a.raw", 4 * MIB, fill=5)
    d = t.daemon({"vda": disk}, nbd=f"tcp:127.0.0.1:{harness.free_port()}")
    t.run("nbdcopy", d.uri("vda"), t.path("copy.raw"))
    d.stop()
    assert t.path("copy.raw").read_bytes() == disk.read_bytes()


harness.main()
