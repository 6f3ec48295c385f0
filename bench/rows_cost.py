# SPDX-License-Identifier: GPL-2.0-or-later
"""Rows about costs: memory and status queries of very large disks, change tracking."""
import json
import pathlib
import shutil
import subprocess
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


TRACK_COST = pathlib.Path(__file__).resolve().parent.parent / "build/tests/sim/track_cost"
FEW, MANY = 10_000, 30_000  # the blocks of the extent are dirty after the few


def instructions(bench, tracking):
    """Of a write to an active extent: of disk, tracker, file driver and the simulated kernel below them."""
    def run(count):
        result = subprocess.run(["valgrind", "--tool=callgrind", f"--callgrind-out-file={bench.work}/callgrind", TRACK_COST,
                                 "write", tracking, str(count)], capture_output=True, text=True, check=True)
        return int(result.stderr.split("Collected : ")[1].split()[0])
    return {"instructions": (run(MANY) - run(FEW)) / (MANY - FEW)}


def scattered(depth, count, mib):
    found = json.loads(subprocess.check_output([TRACK_COST, "scatter", str(depth), str(count), str(mib)]))
    requests = found["log_writes"] + found["page_writes"] + found["syncs"]
    return {**found, "per_write": requests / count, "per_activation": requests / found["activations"]}


def b12(bench):
    """tracking on against off: instructions per write; requests to the sidecar beside the writes, in 3 GiB, which the
    activity log covers, and in 60 GiB, 16 times as much"""
    if shutil.which("valgrind"):
        bench.report.compare("a write to an active extent", {f"tracking {t}": lambda t=t: instructions(bench, t)
                                                             for t in ("on", "off")}, {"instructions": "less"})
    shown = {key: None for key in ("per_write", "per_activation", "activations", "log_writes", "page_writes", "syncs")}
    for depth in 1, 32:
        bench.report.compare(f"random writes, {depth} at once", {
            "3 GiB": lambda d=depth: scattered(d, 50_000, 3 * 1024),
            "60 GiB": lambda d=depth: scattered(d, 50_000, 60 * 1024)}, shown)


ROWS = {"B9": b9, "B12": b12, "N23": n23}
