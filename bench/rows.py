# SPDX-License-Identifier: GPL-2.0-or-later
"""The rows of the table, one function each: row_b1(bench) and so on. `bench` is the Bench of the driver `run`: its disk,
its work folder, its candidates, its times."""
import os
import statistics
import struct
import subprocess
import time

from load import Nbd, Puller, fio, floor, make_disk, timed
from servers import BUILD, Fleece, Nbdkit, Qsd

GIB = 1 << 30
SPEED = {"iops": "more", "p50_us": "less", "p99_us": "less", "p999_us": "less"}


def peers(bench, disks, threads=True, **options):
    """{name: function that makes the server} for every qemu-storage-daemon at hand."""
    return {name: lambda p=program, io=iothread, n=name: Qsd(bench.work, disks, p, io and threads, name=n, **options)
            for name, program, iothread in bench.qsds}


def floor_of(bench, kind, queue):
    """Plain disk I/O of that kind and one round trip over NBD to a device that does nothing, measured now."""
    with Nbdkit(bench.work, {"vda": None}) as server:
        return floor(kind, queue, bench.seconds, bench.disk,
                     lambda null_kind: fio(null_kind, queue, bench.seconds, 0, uri=server.uri("")))


def ram_for(size):
    """A RAM tier that takes a whole disk of old data, with its map."""
    return f"{(size >> 20) * 9 // 8 + 64}M"


def b1(bench):
    """live disk over NBD, changes tracked, no snapshot: 4 KiB random I/O"""
    disks = {"vda": bench.disk}
    servers = {"fleece": lambda: Fleece(bench.work, disks), **peers(bench, disks),
               "nbdkit": lambda: Nbdkit(bench.work, disks)}

    def measure(make, kind, queue):
        with make() as server:
            if server.kind == "fleece":
                server.checkpoint("b1")
            result = fio(kind, queue, bench.seconds, bench.ramp, uri=server.uri("" if server.kind == "nbdkit" else "vda"))
        bench.disk.with_name(f"{bench.disk.name}.fleece").unlink(missing_ok=True)
        return result

    for kind in ("randwrite", "randread"):
        for queue in (1, 32):
            candidates = {name: lambda m=make: measure(m, kind, queue) for name, make in servers.items()}
            candidates["plain fio"] = lambda: fio(kind, queue, bench.seconds, bench.ramp, path=bench.disk)
            candidates["floor"] = lambda: floor_of(bench, kind, queue)
            bench.report.compare(f"{kind}, QD{queue}", candidates, SPEED)


def snapshot_servers(bench, guest):
    """For the first (newest) peer also with its target in memory, where our old data goes."""
    disks = {"vda": bench.disk}
    return {"fleece": lambda: Fleece(bench.work, disks, ram=ram_for(bench.size), vhost=guest.vhost),
            **peers(bench, disks, vhost=guest.vhost),
            **{f"{name}, tmpfs": make
               for name, make in list(peers(bench, disks, target_dir="/dev/shm", vhost=guest.vhost).items())[:1]}}


def b2(bench, guest=Nbd, limit=floor_of):
    """snapshot active, first writes, 4 KiB random"""
    def measure(make, queue):
        with make() as server:
            server.snapshot("s")
            return guest.load(server, "randwrite", queue, bench.seconds)

    for queue in (1, 32):
        candidates = {name: lambda m=make: measure(m, queue) for name, make in snapshot_servers(bench, guest).items()}
        candidates["plain fio"] = lambda: fio("randwrite", queue, bench.seconds, 0, path=bench.disk)
        # old data is read, new data is written
        candidates["floor"] = lambda: limit(bench, "randrw", queue)
        bench.report.compare(f"first writes, QD{queue}", candidates, SPEED)


def b3(bench, guest=Nbd):
    """snapshot active, first writes, 4 KiB random, while the snapshot is pulled at full speed by nbdcopy"""
    def measure(make, queue):
        with make() as server:
            server.snapshot("s")
            with Puller(server.uri("vda@s"), bench.size) as puller:
                time.sleep(0.5)
                result = guest.load(server, "randwrite", queue, bench.seconds)
            return {**result, "pull_gib_s": puller.gib_per_second}

    for queue in (1, 32):
        candidates = {name: lambda m=make: measure(m, queue) for name, make in snapshot_servers(bench, guest).items()}
        bench.report.compare(f"pulled, QD{queue}", candidates,
                             {**SPEED, "pull_gib_s": "more"})


