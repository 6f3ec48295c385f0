#!/usr/bin/python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""The peer check: one seeded trace of guest writes, zeroes and discards goes through QEMU's copy-before-write
(qemu-storage-daemon: copy-before-write with snapshot-access beside it) and through Fleece, on two copies of one image.
Snapshots are taken at the same places of the trace, several live at once; what both show must be byte-equal, and equal to
a model of the disk at the cut: read piece by piece between the requests of the trace, beside it, and at its end. What was
discarded and not written since is anybody's choice (ours waits with discards while a snapshot needs the blocks), but a
snapshot shows the same of it at all times.

QEMU's side is read one cluster at a time, and its map is not asked for: in 7.2 a read over a border between preserved and
other clusters gives bytes of the live disk, and the map is the live disk's: it calls what the guest has discarded since
the cut a hole, although the data was preserved. (10.0 is right in both.) FLEECE_QSD names another qemu-storage-daemon
than the installed one."""
import os
import random

import nbd

import harness

KIB, MIB = 1 << 10, 1 << 20
SIZES = [8 * MIB + 512, 6 * MIB + 512 * 77, 9 * MIB - 512]  # never a multiple of a block, a cluster or a page
OPERATIONS, SNAPSHOTS, LIVE_AT_ONCE = 300, 5, 3


class Qemu:
    """One raw file over NBD by qemu-storage-daemon. Its snapshots stack up: the newest copy-before-write filter is next to
    the guest, so they end in the opposite order."""
    piece = 64 * KIB  # see above

    def __init__(self, t, image):
        self.t, self.image = t, image
        self.nbd = t.path("q.nbd")
        self.process = t.spawn_server(os.environ.get("FLEECE_QSD", "qemu-storage-daemon"), "--chardev",
                                      f"socket,id=c,path={t.path('q.qmp')},server=on,wait=off", "--monitor", "chardev=c")
        self.qmp = harness.Qmp(t.path("q.qmp"))
        self.qmp.execute("nbd-server-start", addr={"type": "unix", "data": {"path": str(self.nbd)}}, max_connections=0)
        self.add("file", "disk", filename=str(image), discard="unmap")
        self.add("raw", "live", file="disk", discard="unmap")
        self.export("vda", "live", writable=True)
        self.filters, self.made = ["disk"], 0

    def add(self, driver, node, **options):
        self.qmp.execute("blockdev-add", driver=driver, node_name=node, **options)

    def export(self, name, node, writable):
        self.qmp.execute("block-export-add", type="nbd", id=f"e-{node}", node_name=node, name=name, writable=writable)

    def guest_over(self, node):
        self.qmp.execute("blockdev-reopen", options=[{"driver": "raw", "node-name": "live", "file": node,
                                                      "discard": "unmap"}])

    def create(self, name):
        self.made += 1
        old, new = f"old{self.made}", f"cbw{self.made}"
        self.add("file", old, filename=str(self.t.disk(f"{old}.raw", os.path.getsize(self.image))))
        self.add("copy-before-write", new, file=self.filters[-1], target=old, discard="unmap")
        self.guest_over(new)
        self.filters.append(new)
        self.add("snapshot-access", f"snap-{name}", file=new)
        self.export(f"vda@{name}", f"snap-{name}", writable=False)

    def delete(self, name):
        """The newest one."""
        self.qmp.execute("block-export-del", id=f"e-snap-{name}", mode="hard")
        self.qmp.event("BLOCK_EXPORT_DELETED")
        self.qmp.execute("blockdev-del", node_name=f"snap-{name}")
        gone = self.filters.pop()
        self.guest_over(self.filters[-1])
        self.qmp.execute("blockdev-del", node_name=gone)

    def uri(self, export):
        return f"nbd+unix:///{export}?socket={self.nbd}"

    def end(self):
        self.qmp.execute("quit")
        self.qmp.close()
        assert self.process.wait(harness.SOON) == 0


class Fleece:
    piece = 777 * KIB + 1  # fits no block

    def __init__(self, t, image, *options):
        self.daemon = t.daemon({"vda": image}, *options)
        self.uri = self.daemon.uri

    def create(self, name):
        self.daemon.fleece("snapshot", "create", name)

    def delete(self, name):
        self.daemon.fleece("snapshot", "delete", name)

    def end(self):
        self.daemon.stop()


def connect(server, export):
    """On our side with the map of the export."""
    handle = nbd.NBD()
    if isinstance(server, Fleece):
        handle.add_meta_context(nbd.CONTEXT_BASE_ALLOCATION)
    handle.connect_uri(server.uri(export))
    return handle


def sparse_image(t, name, size, chance):
    """Data and holes in turn, with odd borders."""
    path, at = t.disk(name, size), 0
    with open(path, "r+b") as f:
        while at < size:
            length = min(chance.choice([512, 4 * KIB, 64 * KIB, chance.randint(1, 400 * KIB)]), size - at)
            if chance.random() < 0.6:
                f.seek(at)
                f.write(chance.randbytes(length))
            at += length
    return path


def operations(chance, size):
    """(kind, offset, length, content) of guest requests: tiny, odd, long, over borders, at the very end, again and again
    over what was written a moment ago."""
    last = 0
    while True:
        length = chance.choice([1, 511, 512, 4 * KIB, 4 * KIB, 64 * KIB, chance.randint(1, 12 * KIB),
                                chance.randint(1, 300 * KIB)])
        offset = chance.choice([chance.randrange(size), chance.randrange(size) // 4096 * 4096,
                                chance.randrange(size) // 65536 * 65536, max(0, size - chance.randint(1, 100 * KIB)),
                                max(0, last - chance.randint(0, 8 * KIB))])
        offset, last = min(offset, size - 1), offset
        length = min(length, size - offset)
        kind = chance.choice(["write"] * 5 + ["zero", "zero with data", "trim"])
        yield kind, offset, length, chance.randbytes(length) if kind == "write" else bytes(length)


def apply(handle, kind, offset, content):
    if kind == "write":
        handle.pwrite(content, offset)
    elif kind == "trim":
        handle.trim(len(content), offset)
    else:
        handle.zero(len(content), offset, nbd.CMD_FLAG_NO_HOLE if kind == "zero with data" else 0)


class Content:
    """Bytes, some of which may be anything (`known` is 0 there, else 255)."""

    def __init__(self, data):
        self.data, self.known = bytearray(data), bytearray(b"\xff" * len(data))

    def write(self, offset, content):
        self.data[offset:offset + len(content)] = content
        self.known[offset:offset + len(content)] = b"\xff" * len(content)

    def discard(self, offset, length):
        self.known[offset:offset + length] = bytes(length)

    def copy(self):
        copy = Content(self.data)
        copy.known = bytearray(self.known)
        return copy

    def must_be_in(self, what, seen):
        assert len(seen) == len(self.data), f"{what}: {len(seen)} bytes, not {len(self.data)}"
        wanted, at = bytearray(self.data), self.known.find(0)
        while at >= 0:
            end = self.known.find(255, at)
            end = len(seen) if end < 0 else end
            wanted[at:end] = seen[at:end]
            at = self.known.find(0, end)
        if wanted != seen:
            first = next(i for i, (x, y) in enumerate(zip(wanted, seen)) if x != y)
            raise AssertionError(f"{what}: differs at byte {first} of {len(seen)}")


def whole(handle, piece):
    """All of an export; and what its map calls zero must read so."""
    size, at = handle.get_size(), 0
    data = b"".join(bytes(handle.pread(min(piece, size - at), at)) for at in range(0, size, piece))
    while at < size and handle.can_meta_context(nbd.CONTEXT_BASE_ALLOCATION):
        extents = []
        handle.block_status(size - at, at, lambda *found: extents.extend(found[2]))
        for length, flags in zip(extents[::2], extents[1::2]):
            assert not flags & nbd.STATE_ZERO or not any(data[at:at + length]), f"{length} at {at} are not zero"
            at += length
    return data


class Reader:
    """Reads a snapshot piece by piece, so that requests of the guest come between."""

    def __init__(self, who, name, server, size):
        self.who, self.name, self.piece, self.size, self.seen = who, name, server.piece, size, bytearray()
        self.handle = connect(server, f"vda@{name}")

    def step(self):
        length = min(self.piece, self.size - len(self.seen))
        if length:
            self.seen += self.handle.pread(length, len(self.seen))

    def end(self):
        """What it has read."""
        while len(self.seen) < self.size:
            self.step()
        self.handle.shutdown()
        return bytes(self.seen)


class Trace:
    """Both servers, the model of the disk, and models of the snapshots."""

    def __init__(self, t, seed, options, disk_options="", thick=False):
        self.t, self.seed, self.chance = t, seed, random.Random(seed)
        size = SIZES[seed % len(SIZES)]
        image, copy = sparse_image(t, "qemu.raw", size, self.chance), t.path("fleece.raw")
        self.model, self.size = Content(image.read_bytes()), size
        if thick:  # the same bytes, all of them allocated
            copy.write_bytes(self.model.data)
        else:
            t.run("cp", "--sparse=always", image, copy)
        self.servers = {"QEMU": Qemu(t, image), "Fleece": Fleece(t, f"{copy}{disk_options}", *options)}
        self.guests = {name: connect(server, "vda") for name, server in self.servers.items()}
        self.operations = operations(self.chance, size)
        self.snapshots, self.readers, self.pulls = {}, [], []
        self.shown = {}  # what a snapshot of ours has shown at first

    def judge_view(self, who, name, how, seen):
        what = f"seed {self.seed}: {name} of {who}, {how}"
        self.snapshots[name].must_be_in(what, seen)
        assert who == "QEMU" or self.shown.setdefault(name, seen) == seen, f"{what}: not what it showed before"

    def go_on(self, count):
        for _ in range(count):
            kind, offset, length, content = next(self.operations)
            for guest in self.guests.values():
                apply(guest, kind, offset, content)
            if kind == "trim":
                self.model.discard(offset, length)
            else:
                self.model.write(offset, content)
            for reader in self.readers:
                reader.step()

    def create(self, name):
        for server in self.servers.values():
            server.create(name)
        self.snapshots[name] = self.model.copy()

    def read_beside(self, name):
        """Readers of one snapshot, while the trace goes on."""
        self.readers = [Reader(who, name, server, self.size) for who, server in self.servers.items()]
        copy = self.t.path(f"pulled-{name}")
        self.pulls.append((copy, name, self.t.spawn("nbdcopy", self.servers["Fleece"].uri(f"vda@{name}"), copy)))

    def judge(self):
        """Every snapshot that is live, from both, and what was read beside the trace."""
        for reader in self.readers:
            self.judge_view(reader.who, reader.name, "piece by piece", reader.end())
        for copy, name, process in self.pulls:
            assert process.wait(harness.SOON) == 0, name
            self.judge_view("Fleece", name, "pulled", copy.read_bytes())
        self.readers, self.pulls = [], []
        for name in self.snapshots:
            for who, server in self.servers.items():
                handle = connect(server, f"vda@{name}")
                self.judge_view(who, name, "whole", whole(handle, server.piece))
                handle.shutdown()

    def delete_newest(self):
        name = list(self.snapshots)[-1]
        for server in self.servers.values():
            server.delete(name)
        del self.snapshots[name]

    def end(self):
        while self.snapshots:
            self.go_on(5)
            self.judge()
            self.delete_newest()
        for who, guest in self.guests.items():
            self.model.must_be_in(f"seed {self.seed}: the disk of {who}", whole(guest, self.servers[who].piece))
            guest.shutdown()
            self.servers[who].end()
            self.model.must_be_in(f"seed {self.seed}: the file of {who}", self.t.path(f"{who.lower()}.raw").read_bytes())


def run(t, seed, *options, **about):
    harness.need("qemu-storage-daemon", "nbdcopy")
    trace = Trace(t, seed, options, **about)
    for i in range(SNAPSHOTS):
        trace.go_on(OPERATIONS // SNAPSHOTS // 2)
        if len(trace.snapshots) == LIVE_AT_ONCE:
            trace.delete_newest()
        trace.create(f"s{i}")
        trace.go_on(3)
        trace.read_beside(f"s{i}")
        trace.go_on(OPERATIONS // SNAPSHOTS // 2)
        trace.judge()
    trace.end()


def test_sparse_image(t):
    run(t, 1)


def test_another_trace(t):
    run(t, 2, "--io-threads", "2")


def test_a_third_one(t):
    run(t, 5)


def test_little_memory_and_a_cache_file(t):
    run(t, 6, "--fleece", f"ram=4M,max=64M,dir={t.dir}", disk_options=",granularity=64K")


def test_page_cache(t):
    run(t, 3, disk_options=",cache=writeback")


def test_allocation_does_not_matter(t):
    """What is a hole of the image on QEMU's side is written zeroes on ours."""
    run(t, 4, thick=True)


harness.main()
