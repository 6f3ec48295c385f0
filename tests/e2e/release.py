#!/usr/bin/python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""Clients of a snapshot give blocks back: by TRIM, or by reading them once. And ask where blocks are."""
import json
import os
import signal
import time

import harness
import nbd_raw

MIB, KIB = 1 << 20, 1 << 10
SIZE = 16 * MIB


def begin(t, *options):
    """A daemon, its snapshot, what the disk was; since then the guest has overwritten [4 MiB, 8 MiB)."""
    harness.need("nbdcopy", "nbdinfo")
    disk = t.disk("a.raw", SIZE, fill=1)
    old = disk.read_bytes()
    d = t.daemon({"vda": disk})
    d.fleece("snapshot", "create", "s", *options)
    h = connect(d, "vda")
    h.pwrite(harness.pattern(4 * MIB, 5), 4 * MIB)
    h.shutdown()
    assert disk_status(d)["cache-blocks"] == 1024, disk_status(d)
    return d, old


def connect(d, name, *contexts):
    h = __import__("nbd").NBD()
    for context in contexts:
        h.add_meta_context(context)
    h.connect_uri(d.uri(name))
    return h


def disk_status(d):
    return d.status()["disks"][0]


def refused(call):
    """The errno of libnbd's error, as a word."""
    try:
        call()
    except __import__("nbd").Error as error:
        return error.errno
    return "done"


def residence(d):
    """[(offset, length, set of names)...] of the snapshot s, by the control socket."""
    with d.qmp() as qmp:
        answer = qmp.execute("fleece-query-residence", snapshot="s", disk="vda")
    assert "next" not in answer, answer
    return [(e["offset"], e["length"], set(e["residence"])) for e in answer["extents"]]


def test_trim_releases(t):
    d, old = begin(t)
    h = connect(d, "vda@s")
    assert h.can_trim() and not h.is_read_only()
    assert h.get_block_size(1) == 4 * KIB, "the preferred block size is the snapshot's"
    h.trim(4 * MIB, 2 * MIB + 100)  # [2 MiB + 100, 6 MiB + 100): half unchanged, half preserved, both ends in a block
    after = disk_status(d)
    assert after["cache-blocks"] == 512 and after["blocks-released"] == 1023, after
    assert after["blocks-released-in-part"] == 2, after
    assert refused(lambda: h.pread(4 * KIB, 3 * MIB)) == "EINVAL"
    assert refused(lambda: h.pread(MIB, 5 * MIB)) == "EINVAL"
    for offset in (2 * MIB, 6 * MIB):  # the cut blocks, and all others, are as they were
        assert h.pread(4 * KIB, offset) == old[offset:offset + 4 * KIB]
    assert h.pread(8 * MIB, 8 * MIB) == old[8 * MIB:]
    # what was released is not preserved any more
    live = connect(d, "vda")
    before = disk_status(d)["blocks-preserved"]
    live.pwrite(bytes(MIB), 2 * MIB + 64 * KIB)
    live.pwrite(bytes(MIB), 4 * MIB)
    assert disk_status(d)["blocks-preserved"] == before
    h.set_strict_mode(0)
    assert refused(lambda: h.pwrite(b"x" * 512, 0)) == "EPERM" and refused(lambda: h.zero(512, 0)) == "EPERM"
    h.trim(SIZE, 0)
    assert disk_status(d)["cache-blocks"] == 0
    live.shutdown()
    h.shutdown()


def test_a_long_trim_cuts_no_block(t):
    """It goes to the disk in pieces of 32 MiB: no block is lost between two of them."""
    d = t.daemon({"vda": t.disk("a.raw", 80 * MIB)})
    d.fleece("snapshot", "create", "s")
    h = connect(d, "vda@s")
    h.trim(70 * MIB, 5 * MIB + 700)
    after = disk_status(d)
    assert (after["blocks-released"], after["blocks-released-in-part"]) == (70 * 256 - 1, 2), after
    h.shutdown()


