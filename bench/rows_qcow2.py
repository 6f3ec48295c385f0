# SPDX-License-Identifier: GPL-2.0-or-later
"""The row of live disks in qcow2 images."""
import os
import subprocess

from load import fio
from rows import SPEED, peers
from servers import Fleece

MIB = 1 << 20


def image(bench, name, written=0):
    """An image of the size of the disk, its first bytes written."""
    path = bench.work / name
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", path, str(bench.size)], check=True)
    if written:
        subprocess.run(["qemu-io", "-f", "qcow2", "-c", f"write -q -P 1 0 {written}", path], check=True)
    os.sync()
    return path


def qcow2(bench):
    """live disk in a qcow2 image over NBD, no snapshot: 4 KiB random writes to new clusters, and to old ones"""
    written = min(256 * MIB, bench.size // 2)
    old = image(bench, "old.qcow2", written)

    def measure(make, path, queue, *options):
        with make(path) as server:
            return fio("randwrite", queue, bench.seconds, 0, uri=server.uri("vda"), options=options)

    def first(make, queue):
        path = image(bench, "new.qcow2")
        result = measure(make, path, queue)
        path.unlink()
        return result

    servers = {"fleece": lambda path: Fleece(bench.work, {"vda": f"{path},format=qcow2"})}
    for name in peers(bench, {}):
        servers[name] = lambda path, n=name: peers(bench, {"vda": path}, image_format="qcow2")[n]()
    for queue in (1, 32):
        candidates = {n: lambda m=m: first(m, queue) for n, m in servers.items()}
        bench.report.compare(f"new clusters, QD{queue}", candidates, SPEED)
    for queue in (1, 32):
        candidates = {n: lambda m=m: measure(m, old, queue, f"--size={written}") for n, m in servers.items()}
        bench.report.compare(f"old clusters, QD{queue}", candidates, SPEED)
    old.unlink()


ROWS = {"qcow2": qcow2}
