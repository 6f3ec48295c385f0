# SPDX-License-Identifier: GPL-2.0-or-later
"""Rows about the fleecing cache: a target that is slow and far away, and a disk tier that spills."""
import contextlib
import subprocess
import time

import nbd

from load import Nbd, SteadyWriter, fio, make_disk
from rows import GIB, SPEED, peers, ram_for
from servers import Fleece, SlowTarget

MIB = 1 << 20
REGION = 64 * MIB  # what the guest of B4 writes to: all of it is preserved before anything is measured


@contextlib.contextmanager
def pull_to(uri, target_uri):
    """nbdcopy from one to the other, which must not be done when the block ends."""
    process = subprocess.Popen(["nbdcopy", uri, target_uri], stdin=subprocess.DEVNULL, stderr=subprocess.PIPE)
    try:
        yield
        if process.poll() is not None:
            raise SystemExit(f"the pull ended early: {process.stderr.read().decode()}")
    finally:
        process.kill()
        process.wait()
        process.stderr.close()


def overwrite(uri, size):
    """Each block once."""
    handle = nbd.NBD()
    handle.connect_uri(uri)
    for at in range(0, size, MIB):
        handle.pwrite(bytes([at // MIB % 255 + 1]) * MIB, at)
    handle.shutdown()


def b4(bench, over=Nbd):
    """the snapshot goes to a target that takes 10 MB/s and is 50 ms away; the blocks written to are preserved already"""
    disks = {"vda": bench.disk}
    def servers(threads):
        return {"fleece": lambda: Fleece(bench.work, disks, ram=ram_for(bench.size), vhost=over.vhost),
                **dict(list(peers(bench, disks, threads=threads, vhost=over.vhost).items())[:1])}

    def guest(server, queue):
        overwrite(server.uri("vda"), REGION)
        return over.load(server, "randwrite", queue, bench.seconds, size=REGION)

    def alone(make, queue):
        with make() as server:
            return guest(server, queue)

    def pulled(make, queue):
        with SlowTarget(bench.work, bench.size) as target, make() as server:
            server.snapshot("s")
            with pull_to(server.uri("vda@s"), target.uri("")):
                return guest(server, queue)

    def pushed(make, queue):
        with SlowTarget(bench.work, bench.size) as target, make() as server:
            server.begin_backup(target)
            try:
                return guest(server, queue)
            finally:
                server.end_backup()

    # QEMU's job without an iothread: see b8.
    for how, measure, threads in (("pulled", pulled, True), ("pushed", pushed, False)):
        for queue in (1, 32):
            candidates = {}
            for name, make in servers(threads).items():
                candidates[name] = lambda m=make: measure(m, queue)
                if threads or name == "fleece":
                    candidates[f"{name}, no backup"] = lambda m=make: alone(m, queue)
            bench.report.compare(f"{how} to a slow target, QD{queue}", candidates, SPEED)


def spill(bench):
    """snapshot active, first writes, 4 KiB random: what a disk tier costs the guest that spills nearly all of it"""
    disks = {"vda": bench.disk}
    servers = {"fleece": lambda: Fleece(bench.work, disks, ram="32M", disk_tier="16G"),
               "fleece, RAM only": lambda: Fleece(bench.work, disks, ram=ram_for(bench.size)),
               **dict(list(peers(bench, disks).items())[:1])}

    def measure(make, queue):
        with make() as server:
            server.snapshot("s")
            result = fio("randwrite", queue, bench.seconds, 0, uri=server.uri("vda"))
            return {**result, "spilled_mib": server.spilled_bytes() / MIB if server.kind == "fleece" else None}

    for queue in (1, 32):
        bench.report.compare(f"first writes, 32 MiB of RAM and a cache file, QD{queue}",
                             {name: lambda m=make: measure(m, queue) for name, make in servers.items()},
                             {**SPEED, "spilled_mib": None})


def advice(bench):
    """the peak of the fleecing cache while a busy disk is pushed, with and without advice and release"""
    size = min(bench.size, GIB // 2)
    disk = make_disk(bench.work / f"disk-{size >> 20}m.raw", size)

    def measure(*options):
        with SlowTarget(bench.work, size, rate="512M", delay="1ms") as target, \
                Fleece(bench.work, {"vda": disk}, ram="16M", disk_tier="4G") as server, \
                SteadyWriter(server.uri("vda"), 4000, 16):
            time.sleep(0.5)
            started = time.monotonic()
            server.push(target, *options)
            took = time.monotonic() - started
            return {"peak_mib": server.cache_peak_bytes() / MIB, "gib_s": size / GIB / took}

    bench.report.compare("a guest of 4,000 writes/s, a target of 64 MB/s",
                         {"fleece": measure, "fleece, no advice": lambda: measure("--no-advice"),
                          "fleece, neither": lambda: measure("--no-advice", "--no-release")},
                         {"peak_mib": "less", "gib_s": "more"})


ROWS = {"B4": b4, "spill": spill, "advice": advice}
