# SPDX-License-Identifier: GPL-2.0-or-later
"""The rows over vhost-user-blk."""
from load import fio, vhost
from rows import SPEED, peers
from servers import Fleece


def b11(bench):
    """live disk over vhost-user-blk, changes tracked, no snapshot: 4 KiB random I/O"""
    disks = {"vda": bench.disk}
    servers = {"fleece": lambda: Fleece(bench.work, disks, vhost=True), **peers(bench, disks, vhost=True)}

    def measure(make, kind, queue):
        with make() as server:
            if server.kind == "fleece":
                server.checkpoint("b11")
            result = vhost(kind, queue, bench.seconds, bench.ramp, server.vhost_socket("vda"))
        bench.disk.with_name(f"{bench.disk.name}.fleece").unlink(missing_ok=True)
        return result

    for kind in ("randwrite", "randread"):
        for queue in (1, 32):
            candidates = {name: lambda m=make: measure(m, kind, queue) for name, make in servers.items()}
            candidates["plain fio"] = lambda: fio(kind, queue, bench.seconds, bench.ramp, path=bench.disk)
            bench.report.compare(f"{kind}, QD{queue}", candidates, SPEED)


ROWS = {"B11": b11}
