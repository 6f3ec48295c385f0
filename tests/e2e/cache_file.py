#!/usr/bin/python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""The disk tier and its cache file: where it is made, what is in it, that it is bounded, and that it goes."""
import contextlib
import json
import os
import pathlib
import random
import re
import time

import nbd

import harness

KIB, MIB = 1 << 10, 1 << 20
BLOCK = 4 * KIB
PAGE = "docs/formats/cache-file.md"
MARK = "<!-- tests/e2e/cache_file.py runs this -->\n\n```python\n"


def reader(t):
    """The reader that the format's page shows, as a program."""
    text = (harness.ROOT / PAGE).read_text()
    assert text.count(MARK) == 1, f"{PAGE}: one reader is expected"
    path = t.path("reader.py")
    path.write_text(text.split(MARK)[1].split("```")[0])
    return path


def caches(folder):
    return sorted(p for p in pathlib.Path(folder).iterdir() if ".fleece-cache" in p.name)


def used(path):
    """Bytes that the file takes, as du counts them."""
    return path.stat().st_blocks * 512


def with_map(size):
    """What a file with so much data may take: where its pieces lie apart, the file system notes each."""
    return size + size // 64 + 64 * KIB


class Guest:
    """A client of the live disk that knows what it has written."""

    def __init__(self, daemon, image, seed=1, disk="vda"):
        self.daemon, self.content = daemon, bytearray(image.read_bytes())
        self.random = random.Random(seed)
        self.client = nbd.NBD()
        self.client.connect_uri(daemon.uri(disk))
        self.shuffled = list(range(len(self.content) // BLOCK))
        self.random.shuffle(self.shuffled)

    def write(self, start, data):
        self.client.pwrite(data, start)
        self.content[start:start + len(data)] = data

    def dirty(self, count, check=None):
        """Overwrites blocks of the disk in random order, each once."""
        for i, block in enumerate(self.shuffled[:count]):
            self.write(block * BLOCK, self.random.randbytes(512) + bytes(block % 7 * 512))
            if check and i % 64 == 0:
                check()
        del self.shuffled[:count]

    def end(self):
        self.client.shutdown()


def settled(daemon):
    """The status once nothing is on its way to the file."""
    def look():
        nonlocal status
        last, status = status, daemon.status()
        return last and last["cache"] == status["cache"] and last["disks"] == status["disks"]
    status = None
    harness.wait_for("the cache is settled", look, pause=0.1)
    return status


def snapshot_bytes(t, daemon, export):
    out = t.path("snapshot.img")
    t.run("nbdcopy", daemon.uri(export), out)
    data = out.read_bytes()
    out.unlink()
    return data


def check_budgets(daemon, folder, ram, most, idle):
    status = daemon.status()
    assert status["cache"]["bytes"] <= ram and status["cache"]["file-bytes"] <= most, status["cache"]
    taken = sum(used(p) for p in caches(folder))
    assert taken <= with_map(most), (taken, most)
    assert not harness.PLAIN or daemon.memory() <= idle + ram + 8 * MIB, (idle, daemon.memory())


def test_what_memory_cannot_hold_is_spilled(t):
    """Little memory, a large disk tier, random writes all over an odd-sized disk: the snapshot is right, the budgets hold,
    status and du agree, the documented reader finds what was preserved; released space is given back; the file goes."""
    image = t.disk("a.raw", 12 * MIB + 512, fill=1)
    before = image.read_bytes()
    d = t.daemon({"vda": image}, "--fleece", "ram=4M,max=64M")
    idle = d.memory()
    assert d.status()["cache"]["file-bytes-max"] == 64 * MIB and caches(t.dir) == []
    d.fleece("snapshot", "create", "s")
    file = t.path(f"{t.vm}.vda.fleece-cache")
    assert caches(t.dir) == [file] and file.stat().st_mode & 0o777 == 0o600
    listed = json.loads(t.run("nbdinfo", "--list", "--json", d.uri("")).stdout)["exports"]
    assert sorted(e["export-name"] for e in listed) == ["vda", "vda@s"], "a cache file is nobody's disk"
    guest = Guest(d, image)
    guest.dirty(1700, lambda: check_budgets(d, t.dir, 4 * MIB, 64 * MIB, idle))
    guest.write(12 * MIB, b"tail" * 128)
    status = settled(d)
    disk, cache = status["disks"][0], status["cache"]
    assert disk["block-size"] == BLOCK and disk["blocks-preserved"] == 1701 and disk["errors"] == 0, disk
    assert disk["ram-blocks"] + disk["file-blocks"] + disk["zero-blocks"] == disk["cache-blocks"] == 1701, disk
    assert disk["file-blocks"] >= 1701 - 4 * MIB // BLOCK and disk["spilled-bytes"] >= disk["file-blocks"] * BLOCK
    assert disk["file-blocks"] * BLOCK <= used(file) <= with_map(cache["file-bytes"]), (used(file), cache)
    assert cache["file-bytes"] <= cache["file-bytes-peak"] <= 64 * MIB
    assert snapshot_bytes(t, d, "vda@s") == before

    listed = t.run("/usr/bin/python3", reader(t), file).stdout.splitlines()
    found = {}
    for line in listed:
        block, epoch, offset = map(int, re.fullmatch(r"block (\d+) epoch (\d+) at (\d+)", line).groups())
        assert epoch == 1 and block not in found, line
        found[block] = offset
    assert len(found) == disk["file-blocks"], (len(found), disk)
    raw = file.read_bytes()
    for block, offset in found.items():
        old = before[block * BLOCK:(block + 1) * BLOCK]
        assert raw[offset:offset + len(old)] == old, f"block {block}"
    # On a copy of the disk, only what is in memory is missing then.
    copy = t.path("copy.img")
    copy.write_bytes(guest.content)
    t.run("/usr/bin/python3", t.path("reader.py"), file, 1, copy)
    put = copy.read_bytes()
    wrong = {at // BLOCK for at in range(0, len(before), BLOCK) if put[at:at + BLOCK] != before[at:at + BLOCK]}
    assert len(put) == len(before) and not wrong & found.keys() and len(wrong) <= disk["ram-blocks"], len(wrong)

    # Released in the order of the disk, segments of blocks in random order get holes at first, and empty at the end.
    old = nbd.NBD()
    old.connect_uri(d.uri("vda@s"))
    old.trim(12 * MIB, 0)
    old.shutdown()
    harness.wait_for("the space is given back", lambda: used(file) <= 64 * KIB)
    status = settled(d)
    assert status["disks"][0]["file-blocks"] <= 1 and status["cache"]["file-bytes"] <= 2 * MIB, status
    d.fleece("snapshot", "delete", "s")
    assert caches(t.dir) == []
    guest.end()
    assert image.read_bytes() == guest.content
    d.stop()


def test_gaps_are_used_again_and_two_disks_share_the_budget(t):
    """Snapshots come and go while others stay: what they leave in segments is filled, at no more than the budget."""
    images = {"vda": t.disk("a.raw", 8 * MIB, fill=1), "vdb": t.disk("b.raw", 8 * MIB, fill=2)}
    d = t.daemon(images, "--fleece", "ram=4M,max=30M", "--io-threads", "2")
    guests = [Guest(d, image, disk=disk) for disk, image in images.items()]
    kept = {}
    for i in range(4):
        name = f"s{i}"
        d.fleece("snapshot", "create", name)
        kept[name] = [bytes(guest.content) for guest in guests]
        for guest in guests:
            guest.shuffled = list(range(i * 100, 2048, 3 + i))[:500]
            guest.dirty(500)
        assert d.status()["cache"]["file-bytes"] <= 30 * MIB
        if i % 2:
            gone = f"s{i - 1}"
            d.fleece("snapshot", "delete", gone)
            del kept[gone]
        for old, contents in kept.items():
            for disk, content in zip(images, contents):
                assert snapshot_bytes(t, d, f"{disk}@{old}") == content, (old, disk)
    assert len(caches(t.dir)) == 2 and all(d.status()["disks"][i]["spilled-bytes"] for i in (0, 1))
    for name in kept:
        d.fleece("snapshot", "delete", name)
    assert caches(t.dir) == []
    for guest in guests:
        guest.end()
    d.stop()


def test_block_sizes(t):
    """From many slots a segment to one, on a disk whose last block is not whole."""
    for size, most in ((16 * KIB, "32M"), (256 * KIB, "32M"), (4 * MIB, "48M")):
        image = t.disk("a.raw", 10 * MIB + 3 * 512, fill=1)
        before = image.read_bytes()
        d = t.daemon({"vda": f"{image},granularity={size}"}, "--fleece", f"ram=9M,max={most}")
        d.fleece("snapshot", "create", "s1")
        guest = Guest(d, image)
        guest.dirty(1300)
        guest.write(10 * MIB + 512, b"end." * 128)
        between = bytes(guest.content)
        d.fleece("snapshot", "create", "s2")
        guest.dirty(1200)
        disk = settled(d)["disks"][0]
        assert disk["block-size"] == size and disk["file-blocks"] > 0, disk
        assert [s["state"] for s in d.status()["snapshots"]] == ["live", "live"]
        assert snapshot_bytes(t, d, "vda@s1") == before and snapshot_bytes(t, d, "vda@s2") == between
        guest.end()
        d.stop()
        assert caches(t.dir) == []


def test_deleting_merges_nothing_and_takes_no_time(t):
    """However much was preserved, and while the guest writes: the disk is not touched, and nobody waits for the space."""
    image = t.disk("a.raw", 24 * MIB, fill=1)
    d = t.daemon({"vda": image}, "--fleece", "ram=4M,max=96M")
    guest = Guest(d, image)
    took = {1: [], 3000: []}
    for blocks in (1, 3000) * 5:
        d.fleece("snapshot", "create", "s")
        guest.dirty(blocks)
        status = settled(d)
        assert status["disks"][0]["cache-blocks"] == blocks and (blocks == 1 or status["cache"]["file-bytes"] > 4 * MIB)
        with open(f"/proc/{d.pid}/io", encoding="ascii") as f:
            before = f.read()
        start = time.monotonic()
        d.fleece("snapshot", "delete", "s")
        took[blocks].append(time.monotonic() - start)
        with open(f"/proc/{d.pid}/io", encoding="ascii") as f:
            written = [int(re.search(r"^write_bytes: (\d+)", text, re.M)[1]) for text in (before, f.read())]
        assert written[1] - written[0] < MIB, "something was copied"
        status = d.status()
        assert caches(t.dir) == [] and status["cache"]["file-bytes"] == 0 and not status["disks"][0]["copy-before-write"]
        if took[3000] and min(took[3000]) < min(took[1]) + 0.3 * harness.FACTOR:
            break
    else:
        raise AssertionError(f"it takes long when there is much to delete: {took}")
    guest.end()
    d.stop()
    assert image.read_bytes() == guest.content


def test_gone_whatever_the_end(t):
    """Success, failure and cancel of a backup, a broken snapshot, SIGTERM: the folder is as it was."""
    image, target = t.disk("a.raw", 16 * MIB, fill=1), t.path("set")
    d = t.daemon({"vda": image}, "--fleece", "ram=4M,max=8M")
    listing = sorted(os.listdir(t.dir))
    d.fleece("backup", target)
    assert caches(t.dir) == [] and d.status()["snapshots"] == []
    assert sorted(os.listdir(t.dir)) == sorted([*listing, "set", "a.raw.fleece"])  # the disk is tracked from now on
    with d.qmp() as client:
        client.execute("fleece-snapshot-create", name="leased", lease=True)
        assert len(caches(t.dir)) == 1
    harness.wait_for("the lease has ended", lambda: not caches(t.dir))
    d.fleece("backup", "/proc/nowhere", status=1)
    harness.wait_for("the failed backup's snapshot is gone", lambda: not caches(t.dir))
    # Both tiers full: the snapshot breaks, the guest goes on, the file stays until the snapshot is deleted.
    d.fleece("snapshot", "create", "s")
    guest = Guest(d, image)
    guest.dirty(4096)
    [broken] = d.status()["snapshots"]
    assert broken["state"] == "broken" and d.status()["disks"][0]["errors"] == 0, broken
    assert d.status()["cache"]["file-bytes-peak"] <= 8 * MIB
    d.fleece("snapshot", "delete", "s")
    assert caches(t.dir) == []
    d.fleece("snapshot", "create", "s")
    guest.dirty(10)
    guest.end()
    assert len(caches(t.dir)) == 1
    d.stop()
    assert caches(t.dir) == [] and image.read_bytes() == guest.content


def test_left_overs_and_decoys(t):
    """A killed daemon's file is identified by its header; the next start removes it, whatever its own options are, and
    touches nothing that only looks like one."""
    image = t.disk("a.raw", 16 * MIB, fill=1)
    file = t.path(f"{t.vm}.vda.fleece-cache")
    for options in (["--fleece", "ram=4M,max=64M"], []):
        d = t.daemon({"vda": image}, "--fleece", "ram=4M,max=64M")
        d.fleece("snapshot", "create", "--ephemeral", "s")
        guest = Guest(d, image)
        guest.dirty(1500)
        guest.end()
        d.kill()
        assert caches(t.dir) == [file]
        assert not options or t.run("/usr/bin/python3", reader(t), file).stdout.count("block ") > 100
        header = file.read_bytes()[:4096]
        decoys = {f"{t.vm}.vda.fleece-cache-1": b"mine", f"{t.vm}.vdb.fleece-cache": header[:100] + b"x" + header[101:],
                  f"other.{t.vm}.vda.fleece-cache": header, f"{t.vm}.vdc.fleece-cache": b""}
        for name, content in decoys.items():
            t.path(name).write_bytes(content)
        t.path(f"{t.vm}.vdd.fleece-cache").symlink_to(file)
        t.path(f"{t.vm}.vde.fleece-cache").mkdir()
        os.mkfifo(t.path(f"{t.vm}.vdf.fleece-cache"))
        others = [p for p in caches(t.dir) if p != file]
        d = t.daemon({"vda": image}, *options)
        assert caches(t.dir) == others
        assert f"removed the cache file {file}, left behind by a killed daemon" in d.log(), d.log()
        assert image.read_bytes() == guest.content
        d.stop()
        for name, content in decoys.items():
            assert t.path(name).read_bytes() == content
        for path in others:
            path.rmdir() if path.is_dir() and not path.is_symlink() else path.unlink()


def test_a_strangers_file_keeps_its_name(t):
    image = t.disk("a.raw", 4 * MIB, fill=1)
    mine = t.path(f"{t.vm}.vda.fleece-cache")
    mine.write_text("mine")
    d = t.daemon({"vda": image}, "--fleece", "max=64M")
    d.fleece("snapshot", "create", "s")
    assert caches(t.dir) == [mine, t.path(f"{t.vm}.vda.fleece-cache-1")]
    assert mine.read_text() == "mine"
    # Somebody replaces ours: theirs stays, and nothing is said to the guest.
    ours = t.path(f"{t.vm}.vda.fleece-cache-1")
    ours.rename(t.path("elsewhere"))
    ours.write_text("theirs")
    d.fleece("snapshot", "delete", "s")
    assert ours.read_text() == "theirs" and t.path("elsewhere").exists()
    d.stop()


def test_places(t):
    """dir=, on another file system; beside what a link points at; the state folder for block devices; refusals."""
    def refuse(status, text, *options, disk=None):
        done = t.run(t.program("fleeced"), "--name", t.vm, "--disk", f"vda={disk or image}", *options, status=status)
        assert len(done.stderr.splitlines()) == 1 and text in done.stderr, done.stderr

    image = t.disk("a.raw", 8 * MIB, fill=1)
    refuse(1, f"--fleece: the folder {t.path('none')} for the cache of disk vda: No such file", "--fleece",
           f"dir={t.path('none')}")
    refuse(1, "is not a folder", "--fleece", f"dir={image}")
    refuse(1, "max=8388608 is not right: these disks need", "--fleece", "max=8M", "--disk",
           f"vdb={t.disk('b.raw', MIB)},granularity=4M", "--disk", f"vdc={t.disk('c.raw', MIB)},granularity=4M")
    refuse(2, "--fleece: max=1M is not right: from 8M to 8T", "--fleece", "max=1M")
    refuse(1, "disk vda is a null disk, which has no folder for a cache file: name one with dir=DIR", "--fleece", "max=8M",
           disk=",driver=null,size=1M")

    with contextlib.ExitStack() as stack:
        elsewhere = pathlib.Path(f"/dev/shm/{t.vm}")  # a file system without direct I/O, on most kernels
        elsewhere.mkdir()
        stack.callback(lambda: elsewhere.exists() and elsewhere.rmdir())
        before = image.read_bytes()
        d = t.daemon({"vda": image, "cd": f"{t.path('b.raw')},read-only=on"}, "--fleece", f"ram=4M,dir={elsewhere}")
        d.fleece("snapshot", "create", "s")
        assert [p.name for p in caches(elsewhere)] == [f"{t.vm}.vda.fleece-cache"], "none for the read-only disk"
        assert caches(t.dir) == [] and d.status()["cache"]["file-bytes-max"] >= 8 * MIB
        guest = Guest(d, image)
        guest.dirty(2048)
        assert d.status()["snapshots"][0]["state"] == "live", "as large as the disks by default"
        assert snapshot_bytes(t, d, "vda@s") == before
        d.fleece("snapshot", "delete", "s")
        assert caches(elsewhere) == []
        guest.end()
        d.stop()

    gone = t.path("gone")
    gone.mkdir()
    d = t.daemon({"vda": image}, "--fleece", f"ram=4M,dir={gone}")
    gone.rmdir()
    said = d.fleece("snapshot", "create", "s", status=1).stderr
    assert f"for disk vda can be made in {gone}: No such file" in said and d.status()["snapshots"] == [], said
    gone.mkdir()
    d.fleece("snapshot", "create", "s")
    d.stop()

    t.path("far").mkdir()
    image.rename(t.path("far/a.raw"))
    image.symlink_to("far/a.raw")
    d = t.daemon({"vda": image}, "--fleece", "max=8M")
    d.fleece("snapshot", "create", "s")
    assert len(caches(t.path("far"))) == 1 and caches(t.dir) == []
    d.stop()

    made = t.run("losetup", "--show", "-f", t.path("far/a.raw"), status=None)
    if made.returncode == 0:
        device = made.stdout.strip()
        try:
            refuse(1, "disk vda is a block device, which has no folder for a cache file", "--fleece", "max=8M", disk=device)
            d = t.daemon({"vda": device}, "--fleece", "max=8M", "--state-dir", t.path("state"))
            d.fleece("snapshot", "create", "s")
            assert len(caches(t.path("state"))) == 1
            d.stop()
            assert caches(t.path("state")) == []
        finally:
            t.run("losetup", "-d", device)


@contextlib.contextmanager
def mounted(t, *arguments):
    """A file system in a folder of its own; skips the test where nothing can be mounted."""
    folder = t.path("mounted")
    folder.mkdir(exist_ok=True)
    if t.run("mount", *arguments, folder, status=None).returncode != 0:
        raise harness.Skip("nothing can be mounted here")
    try:
        yield folder
    finally:
        t.run("umount", folder, status=None) if not os.environ.get("FLEECE_KEEP") else None


def overflow(t, image, folder, options, said):
    """Writes more than the cache takes: the guest never sees an error, the snapshot breaks and says why."""
    d = t.daemon({"vda": image}, "--fleece", f"ram=4M,dir={folder},{options}")
    d.fleece("snapshot", "create", "s")
    guest = Guest(d, image)
    guest.dirty(4000)
    status = d.status()
    [snapshot] = status["snapshots"]
    assert snapshot["state"] == "broken" and re.search(said, snapshot["reason"]), snapshot
    assert status["disks"][0]["errors"] == 0
    reading = t.run("nbdcopy", d.uri("vda@s"), "null:", status=None)
    assert reading.returncode != 0, "a broken snapshot was served"
    d.fleece("snapshot", "delete", "s")
    assert caches(folder) == []
    guest.end()
    d.stop()
    assert image.read_bytes() == guest.content


def test_full_file_system(t):
    image = t.disk("a.raw", 16 * MIB, fill=1)
    with mounted(t, "-t", "tmpfs", "-o", "size=3M", "none") as folder:
        overflow(t, image, folder, "max=64M,cbw-timeout=0.5", "No space left|cache")


def test_failing_cache_device(t):
    """An ext4 on a loop device whose own file can't grow: writes beyond 6 MiB fail as I/O errors."""
    harness.need("mkfs.ext4", "losetup")
    image = t.disk("a.raw", 16 * MIB, fill=1)
    with mounted(t, "-t", "tmpfs", "-o", "size=6M", "none") as small:
        backing = small / "fs"
        with open(backing, "wb") as f:
            f.truncate(64 * MIB)
        t.run("mkfs.ext4", "-q", "-O", "^has_journal", "-E", "nodiscard", backing)
        t.path("inner").mkdir()
        if t.run("mount", "-o", "loop", backing, t.path("inner"), status=None).returncode != 0:
            raise harness.Skip("nothing can be mounted here")
        try:
            overflow(t, image, t.path("inner"), "max=48M,cbw-timeout=0.5", "error|space|cache")
        finally:
            t.run("umount", t.path("inner"), status=None)


def test_stalled_cache_device(t):
    """The cache's file system hangs: a guest's write waits cbw-timeout at most, then the snapshot pays."""
    harness.need("mkfs.ext4", "losetup", "fsfreeze")
    image = t.disk("a.raw", 16 * MIB, fill=1)
    backing = t.disk("fs", 64 * MIB)
    t.run("mkfs.ext4", "-q", backing)
    with mounted(t, "-o", "loop", backing) as folder:
        d = t.daemon({"vda": image}, "--fleece", f"ram=4M,max=48M,dir={folder},cbw-timeout=1")
        d.fleece("snapshot", "create", "s")
        guest = Guest(d, image)
        t.run("fsfreeze", "-f", folder)
        try:
            slowest = 0.0
            for _ in range(2000):
                start = time.monotonic()
                guest.dirty(1)
                slowest = max(slowest, time.monotonic() - start)
            assert slowest < 9 * harness.FACTOR, f"a write took {slowest:.1f} s"  # 10 s would be the default
            [snapshot] = d.status()["snapshots"]
            assert snapshot["state"] == "broken" and d.status()["disks"][0]["errors"] == 0, snapshot
        finally:
            t.run("fsfreeze", "-u", folder)
        d.fleece("snapshot", "delete", "s")
        assert caches(folder) == []
        guest.end()
        d.stop()


harness.main()
