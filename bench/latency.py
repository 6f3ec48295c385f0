# SPDX-License-Identifier: GPL-2.0-or-later
"""The guest's write latency over time: before, during and after a full backup; and its plot, results/latency.svg."""
import subprocess
import time

from compare import RESULTS
from load import SteadyWriter, make_disk
from plot import write_plot
from rows import GIB, SPEED, peers, ram_for
from servers import Fleece

RATE, QUEUE = 2000, 16
BUCKET_MS = 250
AT_MOST_S = 40  # for the backup


def percentile(ordered, share):
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))] if ordered else None


def figures(latencies_ns, seconds):
    ordered = sorted(latencies_ns)
    return {"iops": len(ordered) / seconds,
            **{f"{name}_us": percentile(ordered, share) / 1000 if ordered else None
               for name, share in (("p50", 0.5), ("p99", 0.99), ("p999", 0.999))}}


def read_log(path):
    """[(milliseconds since the epoch at completion, nanoseconds taken)...] of fio's latency log."""
    with open(path, encoding="ascii") as log:
        return [(int(time_ms), int(took_ns)) for time_ms, took_ns in (line.split(",")[:2] for line in log)]


class GuestHung(Exception):
    """A request of the guest was never answered."""


def record(bench, make, calm_s):
    """One run. (In qemu-storage-daemon 10.0 a guest that writes while the filter is inserted was once never answered
    again.)"""
    for _ in range(3):
        try:
            return record_once(bench, make, calm_s)
        except GuestHung:
            print("  the guest was never answered again; once more")
    raise SystemExit("the guest was never answered again, three times")


def record_once(bench, make, calm_s):
    """A guest that writes at a steady rate, and a full backup in the middle of it."""
    log = bench.work / "guest"
    with make() as server:
        guest = SteadyWriter(server.uri("vda"), RATE, QUEUE, f"--write_lat_log={log}", "--per_job_logs=0",
                             "--log_unix_epoch=1")
        with guest:
            time.sleep(calm_s + 1)
            begin = time.time()
            server.snapshot("s")
            pull = subprocess.Popen(["nbdcopy", server.uri("vda@s"), "null:"], stdin=subprocess.DEVNULL)
            try:
                pull.wait(AT_MOST_S)
            except subprocess.TimeoutExpired:
                pull.kill()
                pull.wait()
            end = time.time()
            complete = pull.returncode == 0
            if server.kind == "fleece":
                server.snapshot_delete("s")
            time.sleep(calm_s)
        if guest.hung:
            raise GuestHung
    entries = read_log(f"{log}_clat.log")
    for path in bench.work.glob("guest_*.log"):
        path.unlink()
    start_ms = begin * 1000 - calm_s * 1000
    phases = {"before": (0, calm_s), "during": (calm_s, calm_s + end - begin),
              "after": (calm_s + end - begin, 2 * calm_s + end - begin)}
    result = {"phases": {}, "pull_complete": complete,
              "pull_gib_s": bench.latency_size / GIB / (end - begin) if complete else None}
    for name, (first, last) in phases.items():
        inside = [took for at, took in entries if first <= (at - start_ms) / 1000 < last]
        result["phases"][name] = {"from_s": first, "to_s": last, **figures(inside, last - first)}
    buckets = {}
    for at, took in entries:
        buckets.setdefault(int((at - start_ms) // BUCKET_MS), []).append(took)
    result["buckets"] = [{"at_s": i * BUCKET_MS / 1000, **figures(bucket, BUCKET_MS / 1000)}
                         for i, bucket in sorted(buckets.items()) if 0 <= i * BUCKET_MS / 1000 < phases["after"][1]]
    during = {key: value for key, value in result["phases"]["during"].items() if not key.endswith("_s")}
    return {**result, **during,
            "p99_before_us": result["phases"]["before"]["p99_us"], "p99_after_us": result["phases"]["after"]["p99_us"]}


def latency(bench):
    """the guest's write latency before, during and after a full backup by pull"""
    small = bench.seconds < 1
    bench.latency_size = bench.size if small else max(bench.size, 4 * GIB)
    disk = make_disk(bench.work / f"disk-{bench.latency_size >> 20}m.raw", bench.latency_size)
    disks = {"vda": disk}
    servers = {"fleece": lambda: Fleece(bench.work, disks, ram=ram_for(bench.latency_size)),
               **dict(list(peers(bench, disks).items())[:1])}
    bench.report.compare(f"{RATE:,} writes/s, QD{QUEUE}, during the pull",
                         {name: lambda m=make: record(bench, m, 1 if small else 5) for name, make in servers.items()},
                         {**SPEED, "p99_before_us": None, "p99_after_us": None, "pull_gib_s": "more"})
    bench.report.head["about"] = {"rate": RATE, "queue": QUEUE, "size_bytes": bench.latency_size, "bucket_ms": BUCKET_MS}
    write_plot({**bench.report.head, "cells": bench.report.cells},
               (bench.work if small else RESULTS) / "latency.svg")


ROWS = {"latency": latency}
