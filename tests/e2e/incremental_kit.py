# SPDX-License-Identifier: GPL-2.0-or-later
"""What tests of incremental backups share: a guest that knows what it has changed, and qemu-img as the judge of points."""
import json
import os
import random
import shutil

import nbd

import harness
from backup_kit import MIB

BLOCK = 4096


class Guest:
    """Writes to the disks of a VM, and knows which blocks it has touched."""

    def __init__(self, d, sizes, seed=1):
        self.random, self.sizes, self.touched = random.Random(seed), sizes, {name: set() for name in sizes}
        self.disks = {}
        for name in sizes:
            self.disks[name] = nbd.NBD()
            self.disks[name].connect_uri(d.uri(name))

    def note(self, name, start, length):
        self.touched[name].update(range(start // BLOCK, (start + length - 1) // BLOCK + 1))

    def work(self, count):
        """Writes, zeroes and discards of odd places and lengths."""
        for _ in range(count):
            name = self.random.choice(sorted(self.sizes))
            length = self.random.choice([512, 512, 4096, 4096, 12800, 70000 // 512 * 512])
            start = self.random.randrange(0, self.sizes[name] - length, 512)
            kind = self.random.randrange(6)
            if kind == 0:
                self.disks[name].zero(length, start)
            elif kind == 1:
                self.disks[name].trim(length, start)
            else:
                self.disks[name].pwrite(self.random.randbytes(length), start)
            self.note(name, start, length)

    def captured(self):
        """How many bytes an incremental backup now has to capture of each disk; forgets them."""
        found = {}
        for name, blocks in self.touched.items():
            found[name] = sum(min(BLOCK, self.sizes[name] - block * BLOCK) for block in blocks)
        self.touched = {name: set() for name in self.sizes}
        return found

    def leave(self):
        for disk in self.disks.values():
            disk.shutdown()


def keep(t, paths, number):
    """Copies of the disks as they are."""
    for name, path in paths.items():
        shutil.copyfile(path, t.path(f"{name}.{number}"))


def check_point(t, point, number, names, leaks=False):
    """What qemu-img makes of the images of a point, against the copies of keep(). leaks: clusters may be lost in it."""
    folder = t.path("set") / point
    for name in names:
        kind = "qcow2" if (folder / f"{name}.qcow2").exists() else "raw"
        image = folder / f"{name}.{kind}"
        if kind == "qcow2":
            done = t.run("qemu-img", "check", "-f", kind, image, status=None)
            assert done.returncode == 0 or (leaks and done.returncode == 3), done
        t.run("qemu-img", "compare", "-f", "raw", "-F", kind, t.path(f"{name}.{number}"), image)
    assert sorted(os.listdir(folder)) == sorted([f"{n}.sha256" for n in names] + ["manifest.json"] +
                                                [i for i in os.listdir(folder) if i.endswith(("raw", "qcow2"))])


def disks_of(line):
    return {disk["name"]: disk for disk in line["disks"]}


def backup(d, where, *options, status=0):
    """The last line of a backup."""
    return json.loads(d.fleece("--json", "backup", where, *options, status=status).stdout.splitlines()[-1])


def checkpoints(d):
    with d.qmp() as qmp:
        return qmp.execute("fleece-query-checkpoints")


SIZES = {"vda": 10 * MIB + 512, "vdb": 3 * MIB + 3 * BLOCK}


def start(t, *options, sizes=None):
    harness.need("qemu-img")
    paths = {name: t.disk(f"{name}.img", size, fill=1) for name, size in (sizes or SIZES).items()}
    return paths, t.daemon(paths, *options)
