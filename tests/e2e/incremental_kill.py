#!/usr/bin/python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""kill -9 of the daemon at random times while fio writes, to raw and qcow2 images and a block device; then an incremental,
which must be one, and a restore, which must be the disk."""
import contextlib
import random
import time

import harness
from backup_kit import MIB
from loop_kit import loop_device

ROUNDS = 4


def load(t, d, name, size):
    """fio's random writes, with what it does in any order; it ends with its connection."""
    return t.spawn("fio", f"--name={name}", "--ioengine=nbd", f"--uri={d.uri(name)}", "--rw=randwrite", "--bsrange=4k-64k",
                   "--bs_unaligned=1", "--iodepth=8", f"--size={size}", "--time_based", "--runtime=60", "--randrepeat=0",
                   f"--output={t.path(name)}.fio", stderr=-3)


def content(t, where):
    """Of a disk, whatever it lies in."""
    t.run("qemu-img", "convert", *where, "-O", "raw", t.path("disk.now"))
    return t.path("disk.now").read_bytes()


def check_restored(t, name, where):
    restored = t.path("restored.raw")
    restored.unlink(missing_ok=True)
    t.fleece("restore", f"{t.path('set')}@latest", "--disk", name, "--to", restored)
    assert restored.read_bytes() == content(t, where), f"{name} is not what was backed up"


def test_killed_again_and_again(t):
    harness.need("fio", "qemu-img")
    size, chance = 48 * MIB, random.Random(4)
    raw, backing, qcow2 = t.disk("a.raw", size, fill=1), t.disk("b.raw", size, fill=2), t.path("c.qcow2")
    t.run("qemu-img", "create", "-q", "-f", "qcow2", qcow2, str(size))
    with contextlib.ExitStack() as stack:
        device = stack.enter_context(loop_device(t, backing))
        disks = {"vda": raw, "vdb": device, "vdc": f"{qcow2},format=qcow2"}
        files = {"vda": ("-f", "raw", raw), "vdb": ("-f", "raw", device), "vdc": ("-f", "qcow2", qcow2)}
        state = t.path("state-dir")
        state.mkdir()
        d = t.daemon(disks, "--state-dir", state)
        d.fleece("backup", t.path("set"))
        for round_ in range(ROUNDS):
            guests = [load(t, d, name, size) for name in disks]
            time.sleep(chance.uniform(0.1, 0.6))
            d.kill()
            for guest in guests:
                guest.wait(harness.SOON)
            t.daemons.clear()
            d = t.daemon(disks, "--state-dir", state)
            said = d.fleece("backup", t.path("set")).stdout
            assert "3 incremental" in said, said
            recovery = {disk["name"]: disk["tracking"]["recovery"] for disk in d.status()["disks"]}
            assert set(recovery.values()) == {"adopted"}, recovery
            if round_ % 2 == 0:
                continue
            d.stop()  # qemu-img wants the locks
            for name, where in files.items():
                check_restored(t, name, where)
            t.daemons.clear()
            d = t.daemon(disks, "--state-dir", state)
        d.stop()
        t.run("qemu-img", "check", "-q", qcow2)
        t.fleece("verify", t.path("set"))


def test_restored_over_a_tracked_disk(t):
    """What is known of a disk's changes is void when it is restored behind the back of a daemon that was killed (C11): the
    next backup is a full one, and right."""
    image, where = t.disk("a.raw", 16 * MIB), t.path("set")
    writes = [f"write -P %d {i * 8}k 4k" for i in range(80)]  # more than there are samples
    d = t.daemon({"vda": image})
    t.run("qemu-io", "-f", "raw", "-c", "write -P 1 12M 4k", d.uri("vda"))
    d.fleece("backup", where)
    t.run("qemu-io", "-f", "raw", "-c", "write -P 5 8M 1M", *[a for w in writes for a in ("-c", w % 3)], d.uri("vda"))
    d.fleece("backup", where)
    d.stop()
    t.daemons.clear()
    d = t.daemon({"vda": image})
    t.run("qemu-io", "-f", "raw", *[a for w in writes for a in ("-c", w % 4)], d.uri("vda"))
    d.kill()
    first = min(p.name for p in where.iterdir() if p.is_dir())
    stranger = t.path("b.raw.fleece")
    stranger.write_text("a stranger's")
    t.disk("b.raw", 16 * MIB)
    for name in ("a.raw", "b.raw"):
        t.fleece("restore", f"{where}@{first}", "--disk", "vda", "--to", t.path(name), "--force")
    assert not t.path("a.raw.fleece").exists() and stranger.read_text() == "a stranger's"
    t.daemons.clear()
    d = t.daemon({"vda": image})
    said = d.fleece("backup", where, status=3)
    d.stop()
    t.path("r.raw").unlink(missing_ok=True)
    t.fleece("restore", f"{where}@latest", "--disk", "vda", "--to", t.path("r.raw"))
    assert t.path("r.raw").read_bytes() == image.read_bytes(), said.stdout + said.stderr


harness.main()
