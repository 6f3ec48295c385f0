# SPDX-License-Identifier: GPL-2.0-or-later
"""What the tests of change tracking share: maps of snapshots as sets of blocks, and writers that know what they wrote."""
import contextlib
import json
import random

import harness

MIB = 1 << 20
BLOCK = 4096
DIRTY = "qemu:dirty-bitmap:"


def nbd_module():
    try:
        import nbd
        return nbd
    except ImportError:
        raise harness.Skip("python3-libnbd is not installed") from None


def nbd_client(uri, *contexts):
    h = nbd_module().NBD()
    for context in contexts:
        h.add_meta_context(context)
    h.set_strict_mode(0)
    h.connect_uri(uri)
    return h


def refused(q, kind, text, command, **arguments):
    try:
        q.execute(command, **arguments)
    except harness.QmpError as error:
        assert error.kind == kind and text in error.text, f"{error} does not say: {text}"
        return
    raise AssertionError(f"{command} {arguments} was not refused")


def blocks_of(offset, length):
    return range(offset // BLOCK, (offset + length - 1) // BLOCK + 1)


def dirty_blocks(d, export, name):
    """The dirty blocks of a map, by libnbd, which asks for parts of it."""
    h = nbd_client(d.uri(export), DIRTY + name)
    assert h.can_meta_context(DIRTY + name), f"{export} has no map {name}"
    size, at, blocks = h.get_size(), 0, set()
    while at < size:
        got = []
        h.block_status(min(5 * MIB + 512, size - at), at, lambda c, o, entries, e: got.append((o, list(entries))) and 0)
        (offset, entries), = got
        assert offset == at
        for length, flags in zip(entries[::2], entries[1::2]):
            assert flags in (0, 1)
            if flags:
                blocks.update(blocks_of(at, length))
            at += length
    h.shutdown()
    return blocks


def extents_of(t, d, export, context, wanted):
    extents = json.loads(t.run("nbdinfo", "--json", f"--map={context}", d.uri(export)).stdout)
    return {b for e in extents if wanted(e["type"]) for b in blocks_of(e["offset"], e["length"])}


def changed_since(d, checkpoint, disk="vda"):
    """The blocks that changed since a checkpoint, as a snapshot of now shows them."""
    d.fleece("snapshot", "create", "look", "--map", checkpoint)
    try:
        return dirty_blocks(d, f"{disk}@look", checkpoint)
    finally:
        d.fleece("snapshot", "delete", "look")


def listed(d):
    return [json.loads(line) for line in d.fleece("--json", "checkpoint", "list").stdout.splitlines()]


def states(d):
    return {c["name"]: c["state"] for c in listed(d)}


def part(d, checkpoint, disk="vda"):
    """What a checkpoint says of one disk."""
    c, = (c for c in listed(d) if c["name"] == checkpoint)
    p, = (p for p in c["disks"] if p["disk"] == disk)
    return p


def changed(d, disk="vda"):
    """Bytes that changed since each checkpoint, as they are listed."""
    return {c["name"]: p["changed"] for c in listed(d) for p in c["disks"] if p["disk"] == disk}


def tracking(d, disk=0):
    return d.status()["disks"][disk]["tracking"]


def differing(path, before):
    """Blocks in which a file differs from bytes."""
    now = path.read_bytes()
    assert len(now) == len(before)
    return {b for b in range((len(now) + BLOCK - 1) // BLOCK)
            if now[b * BLOCK:(b + 1) * BLOCK] != before[b * BLOCK:(b + 1) * BLOCK]}


class Load:
    """Writes to one disk, several at a time, until the daemon is gone; `submitted` are the blocks that it may have changed,
    `acknowledged` those that it must have."""

    def __init__(self, d, disk, size, seed, in_flight=8):
        self.h = nbd_client(d.uri(disk))
        self.size, self.in_flight, self.random = size, in_flight, random.Random(seed)
        self.submitted, self.acknowledged, self.lost = set(), set(), False

    def _done(self, blocks):
        def callback(error):
            if error.value == 0:
                self.acknowledged.update(blocks)
            return 1
        return callback

    def _submit(self):
        nbd = nbd_module()
        length = self.random.choice((512, 4096, 4096, 8192, 65536))
        offset = self.random.randrange((self.size - length) // 512) * 512
        blocks = list(blocks_of(offset, length))
        kind = self.random.randrange(8)
        if kind != 1:
            self.submitted.update(blocks)
        if kind == 0:
            self.h.aio_zero(length, offset, completion=self._done(blocks))
        elif kind == 1:
            self.h.aio_flush(completion=self._done([]))
        else:
            self.h.aio_pwrite(nbd.Buffer.from_bytearray(bytearray(self.random.randbytes(length))), offset,
                              completion=self._done(blocks))

    def run(self, seconds=None, writes=None):
        """For some time, or so many writes, or until the connection is lost."""
        import time
        end = time.monotonic() + seconds if seconds else None
        count = 0
        nbd = nbd_module()
        with contextlib.suppress(nbd.Error):
            while (not end or time.monotonic() < end) and (not writes or count < writes):
                while self.h.aio_in_flight() < self.in_flight and (not writes or count < writes):
                    self._submit()
                    count += 1
                self.h.poll(100)
            while self.h.aio_in_flight() > 0:
                self.h.poll(100)
            return
        self.lost = True

    def close(self):
        with contextlib.suppress(nbd_module().Error):
            self.h.shutdown()
