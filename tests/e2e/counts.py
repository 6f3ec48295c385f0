#!/usr/bin/python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""What fleecing costs, counted exactly: blocks preserved, memory, and the disk's I/O as the kernel saw it."""
import nbd

import harness
from loop_kit import asked_of, loop_device, settle

KIB, MIB = 1 << 10, 1 << 20
BLOCK = 4 * KIB


class Counted:
    """A disk full of data, a connection to it, and the differences of counters."""

    def __init__(self, t, *options, size=64 * MIB):
        self.device = t.borrow(loop_device(t, t.disk("a.raw", size, fill=1)))
        self.daemon = t.daemon({"vda": self.device}, *options)
        settle(t)
        self.client = nbd.NBD()
        self.client.connect_uri(self.daemon.uri("vda"))
        self.last = self._now()

    def _now(self):
        status = self.daemon.status()
        disk, cache = status["disks"][0], status["cache"]
        found = {"preserved": disk["blocks-preserved"], "writes": disk["writes"], "cache": cache["bytes"],
                 "peak": cache["bytes-peak"]}
        read, written = asked_of(self.device)
        return dict(found, disk_read=read, disk_written=written)

    def write(self, *ranges):
        """Writes (offset, length)s one after the other; what they added to the counters."""
        for offset, length in ranges:
            self.client.pwrite(harness.pattern(length, offset), offset)
        now, last = self._now(), self.last
        self.last = now
        return {name: now[name] - last[name] for name in now if name not in ("cache", "peak")}

    def end(self):
        self.client.shutdown()
        self.daemon.stop()


def cost(preserved=0, writes=1, length=BLOCK):
    return {"preserved": preserved, "writes": writes, "disk_read": preserved * BLOCK, "disk_written": writes * length}


def test_nothing_outside_the_backup_window(t):
    c = Counted(t)
    assert c.write((0, BLOCK), (MIB, BLOCK)) == cost(writes=2)
    c.daemon.fleece("snapshot", "create", "s")
    c.daemon.fleece("snapshot", "delete", "s")
    assert c.write((0, BLOCK), (2 * MIB, BLOCK)) == cost(writes=2), "a snapshot that is gone still costs"
    assert c.last["cache"] == 0
    c.end()


def test_the_first_write_of_a_block_costs_one_read_and_later_ones_nothing(t):
    c = Counted(t)
    c.daemon.fleece("snapshot", "create", "s")
    assert c.write((MIB, BLOCK)) == cost(preserved=1)
    assert c.write((MIB, BLOCK)) == cost()
    assert c.write(*[(MIB, BLOCK)] * 10) == cost(writes=10)
    # A second snapshot needs the block as it is now; both live on from one copy of any other block.
    c.daemon.fleece("snapshot", "create", "s2")
    assert c.write((MIB, BLOCK), (2 * MIB, BLOCK)) == cost(preserved=2, writes=2)
    assert c.write((MIB, BLOCK), (2 * MIB, BLOCK)) == cost(writes=2)
    # A long write reads what is missing of its blocks, and no more.
    assert c.write((MIB, 16 * BLOCK)) == cost(preserved=15, length=16 * BLOCK)
    c.end()


def test_a_partial_write_preserves_the_whole_block_once(t):
    c = Counted(t)
    c.daemon.fleece("snapshot", "create", "s")
    found = c.write((MIB + 512, 512), (MIB + 1024, 512), (MIB, 512))
    assert found["preserved"] == 1, found
    found = c.write((2 * MIB - 512, 1024))
    assert found["preserved"] == 2, found
    old = nbd.NBD()
    old.connect_uri(c.daemon.uri("vda@s"))
    assert old.pread(BLOCK, MIB) == (harness.pattern(MIB, f"1-{MIB}"))[:BLOCK]
    old.shutdown()
    c.end()


def test_only_what_the_guest_writes_passes_through_the_cache(t):
    """A reader of the whole snapshot adds nothing to it."""
    c = Counted(t)
    c.daemon.fleece("snapshot", "create", "s")
    c.write(*[(i * MIB, BLOCK) for i in range(10)])
    before = c.last["cache"]
    t.run("nbdcopy", c.daemon.uri("vda@s"), "null:")
    status = c.daemon.status()
    assert status["disks"][0]["blocks-preserved"] == 10 and status["cache"]["bytes"] == before
    c.end()


def test_memory_has_a_hard_cap(t):
    """The cache's figure is what it holds, its peak is kept, and neither it nor the process ever exceeds the cap."""
    cap = 8 * MIB
    c = Counted(t, "--fleece", "ram=8M")
    idle, status = c.daemon.memory(), c.daemon.status()
    assert status["cache"]["bytes"] == 0 and status["cache"]["bytes-max"] == cap
    c.daemon.fleece("snapshot", "create", "s")
    c.write(*[(i * BLOCK, BLOCK) for i in range(MIB // BLOCK)])
    # a segment with its share of the map, and the next one, which is kept ready
    assert MIB <= c.last["cache"] <= 2 * (MIB + 16 * MIB // BLOCK) and c.last["peak"] == c.last["cache"], c.last
    for start in range(MIB, 48 * MIB, 256 * KIB):  # far more than fits: the snapshot breaks, the writes go on
        c.client.pwrite(bytes(256 * KIB), start)
        assert c.daemon.status()["cache"]["bytes"] <= cap
    status = c.daemon.status()
    assert status["snapshots"][0]["state"] == "broken", status["snapshots"]
    assert cap - 2 * MIB <= status["cache"]["bytes-peak"] <= cap and status["disks"][0]["errors"] == 0
    assert not harness.PLAIN or c.daemon.memory() <= idle + cap + 4 * MIB, (idle, c.daemon.memory())
    c.daemon.fleece("snapshot", "delete", "s")
    harness.wait_for("the cache is empty", lambda: c.daemon.status()["cache"]["bytes"] == 0)
    c.end()


harness.main()
