#!/usr/bin/python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""What the guest of a vhost-user disk pays for a backup, and when: nothing before and after it, one read for the first
overwrite of a block; a moment at the cut, however long a disk does not drain; and never more than the time-out."""
import json
import time

import frozen_kit
import harness
from harness import BUILD, wait_for
from loop_kit import asked_of, loop_device, settle

CLIENT = BUILD / "tests/vhost/vhost_client"
KIB, MIB = 1 << 10, 1 << 20
BLOCK = 4 * KIB
USED = 256 * KIB  # of the disk, by a guest that overwrites it again and again


class Counted:
    """A disk on a device whose requests are counted, with a guest on two queues."""

    def __init__(self, t, size=16 * MIB):
        self.t, self.device = t, t.borrow(loop_device(t, t.disk("a.raw", size, fill=1)))
        self.socket = t.path("vda.sock")
        self.daemon = t.daemon({"vda": self.device}, "--vhost-user", f"vda={self.socket}")
        settle(t)

    def now(self):
        status = self.daemon.status()
        read, written = asked_of(self.device)
        return {"preserved": status["disks"][0]["blocks-preserved"], "writes": status["disks"][0]["writes"],
                "cache": status["cache"]["bytes"], "read": read, "written": written}

    def overwrite(self):
        """The guest writes its part of the disk from end to end, many times; what that added to the counters."""
        before = self.now()
        for _ in range(20):  # more often where half a second is not enough
            self.t.run(CLIENT, "run", self.socket, "--rw", "write", "--size", str(USED), "--depth", "4", "--queues", "2",
                       "--seconds", str(0.5 * harness.FACTOR))
            now = self.now()
            found = {name: now[name] - before[name] for name in now}
            if found["writes"] > 3 * USED // BLOCK:
                return found
        raise AssertionError(f"the guest was to write each block several times: {found}")


def test_nothing_outside_the_backup_window(t):
    c = Counted(t)
    for _ in range(2):
        found = c.overwrite()
        assert found["preserved"] == found["read"] == found["cache"] == 0, f"without a snapshot: {found}"
        assert found["written"] == found["writes"] * BLOCK, found
        c.daemon.fleece("snapshot", "create", "s")
        c.daemon.fleece("snapshot", "delete", "s")
    c.daemon.stop()


def test_the_first_overwrite_of_a_block_costs_one_read_and_later_ones_nothing(t):
    c = Counted(t)
    c.daemon.fleece("snapshot", "create", "s")
    found = c.overwrite()
    assert (found["preserved"], found["read"]) == (USED // BLOCK, USED), found
    assert found["written"] == found["writes"] * BLOCK, found
    found = c.overwrite()
    assert found["preserved"] == found["read"] == 0, f"all was preserved already: {found}"
    c.daemon.fleece("snapshot", "create", "s2")  # which needs the blocks as they are now
    found = c.overwrite()
    assert (found["preserved"], found["read"]) == (USED // BLOCK, USED), found
    c.daemon.stop()


def guest(t, socket, seconds, *options):
    return t.spawn(CLIENT, "run", socket, "--seconds", str(seconds), *options, stdout=-1, text=True)


def ended(process):
    out, _ = process.communicate(timeout=120 * harness.FACTOR)
    assert process.returncode == 0, out
    return json.loads(out)


def test_a_disk_that_does_not_drain(t):
    """A write hangs in vda: the cut is tried again and again, and vdb's guest is held for a moment each time. When vda has
    drained the snapshot is there; with --long it does not, and the snapshot is refused after 30 s."""
    with frozen_kit.file_system(t) as host:
        stuck, other = host.folder / "a.raw", t.disk("b.raw", 8 * MIB, fill=1)
        stuck.write_bytes(bytes(8 * MIB))
        sockets = [t.path(f"{name}.sock") for name in ("vda", "vdb")]
        d = t.daemon({"vda": stuck, "vdb": other}, "--vhost-user", f"vda={sockets[0]}", "--vhost-user",
                     f"vdb={sockets[1]}")
        seconds = 32 if harness.LONG else 600
        first = guest(t, sockets[0], seconds, "--rw", "randwrite")
        wait_for("vda's guest writes", lambda: d.status()["disks"][0]["writes"] > 10)
        host.freeze()
        writes = d.status()["disks"][0]["writes"]
        second = guest(t, sockets[1], seconds, "--rw", "randwrite", "--depth", "4")
        wait_for("vdb's guest writes", lambda: d.status()["disks"][1]["writes"] > 10)
        with d.qmp() as qmp:
            started = time.monotonic()
            qmp.socket.settimeout(harness.SOON)
            qmp.send("fleece-snapshot-create", name="s", **{"drain-timeout-ms": 200})
            wait_for("it is tried again", lambda: d.status()["snapshots"][0]["attempts"] > 3)
            there = d.status()["disks"][1]["writes"]
            wait_for("vdb's guest writes on", lambda: d.status()["disks"][1]["writes"] > there + 20)
            assert d.status()["disks"][0]["writes"] <= writes + 1, "vda was to be stuck"
            if harness.LONG:
                try:
                    qmp.receive()
                    raise AssertionError("a disk that does not drain was cut")
                except harness.QmpError as error:
                    assert "refused: writes in flight on disk vda" in error.text, error
                assert 29 < time.monotonic() - started < 35 * harness.FACTOR
            host.thaw()
            if not harness.LONG:
                assert qmp.receive()["attempts"] > 3
        if harness.LONG:
            first.communicate(timeout=120 * harness.FACTOR)  # it may have lost its patience
            most = ended(second)["max_us"] / 1e6
            assert 0 < most < 1 + 3 * harness.FACTOR, f"vdb's guest waited {most:.1f} s for vda's disk"
        else:
            assert second.poll() is None, "vdb's guest was hurt"
            for process in (first, second):
                process.kill()
                process.wait()
        d.stop()


def test_a_cache_that_is_full(t):
    """Nobody reads the snapshot, whose cache is too small: a write waits cbw-timeout at most, then the snapshot pays, and
    the guest goes on at its speed."""
    socket = t.path("vda.sock")
    d = t.daemon({"vda": t.disk("a.raw", 32 * MIB, fill=1)}, "--vhost-user", f"vda={socket}", "--fleece",
                 "ram=4M,cbw-timeout=1")
    d.fleece("snapshot", "create", "s")
    for _ in range(20):  # more often where it takes longer to fill the cache
        result = ended(guest(t, socket, 3 * harness.FACTOR, "--rw", "write", "--depth", "4", "--queues", "2"))
        assert 0 < result["max_us"] / 1e6 < 1 + 8 * harness.FACTOR, result  # 10 s would be the default
        if d.status()["snapshots"][0]["state"] == "broken":
            break
    assert d.status()["snapshots"][0]["state"] == "broken", d.status()["snapshots"]
    assert d.status()["disks"][0]["errors"] == 0, d.status()["disks"]
    broken = json.loads(t.run(CLIENT, "run", socket, "--rw", "write", "--size", str(USED), "--seconds", "0.3").stdout)
    assert broken["max_us"] / 1e6 < 8 * harness.FACTOR, broken
    d.stop()


harness.main()
