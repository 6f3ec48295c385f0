#!/usr/bin/python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""The daemon is killed (SIGKILL) again and again under a guest that writes, and started again: the guest sees a pause, no
I/O error, and every write that was acknowledged to it. Snapshots of two disks are one instant, before a death and after
it."""
import random
import signal
import time

import harness
import vm
from vm import MIB

DEATHS, CUTS = (20, 100) if harness.LONG else (3, 8)


def pair(t, d, snapshot):
    """The numbers of the two ordered disks in a snapshot, which must be one instant: vdc >= vdd >= vdc - 1."""
    found = []
    for disk in ("vdc", "vdd"):
        said = t.run("qemu-io", "-r", "-f", "raw", "-c", "read -v 0 512", d.uri(f"{disk}@{snapshot}")).stdout
        words = said.split()
        found.append(int.from_bytes(bytes.fromhex("".join(words[1:9])), "little"))
    assert found[1] <= found[0] <= found[1] + 1, f"vdc and vdd of {snapshot} are not of one instant: {found}"
    return found


def cut(t, d, guest, name):
    """Takes a snapshot while the guest writes; what the two ordered disks hold in it."""
    durable = guest.durable()
    d.fleece("snapshot", "create", name)
    found = pair(t, d, name)
    assert found[1] >= durable["ordered"], f"{durable} was durable before the cut of {name}, which holds {found}"
    return found


def go_on(guest):
    known = guest.durable()
    guest.wait_durable({name: known.get(name, 0) + 3 for name in ("ext4", "ordered")})


def death(t, guest, images, chance, number):
    """Kills the daemon under load with a snapshot alive, starts it again, and lets the guest go on."""
    d = t.daemons[-1]
    name = f"kept{number}"
    before = cut(t, d, guest, name)
    time.sleep(chance.uniform(0, 0.3))
    if number % 2:  # requests that are done, of which nobody was told, and others that nobody has looked at
        d.process.send_signal(signal.SIGSTOP)
        time.sleep(0.05)
    d.kill()
    time.sleep(chance.choice([0, 0.3, 1]))
    t.daemons.clear()
    d = vm.serve(t, guest.kind, images)
    assert pair(t, d, name) == before, f"{name} has changed with the death of the daemon"
    go_on(guest)
    d.fleece("snapshot", "delete", name)
    guest.check_calm()


def deaths(t, kind):
    harness.need("qemu-io")
    chance, where = random.Random(5), t.path("set")
    images = {"vda": vm.root_disk(t, "vda.raw", 48 * MIB), "vdb": t.disk("vdb.raw", 4 * MIB),
              "vdc": t.disk("vdc.raw", MIB), "vdd": t.disk("vdd.raw", MIB)}
    d = vm.serve(t, kind, images)
    guest = vm.Vm(t, kind, images, d)
    guest.start("ext4", "exec guest_load files /data ext4 40")
    guest.start("blocks", "exec guest_load blocks blocks /dev/vdb 8")
    guest.start("ordered", "exec guest_load ordered ordered /dev/vdc /dev/vdd")
    go_on(guest)
    for n in range(CUTS):
        cut(t, d, guest, f"cut{n}")
        d.fleece("snapshot", "delete", f"cut{n}")
    vm.backup(d, where)
    for n in range(DEATHS):
        death(t, guest, images, chance, n)
    d = t.daemons[-1]

    guest.stop("blocks")
    guest.wait_durable({"blocks": 1})  # everything acknowledged is there
    durable = guest.durable()
    points = [vm.backup(d, where)]
    guest.check_calm()
    guest.quit()
    points.append(vm.backup(d, where))  # nobody writes now
    assert all(disk["kind"] == "incremental" for _, disks in points for disk in disks.values()), points
    d.stop()
    folders = vm.restore(t, where, points)
    for name, image in images.items():
        t.run("cmp", image, folders[1] / f"{name}.raw")
    first, second = (vm.number_of(folders[0] / f"{name}.raw") for name in ("vdc", "vdd"))
    assert second <= first <= second + 1 and second >= durable["ordered"], (first, second, durable)
    t.run("/sbin/e2fsck", "-fy", "-E", "journal_only", folders[0] / "vda.raw", status=None)
    t.run("/sbin/e2fsck", "-fn", folders[0] / "vda.raw")


def test_the_daemon_dies_under_a_guest_on_nbd(t):
    deaths(t, vm.NBD)


def test_the_daemon_dies_under_a_guest_on_vhost_user(t):
    deaths(t, vm.VHOST_USER)


harness.main()
