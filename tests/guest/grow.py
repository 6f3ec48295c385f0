#!/usr/bin/python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""Disks grow under a guest that writes to them, a raw one and one in a qcow2 image: over vhost-user its kernel hears of it,
uses what was added, and the next incremental backup has it."""
import harness
import vm
from vm import MIB


def sectors(guest, disk):
    return int(guest.run(f"cat /sys/block/{disk}/size"))


def test_a_guest_sees_its_disk_grow(t):
    harness.need("qemu-img")
    qcow2 = t.path("vdc.qcow2")
    t.run("qemu-img", "create", "-q", "-f", "qcow2", "-o", "cluster_size=4k", qcow2, "8M")
    images = {"vda": vm.root_disk(t, "vda.raw", 24 * MIB), "vdb": t.disk("vdb.raw", 8 * MIB), "vdc": qcow2}
    d = vm.serve(t, vm.VHOST_USER, images | {"vdc": f"{qcow2},format=qcow2"})
    guest = vm.Vm(t, vm.VHOST_USER, images, d)
    guest.start("first", "exec guest_load blocks first /dev/vdb 4")
    guest.start("second", "exec guest_load blocks second /dev/vdc 4")
    where, points, writes = t.path("set"), [vm.backup(d, t.path("set"))], d.status()["disks"][1]["writes"]
    harness.wait_for("the guest writes", lambda: d.status()["disks"][1]["writes"] > writes + 20, vm.WAIT)
    d.fleece("snapshot", "create", "before")
    for name, size in ("vdb", 12), ("vdc", 20), ("vdb", 16):
        d.fleece("resize", name, f"{size}M")
        harness.wait_for(f"the guest sees {size} MiB", lambda: sectors(guest, name) == size * MIB // 512, vm.WAIT, 0.2)
        guest.run(f"dd if=/dev/urandom of=/dev/{name} bs=64k seek={size * 16 - 3} count=3 conv=notrunc,fsync")
    guest.run("! dd if=/dev/zero of=/dev/vdb bs=1M seek=16 count=1 conv=notrunc")
    for name in "first", "second":
        guest.stop(name)
    guest.wait_durable({"first": 1, "second": 1})  # everything acknowledged is there
    guest.quit()
    points.append(vm.backup(d, where))
    assert all(disk["kind"] == "incremental" for disk in points[1][1].values()), points
    d.stop()
    folder = vm.restore(t, where, points)[1]
    t.run("qemu-img", "check", "-q", "-f", "qcow2", qcow2)
    t.run("qemu-img", "compare", "-q", "-f", "qcow2", "-F", "raw", qcow2, folder / "vdc.raw")
    for name in "vda", "vdb":
        t.run("cmp", images[name], folder / f"{name}.raw")
    assert (folder / "vdc.raw").stat().st_size == 20 * MIB


harness.main()
