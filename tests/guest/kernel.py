#!/usr/bin/python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""fleeced on other kernels than this machine's: inside a guest with Debian's own kernel, and here with the newer
features of io_uring masked. Both do the same: two disks (a block device, a file on ext4), a snapshot, writes over it."""
import shutil

import harness
import machine

# What both run, with $vda and $vdb set: A is written to both disks, the snapshot is taken, B is written over it.
ROUND = r"""
fail() { echo "ROUND failed: $*"; tail -n 20 /tmp/fleeced.log "$dir/fleeced.log" 2>/dev/null; exit 1; }
fleeced --name k --disk vda=$vda --disk vdb=$vdb --nbd unix:$dir/n.sock --control $dir/c.sock 2>$dir/fleeced.log &
pid=$!
n=0
until fleece --control $dir/c.sock status >/dev/null 2>&1; do
    n=$((n + 1)); [ $n -lt 600 ] || fail "the daemon does not answer"; kill -0 $pid || fail "the daemon ended"; sleep 0.2
done
fleece --control $dir/c.sock status | grep io_uring
for disk in vda vdb; do
    nbdcopy --flush $dir/A "nbd+unix:///$disk?socket=$dir/n.sock" || fail "writing A"
done
fleece --control $dir/c.sock snapshot create s || fail "the snapshot"
for disk in vda vdb; do
    nbdcopy --flush $dir/B "nbd+unix:///$disk?socket=$dir/n.sock" || fail "writing B"
    nbdcopy "nbd+unix:///$disk@s?socket=$dir/n.sock" $dir/copy || fail "reading the snapshot"
    cmp $dir/A $dir/copy || fail "the snapshot of $disk is not what was there"
    nbdcopy "nbd+unix:///$disk?socket=$dir/n.sock" $dir/copy || fail "reading the live disk"
    cmp $dir/B $dir/copy || fail "the live $disk is not what was written"
done
fleece --control $dir/c.sock snapshot delete s || fail "deleting the snapshot"
kill -TERM $pid
wait $pid || fail "the daemon ended with $?"
[ ! -e $dir/c.sock ] && [ ! -e $dir/n.sock ] || fail "a socket was left behind"
echo "ROUND done"
"""
SIZE = 6 << 20  # also the size of /dev/vda in the guest
GUEST_SCRIPT = r"""#!/bin/sh
export PATH=/bin
uname -r
mkdir -p /dev/shm /disk
mount -t tmpfs none /dev/shm
mount -t tmpfs none /tmp
i=0; until [ -b /dev/vdb ] || [ $i = 600 ]; do i=$((i + 1)); sleep 0.1; done
mount -t ext4 /dev/vdb /disk || echo "ROUND failed: no disk"
ulimit -l
export dir=/tmp vda=/dev/vda vdb=/disk/b.raw
cp /A /B /tmp
sh /round
sync
umount /disk
poweroff -f
"""


def patterns(t):
    a, b = t.disk("A", SIZE, fill=1), t.disk("B", SIZE, fill=2)
    return a, b, t.disk("b.raw", SIZE)


def test_debian_kernel(t):
    harness.need("qemu-system-x86_64", "nbdcopy")
    programs = {f"/bin/{p.name}": p for p in (t.program("fleeced"), t.program("fleece"))}
    programs["/bin/nbdcopy"] = shutil.which("nbdcopy")
    a, b, image = patterns(t)
    t.path("round").write_text(ROUND)
    files = {**programs, **{path: path for path in machine.libraries(*programs.values())},
             "/A": a, "/B": b, "/round": t.path("round")}
    initrd = machine.initramfs(files, GUEST_SCRIPT)
    (t.path("tree")).mkdir()
    shutil.copy(image, t.path("tree/b.raw"))
    t.disk("vda.raw", SIZE)
    machine.ext4(t.path("vdb.raw"), 32 << 20, t.path("tree"))
    drives = [x for name in ("vda", "vdb") for x in ("-drive", f"file={t.path(name)}.raw,format=raw,if=virtio")]
    guest = machine.Guest(t, ["qemu-system-x86_64", "-accel", "tcg", "-m", "512", "-smp", "2", *drives,
                              "-no-reboot", *machine.qemu_arguments(initrd, "panic=-1")])
    text = guest.end(600)
    initrd.unlink()
    release = machine.kernel()[1].name
    assert release in text and "ROUND done" in text, text
    t.run("/sbin/e2fsck", "-fn", t.path("vdb.raw"))
    t.run("/sbin/debugfs", "-R", f"dump /b.raw {t.path('b.found')}", t.path("vdb.raw"))
    for found in (t.path("vda.raw"), t.path("b.found")):
        assert found.read_bytes() == b.read_bytes(), f"{found.name} lost what was written to it"


def masked_round(t, features):
    harness.need("nbdcopy")
    t.program("fleeced"), t.program("fleece")
    _, _, image = patterns(t)
    environment = dict(t.environment, dir=str(t.dir), vda=str(t.disk("a.raw", SIZE)), vdb=str(image),
                       FLEECE_RING_FEATURES=features, PATH=f"{harness.BUILD}:{t.environment['PATH']}")
    return t.run("sh", "-c", ROUND, env=environment).stdout


def test_masked_features(t):
    said = masked_round(t, "none")
    assert "ROUND done" in said and "single issuer" not in said and "deferred" not in said, said


harness.main()
