# SPDX-License-Identifier: GPL-2.0-or-later
"""Rows about the fleecing cache: a target that is slow and far away, and a disk tier that spills."""
import contextlib
import subprocess

import nbd

from load import fio
from rows import SPEED, peers, ram_for
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


def b4(bench):
    """the snapshot goes to a target that takes 10 MB/s and is 50 ms away; the blocks written to are preserved already"""
    disks = {"vda": bench.disk}
    servers = {"fleece": lambda: Fleece(bench.work, disks, ram=ram_for(bench.size)),
               **dict(list(peers(bench, disks).items())[:1])}

    def measure(make, queue, backup):
        with make() as server, contextlib.ExitStack() as stack:
            if backup:
                target = stack.enter_context(SlowTarget(bench.work, bench.size))
                server.snapshot("s")
                stack.enter_context(pull_to(server.uri("vda@s"), target.uri("")))
            overwrite(server.uri("vda"), REGION)
            return fio("randwrite", queue, bench.seconds, 0, uri=server.uri("vda"), options=[f"--size={REGION}"])

    for queue in (1, 32):
        candidates = {}
        for name, make in servers.items():
            candidates[name] = lambda m=make: measure(m, queue, True)
            candidates[f"{name}, no backup"] = lambda m=make: measure(m, queue, False)
        bench.report.compare(f"pulled to a slow target, QD{queue}", candidates, SPEED)


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


ROWS = {"B4": b4, "spill": spill}