def b5(bench):
    """a full disk is copied, by pull and by push"""
    size = bench.size // 2
    disk = make_disk(bench.work / "copied.raw", size)
    disks = {"vda": disk}
    target = bench.work / "copy"

    def rate(seconds):
        if target.is_dir():
            subprocess.run(["rm", "-rf", target], check=True)
        else:
            target.unlink(missing_ok=True)
        return {"gib_s": size / GIB / seconds}

    def pull(make, *to):
        with make() as server:
            server.snapshot("s")
            return rate(timed("nbdcopy", *to[1:], server.uri("vda@s"), to[0]))

    def backup():
        with Fleece(bench.work, disks, ram=ram_for(size)) as server:
            started = time.monotonic()
            server.cli("backup", target)
            return rate(time.monotonic() - started)

    def push():
        with Fleece(bench.work, disks, ram=ram_for(size)) as server:
            started = time.monotonic()
            server.push(target)
            return rate(time.monotonic() - started)

    def job(make):
        with make() as server:
            started = time.monotonic()
            server.full_backup(target)
            seconds = time.monotonic() - started
            return rate(seconds)

    servers = {"fleece": lambda: Fleece(bench.work, disks, ram=ram_for(size)), **peers(bench, disks)}
    def dd(to, *flags):
        return rate(timed("dd", f"if={disk}", f"of={to}", "bs=1M", "iflag=direct", *flags))

    copies = {
        "dd": lambda: dd(target, "oflag=direct", "conv=fsync"),
        "cp": lambda: rate(timed("sh", "-c", f"cp --reflink=never '{disk}' '{target}' && sync '{target}'"))}
    bench.report.compare("pull by nbdcopy to nowhere",
                         {**{n: lambda m=make: pull(m, "null:") for n, make in servers.items()},
                          "dd": lambda: dd("/dev/null")}, {"gib_s": "more"})
    bench.report.compare("pull by nbdcopy into a new file, flushed",
                         {**{n: lambda m=make: pull(m, target, "--flush") for n, make in servers.items()},
                          "dd": copies["dd"]}, {"gib_s": "more"})
    jobs = peers(bench, disks, threads=False)  # 10.0: the same assertion as in b8
    bench.report.compare("push into a new file: fleece push (flushed), QEMU's job (no fsync), dd, cp (fsync)",
                         {"fleece": push, **{n: lambda m=make: job(m) for n, make in jobs.items()}, **copies},
                         {"gib_s": "more"})
    bench.report.compare("a backup set: fleece backup (SHA-256 and fsync), dd, cp (fsync)", {"fleece": backup, **copies},
                         {"gib_s": "more"})


def acknowledgements(path):
    """The (issue, acknowledgement) times of a log of stamp, in nanoseconds, in the order of the latter."""
    issued, pairs = {}, []
    with open(path, "rb") as log:
        log.seek(4096)
        for sequence, when, disk, writer, kind in struct.iter_unpack("<QQHHI", log.read()):
            if kind == 1:
                issued[disk, writer, sequence] = when
            elif kind == 2:
                pairs.append((issued.pop((disk, writer, sequence)), when))
    return sorted(pairs, key=lambda pair: pair[1])


def hold_seen(pairs, begin, end):
    """What the guest saw of a cut between two times: the slowest write under way then, the slowest of as long a time
    before it, and the longest time without an acknowledgement of any disk."""
    during = [done - sent for sent, done in pairs if sent < end and done > begin]
    margin = max(end - begin, 100_000_000)
    before = [done - sent for sent, done in pairs if sent < begin and done > begin - margin]
    times = [done for _, done in pairs if begin - margin < done < end + margin]
    silences = [b - a for a, b in zip(times, times[1:]) if b > begin and a < end]
    return {"slowest_us": max(during, default=0) / 1000, "slowest_before_us": max(before, default=0) / 1000,
            "silence_us": max(silences, default=0) / 1000}


