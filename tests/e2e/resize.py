#!/usr/bin/python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""Disks that grow while they are served."""
import array
import json
import os
import random
import socket
import struct
import threading
import time

import harness
from tracking_kit import dirty_blocks, nbd_client, refused

MIB = 1 << 20


def export_size(d, export):
    h = nbd_client(d.uri(export))
    size = h.get_size()
    h.shutdown()
    return size


def read_all(t, d, export):
    path = t.path("copy")
    path.unlink(missing_ok=True)
    t.run("nbdcopy", d.uri(export), path)
    return path.read_bytes()


class Writer:
    """Writes random blocks over one connection until it is told to stop; no write may fail."""

    def __init__(self, d, size):
        self.h, self.size = nbd_client(d.uri("vda")), size
        self.done, self.count, self.failure = False, 0, None
        self.thread = threading.Thread(target=self.run)
        self.thread.start()

    def run(self):
        chance = random.Random(1)
        try:
            while not self.done:
                at = chance.randrange(self.size // 512) * 512
                self.h.pwrite(chance.randbytes(min(4096, self.size - at)), at)
                self.count += 1
            self.h.flush()
            self.h.shutdown()
        except Exception as error:  # pylint: disable=broad-except
            self.failure = error

    def stop(self):
        self.done = True
        self.thread.join()
        assert self.failure is None and self.count > 0, self.failure


def backup(d, where, status=0):
    said = d.fleece("--json", "backup", where, status=status)
    return json.loads(said.stdout.splitlines()[-1])


def check_restored(t, image):
    t.fleece("restore", t.path("set"), "--disk", "vda", "--to", t.path("restored.raw"), "--force")
    assert t.path("restored.raw").read_bytes() == image.read_bytes()
    t.path("restored.raw").unlink()


def kind(line):
    (disk,) = line["disks"]
    return disk["kind"], disk.get("reason")


def test_grows_under_load(t):
    """A disk of an odd size grows twice under a guest's writes, beside snapshots: those keep their size, new ones have the
    new one; what was added is dirty; the incremental backup has it; the guest's old connection goes on."""
    harness.need("nbdcopy")
    odd = 24 * MIB + 1000
    image = t.disk("a.raw", odd, fill=3)
    d = t.daemon({"vda": image}, "--fleece", "ram=8M,max=256M")
    assert kind(backup(d, t.path("set")))[0] == "full"
    d.fleece("checkpoint", "create", "day")
    d.fleece("snapshot", "create", "old")
    q = d.qmp()
    q.execute("block-dirty-bitmap-add", node="vda", name="b", granularity=1 << 16)
    old = nbd_client(d.uri("vda"))
    writer = Writer(d, odd)
    before = read_all(t, d, "vda@old")
    assert q.execute("block_resize", device="vda", size=32 * MIB) == {"size": 32 * MIB}
    assert q.event("FLEECE_DISK_RESIZED")["data"] == {"disk": "vda", "size": 32 * MIB, "old-size": odd}
    ranges = q.execute("fleece-query-dirty-ranges", node="vda", name="b", offset=odd)["ranges"]
    assert ranges[0]["offset"] <= odd and ranges[0]["offset"] + ranges[0]["length"] == 32 * MIB, ranges
    q.close()
    assert image.stat().st_size == 32 * MIB and d.status()["disks"][0]["size"] == 32 * MIB
    assert export_size(d, "vda") == 32 * MIB and export_size(d, "vda@old") == odd
    d.fleece("snapshot", "create", "middle")
    new = nbd_client(d.uri("vda"))
    new.pwrite(b"n" * 8192, odd - 1000)  # over the old end
    new.pwrite(b"e" * 8192, 32 * MIB - 8192)
    said = json.loads(d.fleece("--json", "resize", "vda", "48M").stdout)
    assert said == {"disk": "vda", "size": 48 * MIB}, said
    assert export_size(d, "vda@middle") == 32 * MIB and export_size(d, "vda") == 48 * MIB
    try:  # a connection keeps the size that it was told
        old.pread(512, 32 * MIB)
        raise AssertionError("an old connection reads what it does not know of")
    except nbd_error() as error:
        assert error.errno == "EINVAL", error
    time.sleep(0.2)
    writer.stop()
    assert read_all(t, d, "vda@old") == before, "the snapshot has changed"
    middle = read_all(t, d, "vda@middle")
    assert middle[odd:] == bytes(32 * MIB - odd), "what was written after it is in the middle one"
    d.fleece("snapshot", "create", "late", "--map", "day")
    added = set(range(odd // 4096, 48 * MIB // 4096))
    assert added <= dirty_blocks(d, "vda@late", "day")
    for name in "old", "middle", "late":
        d.fleece("snapshot", "delete", name)
    line = backup(d, t.path("set"))
    assert kind(line)[0] == "incremental", line
    d.fleece("resize", "vda", "48M")  # which it has
    old.shutdown()
    new.shutdown()
    d.stop()
    check_restored(t, image)


def nbd_error():
    from tracking_kit import nbd_module
    return nbd_module().Error


def test_killed_while_it_grows(t):
    """kill -9 in any moment of it: the disk has the old size or the new one, its checkpoint is right, and a snapshot made
    before is there with its own size. The next backup is incremental and complete."""
    image, size, grown = t.disk("a.raw", 8 * MIB, fill=1), 8 * MIB, 0
    d = t.daemon({"vda": image})
    backup(d, t.path("set"))
    for round_ in range(10):
        d.fleece("snapshot", "create", "s")
        nbd = nbd_client(d.uri("vda"))
        nbd.pwrite(bytes([round_]) * 4096, size - 4096)
        wanted = size + 512 * random.randrange(1, 4000)
        q = d.qmp()
        q.send("block_resize", device="vda", size=wanted)
        time.sleep(random.choice((0, 0.0005, 0.001, 0.002, 0.005, 0.02)))
        d.kill()
        q.close()
        t.daemons.clear()
        d = t.daemon({"vda": image})
        now = d.status()["disks"][0]["size"]
        assert now in (size, wanted) and now == image.stat().st_size, (now, size, wanted)
        assert export_size(d, "vda@s") == size
        d.fleece("snapshot", "delete", "s")
        grown += now == wanted
        nbd = nbd_client(d.uri("vda"))
        nbd.pwrite(b"z" * 512, now - 512)
        nbd.shutdown()
        line = backup(d, t.path("set"))
        assert kind(line)[0] == "incremental", f"round {round_}: {line}"
        check_restored(t, image)
        size = now
    d.stop()
    print(f"{grown} of 10 times it had grown")


def test_block_device(t):
    """A device is made larger by whoever manages it; then its disk takes the size over, with or without being told."""
    if os.getuid() != 0:
        raise harness.Skip("only root can make a loop device")
    harness.need("losetup")
    backing = t.disk("backing.raw", 16 * MIB, fill=2)
    made = t.run("losetup", "--show", "-f", backing, status=None)
    if made.returncode != 0:
        raise harness.Skip(f"no loop device: {made.stderr.strip()}")
    device = made.stdout.strip()
    try:
        d = t.daemon({"vda": device}, "--state-dir", t.path("state"))
        backup(d, t.path("set"))
        said = d.fleece("resize", "vda", "20M", status=1).stderr
        assert f"is a block device of {16 * MIB} bytes, not {20 * MIB}: make the device larger first" in said, said
        for wanted in (), ("40M",):
            backing_size = backing.stat().st_size + 12 * MIB
            with open(backing, "ab") as f:
                f.write(harness.pattern(12 * MIB, 7))  # not zero: what lay there before
            t.run("losetup", "-c", device)
            assert d.status()["disks"][0]["size"] == backing_size - 12 * MIB
            d.fleece("resize", "vda", *wanted)
            assert d.status()["disks"][0]["size"] == backing_size == export_size(d, "vda")
            assert kind(backup(d, t.path("set")))[0] == "incremental"
            t.fleece("restore", t.path("set"), "--disk", "vda", "--to", t.path("restored.raw"), "--force")
            assert t.path("restored.raw").read_bytes() == backing.read_bytes()
        d.stop()
    finally:
        t.run("losetup", "-d", device)


def test_what_is_refused(t):
    """Smaller, odd, too large, what can't grow, and what is not there: with the reason, and nothing has happened."""
    image = t.disk("a.raw", 8 * MIB)
    other = t.disk("c.raw", 4 * MIB)
    d = t.daemon({"vda": image, "vdb": ",driver=null,size=8M", "vdc": f"{other},read-only=on"})
    with d.qmp() as q:
        for kind_, text, arguments in (
                ("GenericError", "can't be made smaller", {"device": "vda", "size": MIB}),
                ("GenericError", "the size must be a multiple of", {"device": "vda", "size": 8 * MIB + 1}),
                ("DeviceNotFound", "has no disk 'vdx'", {"device": "vdx", "size": MIB}),
                ("GenericError", "its driver is 'null'", {"node-name": "vdb", "size": 16 * MIB}),
                ("GenericError", "it is served read-only", {"device": "vdc", "size": 16 * MIB}),
                ("GenericError", "name one disk", {"device": "vda", "node-name": "vda", "size": 16 * MIB}),
                ("GenericError", "name one disk", {"size": 16 * MIB})):
            refused(q, kind_, text, "block_resize", **arguments)
        d.fleece("snapshot", "create", "s")
        refused(q, "GenericError", f"there is room for {32 * MIB} until they are deleted", "block_resize", device="vda",
                size=33 * MIB)
        assert q.execute("block_resize", device="vda", size=32 * MIB) == {"size": 32 * MIB}
        d.fleece("snapshot", "delete", "s")
        d.fleece("checkpoint", "create", "c")
        refused(q, "GenericError", "'fleece checkpoint reset vda' begins anew", "block_resize", device="vda", size=1 << 40)
        d.fleece("checkpoint", "reset", "vda")
        assert q.execute("block_resize", device="vda", size=1 << 40) == {"size": 1 << 40}
    for wrong in ([], ["vda", "0"], ["vda", "x"], ["vda", "1G", "2G"], ["--grow", "vda"]):
        assert "fleece" in d.fleece("resize", *wrong, status=2).stderr
    with open(image, "ab") as f:
        f.truncate((1 << 40) + MIB)
    said = d.fleece("resize", "vda", str((1 << 40) + 512), status=1).stderr
    assert "somebody has made it longer" in said, said
    assert json.loads(d.fleece("--json", "resize", "vda").stdout)["size"] == (1 << 40) + MIB
    d.stop()


class FrontEnd:
    """As much of a VMM's side of vhost-user as hears of a new capacity."""

    FEATURES, SET_FEATURES, SET_OWNER, GET_PROTOCOL, SET_PROTOCOL, SET_BACK, GET_CONFIG = 1, 2, 3, 15, 16, 21, 24
    REPLY_ACK, BACKEND_REQ, CONFIG = 1 << 3, 1 << 5, 1 << 9

    def __init__(self, path):
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.settimeout(harness.SOON)
        self.socket.connect(str(path))
        self.send(self.SET_OWNER)
        assert self.ask(self.FEATURES) >> 30 & 1
        offered = self.ask(self.GET_PROTOCOL)
        wanted = self.REPLY_ACK | self.BACKEND_REQ | self.CONFIG
        assert offered & wanted == wanted, hex(offered)
        self.send(self.SET_PROTOCOL, struct.pack("<Q", wanted))

    def send(self, request, payload=b"", fds=(), flags=1):
        ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
        self.socket.sendmsg([struct.pack("<III", request, flags, len(payload)) + payload], ancillary)

    def answer(self, request):
        header = self.socket.recv(12, socket.MSG_WAITALL)
        got, flags, size = struct.unpack("<III", header)
        assert (got, flags) == (request, 5), header
        return self.socket.recv(size, socket.MSG_WAITALL)

    def ask(self, request):
        self.send(request)
        return struct.unpack("<Q", self.answer(request))[0]

    def set_back_channel(self, end):
        self.send(self.SET_BACK, fds=[end.fileno()], flags=1 | 8)
        assert self.answer(self.SET_BACK) == bytes(8)

    def capacity(self):
        self.send(self.GET_CONFIG, struct.pack("<III", 0, 8, 0) + bytes(8))
        return struct.unpack("<Q", self.answer(self.GET_CONFIG)[12:])[0] * 512


CHANGED = struct.pack("<III", 2, 1, 0)  # VHOST_USER_BACKEND_CONFIG_CHANGE_MSG


def test_a_vmm_is_told(t):
    """Over the channel that it has given us; and one that does not listen there costs nobody anything."""
    d = t.daemon({"vda": t.disk("a.raw", 8 * MIB)}, "--vhost-user", f"vda={t.path('v.sock')}")
    front = FrontEnd(t.path("v.sock"))
    d.fleece("resize", "vda", "9M")  # there is no channel yet
    assert front.capacity() == 9 * MIB
    ours, theirs = socket.socketpair()
    ours.settimeout(harness.SOON)
    front.set_back_channel(theirs)
    theirs.close()
    d.fleece("resize", "vda", "10M")
    assert ours.recv(12, socket.MSG_WAITALL) == CHANGED
    assert front.capacity() == 10 * MIB
    deaf, full = socket.socketpair()
    full.setblocking(False)
    filled = 0
    try:
        while True:
            filled += full.send(bytes(100000))
    except BlockingIOError:
        pass
    full.setblocking(True)
    front.set_back_channel(full)
    assert ours.recv(1) == b"", "the old channel is open still"
    for size in 11, 12, 13:  # none waits for the front-end, nor does its connection
        d.fleece("resize", "vda", f"{size}M")
        assert front.capacity() == size * MIB
    while filled > 0:
        filled -= len(deaf.recv(min(filled, 100000)))
    deaf.settimeout(harness.SOON)
    assert deaf.recv(24, socket.MSG_WAITALL) == 2 * CHANGED  # what was said meanwhile is said once
    full.setblocking(False)
    try:
        while True:
            full.send(bytes(100000))
    except BlockingIOError:
        pass
    d.fleece("resize", "vda", "14M")
    front.socket.close()  # while a message is under way
    again = FrontEnd(t.path("v.sock"))
    assert again.capacity() == 14 * MIB
    no_socket = os.memfd_create("no-socket")
    again.set_back_channel(os.fdopen(no_socket, "rb"))
    d.fleece("resize", "vda", "15M")
    harness.wait_for("it is said", lambda: "can't be told that the disk has grown" in d.log())
    d.fleece("resize", "vda", "16M")
    assert again.capacity() == 16 * MIB
    again.socket.close()
    d.stop()


if __name__ == "__main__":
    harness.main()
