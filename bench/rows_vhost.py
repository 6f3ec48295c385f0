# SPDX-License-Identifier: GPL-2.0-or-later
"""The rows over vhost-user-blk: B11, and B2 to B4 with a guest that has its disk from there."""
from load import Vhost, fio, floor
from rows import SPEED, b2, b3, peers
from rows_cache import b4
from servers import Fleece


def floor_of(bench, kind, queue):
    """Plain disk I/O of that kind and one round trip over vhost-user-blk to a device that does nothing, on whichever server
    is faster at that."""
    nothing = {"vda": None}
    servers = [lambda: Fleece(bench.work, nothing, vhost=True), *list(peers(bench, nothing, vhost=True).values())[:1]]

    def null(null_kind):
        results = []
        for make in servers:
            with make() as server:
                results.append(Vhost.load(server, null_kind, queue, bench.seconds))
        return max(results, key=lambda result: result["iops"])

    return floor(kind, queue, bench.seconds, bench.disk, null)


def b11(bench):
    """live disk over vhost-user-blk, changes tracked, no snapshot: 4 KiB random I/O"""
    disks = {"vda": bench.disk}
    servers = {"fleece": lambda: Fleece(bench.work, disks, vhost=True), **peers(bench, disks, vhost=True)}

    def measure(make, kind, queue):
        with make() as server:
            if server.kind == "fleece":
                server.checkpoint("b11")
            before = server.cpu_seconds()
            result = Vhost.load(server, kind, queue, bench.seconds, bench.ramp)
            used = server.cpu_seconds() - before
        bench.disk.with_name(f"{bench.disk.name}.fleece").unlink(missing_ok=True)
        requests = result["requests"] * (bench.seconds + bench.ramp) / bench.seconds
        return {**result, "cpu_us": used * 1e6 / requests}

    for kind in ("randwrite", "randread"):
        for queue in (1, 32):
            candidates = {name: lambda m=make: measure(m, kind, queue) for name, make in servers.items()}
            candidates["plain fio"] = lambda: fio(kind, queue, bench.seconds, bench.ramp, path=bench.disk)
            candidates["floor"] = lambda: floor_of(bench, kind, queue)
            bench.report.compare(f"{kind}, QD{queue}", candidates, {**SPEED, "cpu_us": "less"})


def b2_vhost(bench):
    """as B2, over vhost-user-blk: snapshot active, first writes, 4 KiB random"""
    b2(bench, Vhost, floor_of)


def b3_vhost(bench):
    """as B3, over vhost-user-blk: first writes, 4 KiB random, while the snapshot is pulled at full speed by nbdcopy"""
    b3(bench, Vhost)


def b4_vhost(bench):
    """as B4, over vhost-user-blk: the snapshot goes to a target that takes 10 MB/s and is 50 ms away"""
    b4(bench, Vhost)


ROWS = {"B2-vhost": b2_vhost, "B3-vhost": b3_vhost, "B4-vhost": b4_vhost, "B11": b11}
