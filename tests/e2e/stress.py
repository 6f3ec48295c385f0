#!/usr/bin/python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""The threaded stress: four busy disks on two I/O threads, snapshots that come, are judged and go, readers and clients
that come and vanish, status queries; all at once. It is what the thread sanitizer watches; on the release build it finds
races by their wrong data.

FLEECE_STRESS_SECONDS says how long each function runs (default: under the thread sanitizer 20, else 10, not counting start
and end)."""
import contextlib
import os
import random
import socket
import subprocess
import threading
import time

import nbd

import harness

SECONDS = float(os.environ.get("FLEECE_STRESS_SECONDS", "10" if harness.PLAIN else "20"))
DISKS = ["vda", "vdb", "vdc", "vdd"]
MIB = 1 << 20
SIZE = 24 * MIB + 512  # the last block is a part of one
# Who writes where, on each disk. Small regions: every slot is written again and again.
GROUPS = {
    "single": ["write", "--region", "1M:4M", "--writers", "3", "--flush-every", "50"],
    "queued": ["write", "--region", "6M:2M", "--writers", "1", "--queue", "8", "--record", "512", "--fua-every", "20"],
    "chain": ["dependent", "--region", "9M:2M", "--writers", "2", "--flush-every", "10"],
}
VICTIMS = (12 * MIB, 2 * MIB)   # written by clients that are killed
MODEL = (16 * MIB, 4 * MIB)     # zeroes, trims and writes of every alignment, compared with a model


class Stress:
    """The daemon, the writers, and threads that run until time is up or one of them fails."""

    def __init__(self, t, *options):
        self.t = t
        self.stamp = t.program("tests/tools/stamp")
        self.daemon = t.daemon({name: t.disk(f"{name}.raw", SIZE) for name in DISKS}, "--io-threads", "2", *options)
        self.end = threading.Event()
        self.failures, self.counts, self.lock = [], {}, threading.Lock()
        self.writers = {name: t.spawn(self.stamp, arguments[0], *self.live(), "--log", t.path(f"{name}.log"),
                                      *arguments[1:], stdout=subprocess.PIPE, text=True)
                        for name, arguments in GROUPS.items()}

    def live(self):
        return [self.daemon.uri(name) for name in DISKS]

    def count(self, what, by=1):
        with self.lock:
            self.counts[what] = self.counts.get(what, 0) + by

    def guarded(self, function, *arguments):
        try:
            while not self.end.is_set():
                function(self, *arguments)
        except BaseException as failure:  # told by run()
            self.failures.append(failure)
            self.end.set()

    def run(self, *works, until):
        """works: (function, argument...) each called again and again in a thread of its own as function(self, ...); for some
        time, and until that was counted once."""
        threads = [threading.Thread(target=self.guarded, args=work) for work in works]
        for thread in threads:
            thread.start()
        self.end.wait(SECONDS)
        with contextlib.suppress(AssertionError):
            harness.wait_for(until, lambda: self.counts.get(until) or self.end.is_set(), pause=0.1)
        self.end.set()
        for thread in threads:
            thread.join()
        for name, writer in self.writers.items():
            writer.terminate()
            said, _ = writer.communicate(timeout=harness.SOON)
            print(f"  {name}: {said.strip()}")
            if writer.returncode != 0:
                self.failures.append(AssertionError(f"the writers \"{name}\" ended with {writer.returncode}"))
        print(f"  {', '.join(f'{count} {what}' for what, count in sorted(self.counts.items()))}", flush=True)
        if self.failures:
            raise self.failures[0]
        assert self.counts.get(until), f"no {until}: nothing was tested"
        now = time.monotonic_ns()
        for name in GROUPS:
            self.t.run(self.stamp, "check", *self.live(), "--log", self.t.path(f"{name}.log"), "--before", now)
        self.daemon.stop()
        for name in GROUPS:
            self.t.run(self.stamp, "check", *(self.t.path(f"{d}.raw") for d in DISKS), "--log",
                       self.t.path(f"{name}.log"), "--before", now)


def connect(uri):
    handle = nbd.NBD()
    handle.connect_uri(uri)
    return handle


def judged_snapshot(s, prefix, may_break):
    """One snapshot: it shows one instant of every group of writers, now and after a while of further writing."""
    name = f"{prefix}{s.counts.get(prefix, 0)}"
    before = time.monotonic_ns()
    s.daemon.fleece("snapshot", "create", name)
    after = time.monotonic_ns()
    s.count(prefix)
    uris = [s.daemon.uri(f"{disk}@{name}") for disk in DISKS]
    for turn in range(2):
        for group in random.sample(sorted(GROUPS), len(GROUPS)):
            verdict = s.t.run(s.stamp, "check", *uris, "--log", s.t.path(f"{group}.log"), "--before", before, "--after",
                              after, status=None)
            if verdict.returncode == 0:
                s.count("judgements")
            elif may_break and "WRONG" not in verdict.stdout:
                s.count("snapshots found broken")
            else:
                raise AssertionError(f"{name}, turn {turn}, {group}:\n{verdict.stdout}{verdict.stderr}")
        s.end.wait(random.random() * 0.5)
    s.daemon.fleece("snapshot", "delete", name)


def twice_read(s):
    """A snapshot's data doesn't change: two readers of random pieces at different times see the same."""
    with s.daemon.qmp() as qmp:
        try:
            snapshots = [x["name"] for x in qmp.execute("fleece-query-snapshots") if x["state"] == "live"]
        except harness.QmpError:
            snapshots = []
    if not snapshots:
        s.end.wait(0.05)
        return
    export = f"{random.choice(DISKS)}@{random.choice(snapshots)}"
    with contextlib.suppress(nbd.Error):  # deleted or broken meanwhile
        first, second = connect(s.daemon.uri(export)), connect(s.daemon.uri(export))
        for _ in range(20):
            start = random.randrange(SIZE - 1)
            length = min(random.choice([512, 4096, 65536, MIB, random.randint(1, 100000)]), SIZE - start)
            was = first.pread(length, start)
            s.end.wait(random.random() * 0.02)
            if second.pread(length, start) != was:
                raise AssertionError(f"{export}: {length} bytes at {start} have changed")
            s.count("pieces read twice")
        first.shutdown()
        second.shutdown()


def differ(got, expected, undefined):
    """Whether bytes differ where the mask is 0."""
    got, expected, undefined = (int.from_bytes(b, "little") for b in (got, expected, undefined))
    return (got ^ expected) & ~undefined != 0


def modelled(s, disk, state):
    """Writes, zeroes, trims and reads of every alignment on a region of one disk, which must behave like memory."""
    start, length = MODEL
    if not state:
        state["handle"] = connect(s.daemon.uri(disk))
        state["model"], state["undefined"] = bytearray(length), bytearray(length)
    handle, model, undefined = state["handle"], state["model"], state["undefined"]
    at = random.randrange(length)
    piece = min(random.choice([512, 4096, random.randint(1, 20000), 300000]), length - at)
    kind = random.choice(["write", "write", "zero", "trim", "read", "read", "flush"])
    if kind == "write":
        data = random.randbytes(piece)
        handle.pwrite(data, start + at)
        model[at:at + piece] = data
        undefined[at:at + piece] = bytes(piece)
    elif kind == "zero":
        handle.zero(piece, start + at, random.choice([0, nbd.CMD_FLAG_NO_HOLE]))
        model[at:at + piece] = undefined[at:at + piece] = bytes(piece)
    elif kind == "trim":
        handle.trim(piece, start + at)
        undefined[at:at + piece] = b"\xff" * piece  # until it is written: a snapshot may put the discard off
    elif kind == "flush":
        handle.flush()
    elif differ(handle.pread(piece, start + at), model[at:at + piece], undefined[at:at + piece]):
        raise AssertionError(f"{disk}: {piece} bytes at {start + at} are not what was written")
    s.count("modelled requests")


def victim(s):
    """A client that is killed while it writes."""
    process = s.t.spawn(s.stamp, "write", *s.live(), "--log", s.t.path("victim.log"), "--region",
                        f"{VICTIMS[0]}:{VICTIMS[1]}", "--writers", "2", "--queue", "16", stdout=subprocess.DEVNULL,
                        stderr=subprocess.DEVNULL)
    s.end.wait(0.1 + random.random() * 0.3)
    process.kill()
    process.wait()
    s.t.processes.remove(process)
    s.count("clients killed")


def passer_by(s):
    """Connections that end at odd places: at once, in the handshake, in transmission, with requests unread."""
    path = s.daemon.nbd[5:]
    for cut in (0, 4, 20, 40):
        with socket.socket(socket.AF_UNIX) as raw:
            raw.connect(path)
            raw.sendall((b"\0\0\0\3" + b"IHAVEOPT" + b"\0\0\0\3" + b"\0\0\0\0" + b"IHAVEOPT" + bytes(12))[:cut])
            if cut == 20:
                raw.recv(18)
    handle = connect(s.daemon.uri(random.choice(DISKS)))
    for i in range(16):
        handle.aio_pread(nbd.Buffer(65536), i * 65536)
    del handle  # closes the socket with replies under way
    s.count("passers-by")
    s.end.wait(0.02)


def held_extents(handle):
    """(offset, length) of what a snapshot can give: all that is not released, or outside of what it was limited to."""
    extents, seen = [], [0]

    def note(_, offset, entries, __):
        for length, flags in zip(entries[::2], entries[1::2]):
            if not flags & 16:
                extents.append((offset, length))
            offset += length
        seen[0] = offset

    while seen[0] < SIZE:
        handle.block_status(SIZE - seen[0], seen[0], note)
    return extents


def incremental(s, state):
    """A chain of snapshots that are limited to what was written since the one before, laid over each other in files: after
    each of them the files show one instant of every group of writers."""
    number = state["number"] = state.get("number", -1) + 1
    name, last = f"inc{number}", f"inc{number - 1}"
    s.daemon.fleece("bitmap", "add", name)  # before the snapshot, so that nothing falls between the two
    before = time.monotonic_ns()
    s.daemon.fleece("snapshot", "create", name, *(["--bitmap", last] if number else []))
    after = time.monotonic_ns()
    files = [s.t.path(f"{disk}.inc") for disk in DISKS]
    for disk, file in zip(DISKS, files):
        handle = nbd.NBD()
        handle.add_meta_context("fleece:residence")
        handle.connect_uri(s.daemon.uri(f"{disk}@{name}"))
        with open(file, "r+b" if number else "wb") as out:
            for offset, length in held_extents(handle):
                for start in range(offset, offset + length, MIB):
                    out.seek(start)
                    out.write(handle.pread(min(MIB, offset + length - start), start))
                    s.count("incremental pieces")
            out.truncate(SIZE)
        handle.shutdown()
    s.daemon.fleece("snapshot", "delete", name)
    if number:
        s.daemon.fleece("bitmap", "remove", last)
    for group in GROUPS:
        verdict = s.t.run(s.stamp, "check", *files, "--log", s.t.path(f"{group}.log"), "--before", before, "--after",
                          after, status=None)
        if verdict.returncode != 0:
            raise AssertionError(f"{name}, {group}:\n{verdict.stdout}{verdict.stderr}")
    s.count("incrementals")


def bitmaps(s):
    """Bitmaps that come and go on all disks, merged across reactors."""
    with s.daemon.qmp() as qmp:
        for disk in DISKS:
            qmp.execute("block-dirty-bitmap-add", node=disk, name="side", granularity=random.choice([512, 4096, 65536]))
        for _ in range(10):
            sources = [{"node": disk, "name": "side"} for disk in random.sample(DISKS, 2)]
            qmp.execute("block-dirty-bitmap-merge", node=random.choice(DISKS), target="side", bitmaps=sources)
            qmp.execute("fleece-query-dirty-ranges", node=random.choice(DISKS), name="side")
            qmp.execute("fleece-estimate-backup")
            qmp.execute("block-dirty-bitmap-clear", node=random.choice(DISKS), name="side")
            s.count("merges")
            s.end.wait(0.01)
        for disk in DISKS:
            qmp.execute("block-dirty-bitmap-remove", node=disk, name="side")


def status(s):
    assert s.daemon.status()
    s.count("status queries")
    s.end.wait(0.05)


def everybody(may_break):
    return [(judged_snapshot, "a", may_break), (judged_snapshot, "b", may_break), (twice_read,), (victim,), (passer_by,),
            (status,), *((modelled, disk, {}) for disk in ("vda", "vdd"))]


def test_cuts_under_load(t):
    stress = Stress(t, "--fleece", "ram=512M")
    stress.run(*everybody(False), (incremental, {}), (bitmaps,), until="judgements")


def test_cuts_with_a_full_cache(t):
    """The RAM tier is too small, so snapshots break; the guest's I/O never does, and a broken one serves nothing wrong."""
    stress = Stress(t, "--fleece", "ram=16M")
    stress.run(*everybody(True), until="snapshots found broken")


harness.main()
