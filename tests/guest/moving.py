#!/usr/bin/python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""docs/moving.md, run as it stands there: a guest that writes is moved onto Fleece, backed up there, and moved off again."""
import os
import re

import harness
import vm
from vm import MIB


def commands():
    """The page's commands in their order, each a list of lines: what the shell runs, and what QEMU's monitor is told."""
    text = (harness.ROOT / "docs/moving.md").read_text()
    found = re.findall(r"```(sh|json)\n(.*?)```", text, re.S)
    return [(kind, [line.strip() for line in block.splitlines() if line.strip()]) for kind, block in found]


class Page:
    """What is left of the page."""

    def __init__(self, t, guest):
        self.t, self.guest, self.blocks = t, guest, commands()

    def take(self, kind):
        found, lines = self.blocks.pop(0)
        assert found == kind, f"docs/moving.md: {lines} is for {found}, not {kind}"
        return lines

    def tell_qemu(self):
        for line in self.take("json"):
            self.guest.qmp.socket.sendall(line.encode() + b"\n")
            self.guest.qmp.receive()

    def mirror(self):
        """Two nodes, a copy, the exchange, and the old node goes."""
        self.tell_qemu()
        self.guest.qmp.event("BLOCK_JOB_READY", vm.WAIT)
        go_on(self.guest)
        self.tell_qemu()
        event = self.guest.qmp.event("BLOCK_JOB_COMPLETED", vm.WAIT)
        assert "error" not in event["data"], event
        self.tell_qemu()


def go_on(guest):
    guest.wait_durable({"ext4": guest.durable().get("ext4", 0) + 5})


def test_there_and_back(t):
    t.borrow_vm("db1")
    image = vm.root_disk(t, "db1.raw", 48 * MIB)
    guest = vm.Vm(t, vm.FILE, {"vda": image})
    page = Page(t, guest)
    guest.start("ext4", "exec guest_load files /data ext4 40")
    go_on(guest)

    truncate, fleeced = page.take("sh")
    t.run("sh", "-c", truncate, cwd=t.dir)
    d = harness.Daemon(t, ["sh", "-c", f"exec {harness.BUILD}/{fleeced.rstrip(' &')}"], t.path("db1.sock"),
                       f"unix:{t.path('db1.nbd')}", t.environment, "fleeced.log", cwd=t.dir)
    t.daemons.append(d)
    d.wait_ready()
    page.mirror()
    left_behind = image.read_bytes()
    go_on(guest)
    durable, points = guest.durable(), [vm.backup(d, t.path("set"))]
    go_on(guest)
    points.append(vm.backup(d, t.path("set")))
    changed = points[1][1]["vda"]
    assert changed["kind"] == "incremental" and 0 < changed["captured"] < 24 * MIB, changed
    assert image.read_bytes() == left_behind, "the guest still writes to the image that it has left"

    t.run("sh", "-c", *page.take("sh"), cwd=t.dir)
    page.mirror()
    assert not page.blocks, page.blocks
    status = d.status()["disks"][0]
    go_on(guest)
    assert d.status()["disks"][0]["writes"] == status["writes"] and status["errors"] == 0, status
    d.stop()
    go_on(guest)
    guest.stop("ext4")
    last = guest.durable()["ext4"]
    guest.run("echo 3 >/proc/sys/vm/drop_caches")
    print(guest.run(f"guest_load check /data {last}"))
    guest.check_calm()
    guest.power_off()
    t.run("/sbin/e2fsck", "-fn", t.path("db1-off.raw"))

    folder = vm.restore(t, t.path("set"), points)[0]
    t.run("/sbin/e2fsck", "-fy", "-E", "journal_only", folder / "vda.raw", status=None)
    t.run("/sbin/e2fsck", "-fn", folder / "vda.raw")
    t.path("found").mkdir()
    t.run("/sbin/debugfs", "-R", f"rdump /data {t.path('found')}", folder / "vda.raw")
    files = set(os.listdir(t.path("found/data")))
    assert {str(n) for n in range(1, durable["ext4"] + 1)} <= files, (durable, files)


harness.main()
