# SPDX-License-Identifier: GPL-2.0-or-later
"""Rows about what the servers cost on very large disks: memory, and status queries."""
import time

import nbd

from load import fio
from rows import peers
from servers import Fleece

MIB, TIB = 1 << 20, 1 << 40
WRITES = 10_000
# The same places in every run: the disk has data there, and nothing else.
PLACES = ["--norandommap", "--randrepeat=1", "--randseed=23", f"--number_ios={WRITES}", f"--size={TIB}"]


def sparse_disk(bench):
    """1 TiB of holes with data at WRITES places of 4 KiB."""
    path = bench.work / "sparse.raw"
    if not path.exists():
        with open(path, "wb") as f:
            f.truncate(TIB)
        fio("randwrite", 64, None, 0, path=path, options=PLACES)
    return path


def write_there(server):
    fio("randwrite", 32, None, 0, uri=server.uri("vda"), options=PLACES)


def newest(bench, disks):
    return dict(list(peers(bench, disks).items())[:1])


def b9(bench):
    """memory of the daemon, shared memory (where our RAM tier lies) apart"""
    disks = {"vda": sparse_disk(bench)}
    servers = {"fleece": lambda: Fleece(bench.work, disks), **newest(bench, disks)}

    def measure(make, granularity):
        with make() as server:
            idle = server.rss_bytes()
            server.track("vda", granularity)
            write_there(server)
            tracked = server.rss_bytes()
            server.snapshot("s")
            alive = server.rss_bytes()
            write_there(server)
            return {"idle_mib": idle / MIB, "tracked_mib": tracked / MIB, "snapshot_mib": (alive - tracked) / MIB,
                    "preserved_mib": (server.rss_bytes() - tracked) / MIB}

    for granularity in (65536, 4096):
        bench.report.compare(f"1 TiB disk, bitmap of {granularity >> 10} KiB, {WRITES:,} random writes",
                             {name: lambda m=make: measure(m, granularity) for name, make in servers.items()},
                             {"idle_mib": "less", "tracked_mib": "less", "snapshot_mib": None, "preserved_mib": "less"})


def map_ms(server, context):
    """Milliseconds that a client takes to get the whole map of the snapshot, and how many extents it has."""
    handle, extents, at = nbd.NBD(), [], 0
    handle.add_meta_context(context)
    handle.connect_uri(server.uri("vda@s"))
    if not handle.can_meta_context(context):
        raise SystemExit(f"{server.name} has no {context}")
    started = time.monotonic()
    while at < handle.get_size():
        found = []
        handle.block_status(min(handle.get_size() - at, (1 << 32) - 65536), at, lambda *reply: found.extend(reply[2]))
        at += sum(found[::2])
        extents += found[::2]
    took = time.monotonic() - started
    handle.shutdown()
    return took * 1000, len(extents)


def n23(bench):
    """asking for status: the whole map of a snapshot of a 1 TiB sparse disk with many preserved blocks"""
    disks = {"vda": sparse_disk(bench)}
    servers = {"fleece": lambda: Fleece(bench.work, disks), **newest(bench, disks)}

    def measure(make):
        with make() as server:
            server.snapshot("s")
            write_there(server)
            took, extents = map_ms(server, "base:allocation")
            result = {"map_ms": took, "extents": extents}
            if server.kind == "fleece":
                result["residence_ms"], result["residence_extents"] = map_ms(server, "fleece:residence")
                started = time.monotonic()
                server.qmp("fleece-query-status")
                result["query_ms"] = (time.monotonic() - started) * 1000
            return result

    bench.report.compare(f"map of 1 TiB, {WRITES:,} blocks preserved", {n: lambda m=make: measure(m) for n, make in
                                                                         servers.items()},
                         {"map_ms": "less", "residence_ms": None, "query_ms": None, "extents": None})


ROWS = {"B9": b9, "N23": n23}
