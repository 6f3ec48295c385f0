# SPDX-License-Identifier: GPL-2.0-or-later
"""Rows about backup sets: incrementals, what a crash costs them, and the speed of the commands."""
import os
import shutil
import subprocess
import time

from load import SteadyWriter, fio
from rows import peers
from servers import BUILD, Fleece

KIB, MIB, GIB, TIB = 1 << 10, 1 << 20, 1 << 30, 1 << 40


def changes(size, count, seed):
    """Random places of the whole disk, the same in every run."""
    return ["--norandommap", "--randrepeat=1", f"--randseed={seed}", f"--number_ios={count}", f"--size={size}"]


def sparse(bench, size, count):
    """A disk of holes with data at `count` places of 4 KiB."""
    path = bench.work / f"sparse-{size >> 30}g.raw"
    path.unlink(missing_ok=True)
    with open(path, "wb") as f:
        f.truncate(size)
    fio("randwrite", 64, None, 0, path=path, options=changes(size, count, 23))
    return path


def allocated(path):
    return os.stat(path).st_blocks * 512


def qsd(bench, disks):
    """10.0 ends with an assertion when it gets a backup job for a disk in an iothread (see B8)."""
    return dict(list(peers(bench, disks, threads=False).items())[:1])


def fresh(path):
    shutil.rmtree(path, ignore_errors=True)
    for sidecar in path.parent.glob("*.fleece"):
        sidecar.unlink()
    return path


def b6(bench):
    """an incremental of random 4 KiB changes, with 4 KiB tracking against a bitmap of 64 KiB"""
    for size, count in ((64 * GIB, bench.changes), (TIB, bench.changes)):
        disks = {"vda": sparse(bench, size, 10_000)}

        def ours():
            folder = fresh(bench.work / "set")
            with Fleece(bench.work, disks) as server:
                server.backup(folder)
                fio("randwrite", 32, None, 0, uri=server.uri("vda"), options=changes(size, count, 24))
                began = time.monotonic()
                done = server.backup(folder)
                took = time.monotonic() - began
            newest = max(p for p in folder.iterdir() if p.is_dir())
            stored = sum(allocated(p) for p in newest.glob("vda.*"))
            shutil.rmtree(folder)
            return {"moved_mib": done["disks"][0]["captured"] / MIB, "stored_mib": stored / MIB, "seconds": took}

        def theirs(make):
            target = bench.work / "inc.raw"
            with make() as server:
                server.track("vda", 64 * KIB)
                fio("randwrite", 32, None, 0, uri=server.uri("vda"), options=changes(size, count, 24))
                began = time.monotonic()
                server.incremental_backup(target)
                took = time.monotonic() - began
            moved = allocated(target)
            target.unlink()
            return {"moved_mib": moved / MIB, "stored_mib": moved / MIB, "seconds": took}

        bench.report.compare(f"{size // GIB} GiB, {count:,} changes",
                             {"fleece": ours, **{n: lambda m=make: theirs(m) for n, make in qsd(bench, disks).items()}},
                             {"moved_mib": "less", "stored_mib": "less", "seconds": "less"})
        disks["vda"].unlink()


def b7(bench):
    """an incremental after kill -9 of the daemon under load: what has to be read"""
    size = bench.size
    disks = {"vda": bench.disk}

    def ours():
        folder = fresh(bench.work / "set")
        with Fleece(bench.work, disks) as server:
            server.backup(folder, "--format", "raw")
            with SteadyWriter(server.uri("vda"), 2000, 8):
                time.sleep(bench.seconds)
                changed = next(c for c in server.qmp("fleece-query-checkpoints"))["disks"][0]["changed"]
                server.kill()
            server.start()
            began = time.monotonic()
            done = server.backup(folder)
            took = time.monotonic() - began
        shutil.rmtree(folder)
        captured = done["disks"][0]["captured"]
        return {"mib": captured / MIB, "before_mib": changed / MIB, "seconds": took}

    def theirs(make):
        target = bench.work / "full.raw"
        with make() as server:  # a bitmap that was not stored in good order is inconsistent: everything is read
            began = time.monotonic()
            server.full_backup(target)
            took = time.monotonic() - began
        target.unlink()
        return {"mib": size / MIB, "seconds": took}

    bench.report.compare(f"{size // MIB} MiB, 2,000 writes a second until the kill",
                         {"fleece": ours, **{n: lambda m=make: theirs(m) for n, make in qsd(bench, disks).items()}},
                         {"mib": "less", "before_mib": None, "seconds": "less"})


def timed(*arguments):
    began = time.monotonic()
    done = subprocess.run([str(a) for a in arguments], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise SystemExit(f"{' '.join(map(str, arguments))}: {done.stderr}")
    return time.monotonic() - began


def sets(bench):
    """a set of a full point and ten incrementals of 1 % each: the speed of making, verifying, pruning and restoring"""
    disks, fleece = {"vda": bench.disk}, BUILD / "fleece"
    size, count = bench.size, max(1, bench.size // 4096 // 100)

    def ours():
        folder = fresh(bench.work / "set")
        restored = bench.work / "restored.raw"
        with Fleece(bench.work, disks) as server:
            began = time.monotonic()
            server.backup(folder)
            full = time.monotonic() - began
            incremental = 0
            for point in range(10):
                fio("randwrite", 32, None, 0, uri=server.uri("vda"), options=changes(size, count, point))
                began = time.monotonic()
                server.backup(folder)
                incremental += time.monotonic() - began
            verify = timed(fleece, "verify", folder)
            restore = timed(fleece, "restore", folder, "--disk", "vda", "--to", restored)
            restored.unlink()
            middle = timed(fleece, "prune", folder, "--keep-last", "10")
            rest = timed(fleece, "prune", folder, "--keep-last", "1")
        shutil.rmtree(folder)
        return {"full_gib_s": size / GIB / full, "incremental_s": incremental / 10, "verify_gib_s": size / GIB / verify,
                "restore_gib_s": size / GIB / restore, "prune_oldest_s": middle, "prune_all_s": rest}

    bench.report.compare(f"{size // MIB} MiB", {"fleece": ours},
                         {"full_gib_s": None, "incremental_s": None, "verify_gib_s": None, "restore_gib_s": None,
                          "prune_oldest_s": None, "prune_all_s": None})


ROWS = {"B6": b6, "B7": b7, "sets": sets}