def test_trim_gives_space_of_the_cache_file_back(t):
    size = 32 * MIB
    disk = t.disk("a.raw", size, fill=1)
    old = disk.read_bytes()
    t.path("cache").mkdir()
    d = t.daemon({"vda": disk}, "--fleece", f"ram=4M,dir={t.path('cache')},max=64M")
    d.fleece("snapshot", "create", "s")
    live, h = connect(d, "vda"), connect(d, "vda@s", "fleece:residence")
    for offset in range(0, size, MIB):
        live.pwrite(harness.pattern(MIB, offset), offset)

    def allocated():
        """Bytes of the cache file on its file system, as du counts them; it may have no name."""
        found = [os.stat(f"/proc/{d.pid}/fd/{fd}").st_blocks for fd in os.listdir(f"/proc/{d.pid}/fd")
                 if str(t.path("cache")) in os.readlink(f"/proc/{d.pid}/fd/{fd}")]
        return max(found) * 512

    before = disk_status(d)
    assert before["file-blocks"] * 4 * KIB >= 24 * MIB and allocated() >= 24 * MIB, (before, allocated())
    flags = set()
    h.block_status(size, 0, lambda name, offset, entries, error: flags.update(entries[1::2]) or 0)
    assert flags <= {3, 5} and 5 in flags, flags  # changed, in memory or in the file
    h.trim(16 * MIB, 0)
    harness.wait_for("half is punched out", lambda: allocated() <= 20 * MIB)
    assert h.pread(16 * MIB, 16 * MIB) == old[16 * MIB:]
    h.trim(16 * MIB, 16 * MIB)
    harness.wait_for("all is punched out", lambda: allocated() <= MIB)
    assert disk_status(d)["cache-blocks"] == 0
    live.shutdown()
    h.shutdown()


def test_errors_say_why(t):
    d, _ = begin(t)
    with nbd_raw.Raw(d) as raw:
        raw.go("vda@s")
        assert raw.command(nbd_raw.TRIM, 0, MIB)[0] == 0
        for kind, length, number, words in ((nbd_raw.READ, 4096, nbd_raw.EINVAL, b"were released"),
                                            (nbd_raw.WRITE_ZEROES, 4096, nbd_raw.EPERM, b"can't be written to"),
                                            (nbd_raw.READ, 33 * MIB, nbd_raw.EINVAL, b"beyond the end")):
            raw.send(nbd_raw.command_bytes(kind, 0, length))
            magic, flags, what, _, size = raw.unpack(">IHHQI")
            assert (magic, flags, what) == (nbd_raw.CHUNK_MAGIC, 1, nbd_raw.CHUNK_ERROR)
            data = raw.receive(size)
            assert int.from_bytes(data[:4], "big") == number and words in data[6:], data
            assert int.from_bytes(data[4:6], "big") == size - 6


def test_context_and_control_agree(t):
    d, _ = begin(t)
    h = connect(d, "vda@s", "base:allocation", "fleece:residence")
    h.trim(MIB, 0)
    told = {}
    h.block_status(SIZE, 0, lambda name, offset, entries, error: told.setdefault(name, (offset, list(entries))) and 0)
    assert set(told) == {"base:allocation", "fleece:residence"}, told
    offset, flat = told["fleece:residence"]
    assert offset == 0 and flat == [MIB, 16, 3 * MIB, 0, 4 * MIB, 3, 8 * MIB, 0], flat
    assert told["base:allocation"] == (0, [MIB, 0]), told
    assert residence(d) == [(0, MIB, {"released"}), (MIB, 3 * MIB, set()), (4 * MIB, 4 * MIB, {"changed", "ram"}),
                            (8 * MIB, 8 * MIB, set())]
    with d.qmp() as qmp:
        part = qmp.execute("fleece-query-residence", snapshot="s", disk="vda", offset=7 * MIB, length=2 * MIB)
        assert [(e["offset"], e["length"]) for e in part["extents"]] == [(7 * MIB, MIB), (8 * MIB, MIB)], part
        for wrong, words in (({"snapshot": "x"}, "no snapshot 'x'"), ({"disk": "vdb"}, "no disk 'vdb'"),
                             ({"offset": SIZE}, "not within"), ({"offset": MIB, "length": SIZE}, "not within")):
            try:
                qmp.execute("fleece-query-residence", **{"snapshot": "s", "disk": "vda", **wrong})
                raise AssertionError(f"{wrong} was taken")
            except harness.QmpError as error:
                assert words in error.text, error
    sums = json.loads(t.fleece("--control", d.control, "--json", "snapshot", "residence", "s", "vda").stdout)
    assert sums == {"snapshot": "s", "disk": "vda", "ram": 4 * MIB, "cache": 0, "zero": 0, "unchanged": 11 * MIB,
                    "released": MIB}, sums
    contexts = json.loads(t.run("nbdinfo", "--json", "--list", d.uri("")).stdout)["exports"]
    assert {e["export-name"]: "fleece:residence" in e["contexts"] for e in contexts} == {"vda": False, "vda@s": True}
    with nbd_raw.Raw(d) as raw:
        raw.greet()
        raw.option(nbd_raw.OPT_STRUCTURED_REPLY)
        listed = raw.option(nbd_raw.OPT_LIST_META, nbd_raw.meta_data("vda@s", "fleece:"))
        assert [data[4:] for kind, data in listed if kind == nbd_raw.REP_META] == [b"fleece:residence"], listed
    h.shutdown()