def cut_once(server, name):
    """A cut, a moment of life with it, and its end: when it began and ended, and what the daemon says about the hold."""
    time.sleep(0.4)
    if server.kind == "fleece":
        begin = time.monotonic_ns()
        held = server.snapshot(name)
        seen = {"begin": begin, "end": time.monotonic_ns(), "held_us": held / 1000}
        time.sleep(0.2)
        server.snapshot_delete(name)
        return seen
    act = server.backup_transaction()
    begin = time.monotonic_ns()
    act()
    seen = {"begin": begin, "end": time.monotonic_ns()}
    time.sleep(0.2)
    server.backup_cancel()
    return seen


def b8(bench):
    """a cut over 8 busy disks"""
    disks = {}
    for i in range(8):
        path = bench.work / f"disk{i}.raw"
        if not path.exists():
            with open(path, "wb") as f:
                os.posix_fallocate(f.fileno(), 0, 64 << 20)
            subprocess.run(["dd", "if=/dev/zero", f"of={path}", "bs=1M", "count=64", "oflag=direct", "status=none"],
                           check=True)
        disks[f"vd{'abcdefgh'[i]}"] = path
    log = bench.work / "stamp.log"

    def measure(make, cuts=5):
        with make() as server:
            writer = subprocess.Popen([BUILD / "tests/tools/stamp", "write", *map(server.uri, disks), "--log", log,
                                       "--writers", "2", "--region", "0:64M"], stdout=subprocess.DEVNULL)
            try:
                seen = [cut_once(server, f"s{cut}") for cut in range(cuts)]
            finally:
                writer.terminate()
                status = writer.wait()
            if status != 0:
                raise SystemExit("stamp failed")
        pairs = acknowledgements(log)
        all_seen = [{**hold_seen(pairs, s["begin"], s["end"]), "command_us": (s["end"] - s["begin"]) / 1000,
                     **({"held_us": s["held_us"]} if "held_us" in s else {})} for s in seen]
        result = {key: statistics.median(s[key] for s in all_seen) for key in all_seen[0]}
        return {**result, "added_us": statistics.median(s["slowest_us"] - s["slowest_before_us"] for s in all_seen),
                "iops": len(pairs) / ((pairs[-1][1] - pairs[0][0]) / 1e9), "cuts": all_seen}

    # Without an iothread: qemu-storage-daemon 10.0 ends with an assertion (bdrv_insert_node) when it gets such a
    # transaction while exports in an iothread are written to.
    servers = {"fleece": lambda: Fleece(bench.work, disks, ram="1G"), **peers(bench, disks, threads=False)}
    bench.report.compare("8 disks, 2 writers each, QD1 per writer (median of 5 cuts a run)",
                         {name: lambda m=make: measure(m) for name, make in servers.items()},
                         {"held_us": "less", "slowest_us": "less", "silence_us": "less", "command_us": "less",
                          "slowest_before_us": None, "added_us": None, "iops": None})


def b10(bench):
    """null device over NBD: the cost of our own code"""
    disks = {"vda": None}
    servers = {"fleece": lambda: Fleece(bench.work, disks), **peers(bench, disks),
               "nbdkit": lambda: Nbdkit(bench.work, disks)}

    def measure(make, kind, queue):
        with make() as server:
            uri = server.uri("" if server.kind == "nbdkit" else "vda")
            before = server.cpu_seconds()
            result = fio(kind, queue, bench.seconds, 0, uri=uri)
            used = server.cpu_seconds() - before
            return {**result, "cpu_us": used * 1e6 / result["requests"]}

    for kind in ("randwrite", "randread"):
        for queue in (1, 32):
            candidates = {name: lambda m=make: measure(m, kind, queue) for name, make in servers.items()}
            bench.report.compare(f"null, {kind}, QD{queue}", candidates, {**SPEED, "cpu_us": "less"})


ROWS = {"B1": b1, "B2": b2, "B3": b3, "B5": b5, "B8": b8, "B10": b10}
