#!/usr/bin/python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""Disks of a VM in qcow2 images: served, tracked, snapshot and killed; qemu-img is the judge of what is left."""
import random

import harness
from tracking_kit import dirty_blocks, nbd_client

MIB = 1 << 20


def image(t, name, size, *options):
    t.run("qemu-img", "create", "-q", "-f", "qcow2", *options, t.path(name), str(size))
    return t.path(name)


def judge(t, path, content):
    """No error and no leak, and the content byte by byte."""
    t.run("qemu-img", "check", "-q", path)
    t.path("model").write_bytes(content)
    t.run("qemu-img", "compare", "-q", path, t.path("model"))


class Guest:
    """Writes, zeroes and discards, with a model."""

    def __init__(self, content, seed):
        self.content, self.random = bytearray(content), random.Random(seed)

    def go(self, d, count):
        h = nbd_client(d.uri("vda"))
        for _ in range(count):
            length = self.random.choice([512, 4096, 65536, 200000 // 512 * 512])
            offset = self.random.randrange(0, len(self.content) - length, 512)
            if self.random.random() < 0.2:
                h.zero(length, offset)
                self.content[offset:offset + length] = bytes(length)
            else:
                data = self.random.randbytes(length)
                h.pwrite(data, offset)
                self.content[offset:offset + length] = data
        h.flush()
        h.shutdown()


def test_overlay_with_everything(t):
    """An overlay over an overlay over a raw file: written under a snapshot, tracked across kill -9, right to its end."""
    harness.need("qemu-img")
    base = t.disk("base.raw", 8 * MIB, fill=3)
    image(t, "mid.qcow2", 8 * MIB, "-b", "base.raw", "-F", "raw")
    t.run("qemu-io", "-f", "qcow2", "-c", "write -P 7 1M 1M", t.path("mid.qcow2"))
    top = image(t, "top.qcow2", 8 * MIB, "-b", "mid.qcow2", "-F", "qcow2")
    content = bytearray(base.read_bytes())
    content[MIB:2 * MIB] = b"\7" * MIB
    guest = Guest(content, 1)
    disk = {"vda": f"{top},format=qcow2"}
    d = t.daemon(disk)
    guest.go(d, 40)
    with d.qmp() as q:
        q.execute("fleece-checkpoint-create", name="one")
    before = bytes(guest.content)
    d.fleece("snapshot", "create", "s")
    guest.go(d, 60)
    h = nbd_client(d.uri("vda@s"))
    assert h.pread(8 * MIB, 0) == before
    h.shutdown()
    changed = {i for i in range(len(before) // 4096) if before[i * 4096:][:4096] != guest.content[i * 4096:][:4096]}
    d.kill()
    d = t.daemon(disk)
    d.fleece("snapshot", "create", "t", "--since", "one")
    assert changed <= dirty_blocks(d, "vda@t", "one")
    d.fleece("snapshot", "delete", "t")
    guest.go(d, 20)
    for snapshot in d.status()["snapshots"]:
        d.fleece("snapshot", "delete", snapshot["name"])
    d.stop()
    judge(t, top, guest.content)
    t.run("qemu-img", "check", "-q", t.path("mid.qcow2"))


def test_refused(t):
    """Snapshots inside, a dirty image, another program's lock, no such backing file: each by its name."""
    harness.need("qemu-img")
    inner = image(t, "inner.qcow2", MIB)
    t.run("qemu-img", "snapshot", "-c", "x", inner)
    lost = image(t, "lost.qcow2", MIB, "-u", "-b", "gone.qcow2", "-F", "qcow2")
    raw = t.disk("a.raw", MIB)
    for path, words in ((inner, "snapshots inside"), (lost, "gone.qcow2"), (raw, "qcow2")):
        d = t.daemon({"vda": f"{path},format=qcow2"}, wait=False)
        d.wait(1)
        assert words in d.log() and d.log().count("\n") == 1, d.log()
    d = t.daemon({"vda": f"{inner},format=qcow2,read-only=on"})
    d.stop()


harness.main()