def all_is_there(t, d, old):
    t.run("nbdcopy", d.uri("vda@s"), t.path("all.raw"))
    assert t.path("all.raw").read_bytes() == old
    t.path("all.raw").unlink()


def all_is_released(d):
    harness.wait_for("all is released", lambda: residence(d) == [(0, SIZE, {"released"})])


def test_read_once(t):
    """nbdcopy, with several connections: what all of them read is released, and the cache is empty."""
    d, old = begin(t, "--read-once")
    all_is_there(t, d, old)
    all_is_released(d)
    assert disk_status(d)["cache-blocks"] == 0
    server = d.status()["nbd-server"]
    assert server["read-once-sent-bytes"] == server["read-once-released-bytes"] == SIZE, server
    assert server["read-once-forgotten-bytes"] == server["read-once-memory-bytes"] == 0, server
    assert t.run("nbdcopy", d.uri("vda@s"), "null:", status=None).returncode != 0
    with d.qmp() as qmp:
        assert qmp.execute("fleece-query-snapshots")[0]["read-once"] == "disconnect"


def test_a_connection_that_is_lost_releases_nothing(t):
    """After some of it was read: hung up, killed, and reset with replies that nobody took."""
    d, old = begin(t, "--read-once")
    h = connect(d, "vda@s")
    assert h.pread(8 * MIB, 0) == old[:8 * MIB]
    del h  # libnbd says no goodbye then
    client = t.spawn("nbdsh", "-u", d.uri("vda@s"), "-c", "import time", "-c",
                     f"h.pread(8 << 20, 4 << 20); open('{t.path('ready')}', 'w'); time.sleep(60)")
    harness.wait_for("the client has read", t.path("ready").exists)
    client.send_signal(signal.SIGKILL)
    client.wait()
    with nbd_raw.Raw(d) as raw:
        raw.go("vda@s")
        for i in range(16):
            raw.send(nbd_raw.command_bytes(nbd_raw.READ, i * MIB, MIB, cookie=i))
        raw.send(nbd_raw.command_bytes(nbd_raw.DISC))
        raw.receive(MIB)
    harness.wait_for("nobody is connected", lambda: d.status()["nbd-server"]["read-once-memory-bytes"] == 0)
    time.sleep(0.1)
    assert all("released" not in names for _, _, names in residence(d)), residence(d)
    all_is_there(t, d, old)
    all_is_released(d)


def test_read_once_eager(t):
    d, old = begin(t, "--read-once=eager")
    h = connect(d, "vda@s")
    assert h.pread(6 * KIB, 4 * MIB) == old[4 * MIB:4 * MIB + 6 * KIB]  # a block and a half
    harness.wait_for("a block is released", lambda: disk_status(d)["cache-blocks"] == 1023)
    assert h.pread(2 * KIB, 4 * MIB + 6 * KIB) == old[4 * MIB + 6 * KIB:4 * MIB + 8 * KIB]
    harness.wait_for("both are", lambda: disk_status(d)["cache-blocks"] == 1022)
    assert refused(lambda: h.pread(512, 4 * MIB)) == "EINVAL"
    assert h.pread(4 * KIB, 4 * MIB + 8 * KIB) == old[4 * MIB + 8 * KIB:4 * MIB + 12 * KIB]


harness.main()
