#!/usr/bin/python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""Disks of a VM in qcow2 images: served, tracked, snapshot and killed; qemu-img is the judge of what is left."""
import json
import os
import random
import struct
import time

import harness
from tracking_kit import dirty_blocks, nbd_client, nbd_module

MIB = 1 << 20


def image(t, name, size, *options):
    t.run("qemu-img", "create", "-q", "-f", "qcow2", *options, t.path(name), str(size))
    return t.path(name)


def judge(t, path, content):
    """No error and no leak, and the content byte by byte."""
    t.run("qemu-img", "check", "-q", path)
    t.path("model").write_bytes(content)
    t.run("qemu-img", "compare", "-q", path, t.path("model"))


def judge_killed(t, path):
    """Clusters may leak, and nothing else may be wrong; that can be repaired."""
    for _ in range(100):
        done = t.run("qemu-img", "check", "--output=json", path, status=None)
        if "lock" not in done.stderr:  # until what the kernel has of the dead daemon's has landed
            break
        time.sleep(0.1)
    assert done.returncode in (0, 3), done.stdout + done.stderr
    report = json.loads(done.stdout)
    assert report.get("corruptions", 0) == 0 and report["check-errors"] == 0, report
    return report.get("leaks", 0)


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
    t.run("qemu-img", "check", "-q", "-r", "leaks", top)
    judge(t, top, guest.content)
    t.run("qemu-img", "check", "-q", t.path("mid.qcow2"))


class RestlessGuest:
    """Requests side by side, none over another that is under way, and never a flush."""

    def __init__(self, content, seed):
        self.content, self.random = bytearray(content), random.Random(seed)
        self.busy = {}  # first sector -> what it will be

    def start(self, h, done):
        length = self.random.choice([512, 4096, 4096, 65536, 150 * 512])
        offset = self.random.randrange(0, len(self.content) - length, 512)
        if any(offset < at + len(new) and at < offset + length for at, new in self.busy.items()):
            return

        def answered(error):
            assert error.value == 0
            self.content[offset:offset + length] = self.busy.pop(offset)
            done.append(offset)
            return 1
        if self.random.random() < 0.2:
            self.busy[offset] = bytes(length)
            h.aio_zero(length, offset, completion=answered)
        else:
            self.busy[offset] = self.random.randbytes(length)
            h.aio_pwrite(nbd_module().Buffer.from_bytearray(bytearray(self.busy[offset])), offset, completion=answered)

    def go(self, d, count):
        """Until so many are answered: then others are under way. The daemon is killed meanwhile."""
        h, done = nbd_client(d.uri("vda")), []
        while len(done) < count:
            while len(self.busy) < 16:
                self.start(h, done)
            h.poll(-1)
        d.kill()

    def check(self, d):
        h = nbd_client(d.uri("vda"))
        got = bytearray(b"".join(h.pread(MIB, at) for at in range(0, len(self.content), MIB)))
        h.shutdown()
        for at, new in self.busy.items():  # each sector old or new
            for i in range(0, len(new), 512):
                if got[at + i:at + i + 512] == new[i:i + 512]:
                    self.content[at + i:at + i + 512] = new[i:i + 512]
        self.busy = {}
        wrong = [at for at in range(0, len(got), 512) if got[at:at + 512] != self.content[at:at + 512]]
        assert not wrong, f"{len(wrong)} sectors that were answered are lost, the first at {wrong[0]}"


def killed_again_and_again(t, path, guest, counts):
    """A daemon is killed after so many requests, the next one after so many more, ...; what was answered is there. The last
    daemon lives."""
    for count in counts:
        d = t.daemon({"vda": f"{path},format=qcow2"})
        guest.check(d)
        guest.go(d, count)
        judge_killed(t, path)
    d = t.daemon({"vda": f"{path},format=qcow2"})
    guest.check(d)
    return d


def test_killed_without_a_flush(t):
    """What was answered is there after kill -9, though nobody ever flushed."""
    harness.need("qemu-img")
    base = t.disk("base.raw", 16 * MIB, fill=3)
    kinds = [("plain", []), ("small", ["-o", "cluster_size=4k"]), ("over", ["-b", "base.raw", "-F", "raw"]),
             ("sub", ["-o", "extended_l2=on,cluster_size=128k", "-b", "base.raw", "-F", "raw"])]
    for number, (name, options) in enumerate(kinds):
        path = image(t, f"{name}.qcow2", 16 * MIB, *options)
        guest = RestlessGuest(base.read_bytes() if "-b" in options else bytes(16 * MIB), number)
        d = killed_again_and_again(t, path, guest, (1, 60, 200))
        d.stop()
        t.run("qemu-img", "check", "-q", "-r", "leaks", path)
        judge(t, path, guest.content)


def test_space_is_used_again(t):
    """What the guest has discarded, and flushed, is where new data goes: the file does not grow with each round."""
    harness.need("qemu-img")
    path = image(t, "a.qcow2", 64 * MIB, "-o", "cluster_size=4k")
    d = t.daemon({"vda": f"{path},format=qcow2"})
    h = nbd_client(d.uri("vda"))
    for number in range(10):
        for at in range(0, 16 * MIB, MIB):
            h.pwrite(bytes([1 + number]) * MIB, at + 3 * MIB * number)
        if number < 9:
            h.trim(16 * MIB, 3 * MIB * number)
        h.flush()
    h.shutdown()
    d.stop()
    assert os.path.getsize(path) < 64 * MIB, os.path.getsize(path)
    content = bytearray(64 * MIB)
    content[27 * MIB:43 * MIB] = b"\n" * (16 * MIB)
    judge(t, path, content)


def test_table_of_counts_grows(t):
    """More clusters than the image's table of refcount blocks can count: it grows, also under a guest that is killed."""
    harness.need("qemu-img")
    path = image(t, "a.qcow2", 16 * MIB, "-o", "cluster_size=512")
    clusters = lambda: struct.unpack(">I", open(path, "rb").read(60)[56:])[0]
    before = clusters()
    guest = RestlessGuest(bytes(16 * MIB), 9)
    d = killed_again_and_again(t, path, guest, (100, 300))
    h = nbd_client(d.uri("vda"))
    for at in range(0, 16 * MIB, MIB):
        guest.content[at:at + MIB] = guest.random.randbytes(MIB)
        h.pwrite(guest.content[at:at + MIB], at)
    h.shutdown()
    d.stop()
    assert clusters() > before, "the test needs a larger disk"
    t.run("qemu-img", "check", "-q", "-r", "leaks", path)
    judge(t, path, guest.content)


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
