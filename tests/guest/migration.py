#!/usr/bin/python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""Live migration, as docs/moving.md has it: from one QEMU and its daemon to another QEMU and its daemon, over the same
images, while the guest writes. One that is cancelled leaves snapshots alone. One that succeeds fails the backup that is
under way, with its reason; the guest notices nothing, and the next backup, from the daemon of the new place, is
incremental and right. One whose destination dies when the guest has stopped already goes on at the source."""
import harness
import vm
from backup_kit import StuckBackup
from vm import MIB

# QEMU before 9.0 has two ways to look at what its emulated processor has written. The one for blocks of memory of whole
# 256 KiB forgets to have the next write to a page noted again (it was mended by "physmem: Fix migration dirty bitmap
# coherency with TCG memory access"), so some guests arrive with pages of before, whatever their disks are. With this size
# it takes the other one.
MEMORY = 192 + 8 / 1024
REASON = "the VM migrates: its disks may be written elsewhere from now on"


def go_on(guest):
    guest.wait_durable({"ext4": guest.durable().get("ext4", 0) + 3})


def reached(guest, status):
    """Waits until the migration is what it should be."""
    def now():
        said = guest.qmp.execute("query-migrate")
        assert said.get("status") not in ("failed", "cancelled", "completed") or said["status"] == status, said
        return said.get("status") == status
    harness.wait_for(f"the migration is {status}", now, vm.WAIT)


def arrival(t, images):
    """The daemon that awaits the VM."""
    options = [word for name in images for word in ("--vhost-user", f"{name}={vm.vhost_socket(t, name, 'arrival')}")]
    d = t.daemon(images, *options, "--incoming", "on", wait=False, **t.other_host())
    harness.wait_for("the daemon awaits the VM", lambda: "is awaited" in d.log(), vm.WAIT)
    return d


def fails_in_the_end(t, d, guest, images):
    """The destination dies when the guest has stopped and its disks are said to be elsewhere: it goes on at the source."""
    capability = {"capability": "pause-before-switchover"}
    guest.qmp.execute("migrate-set-capabilities", capabilities=[{**capability, "state": True}])
    new = vm.Vm(t, vm.VHOST_USER, images, memory=MEMORY, incoming=t.path("dies.sock"), suffix="arrival")
    guest.qmp.execute("migrate-set-parameters", max_bandwidth=1 << 40)
    guest.qmp.execute("migrate", uri=f"unix:{t.path('dies.sock')}")
    reached(guest, "pre-switchover")
    assert REASON in d.fleece("snapshot", "create", "late", status=1).stderr
    new.process.kill()
    new.process.wait()
    new.close()
    guest.qmp.execute("migrate-continue", state="pre-switchover")
    reached(guest, "failed")
    guest.qmp.execute("cont")
    guest.qmp.execute("migrate-set-capabilities", capabilities=[{**capability, "state": False}])
    go_on(guest)


def test_the_vm_goes_on_elsewhere(t):
    images = {"vda": vm.root_disk(t, "vda.raw", 48 * MIB), "vdb": t.disk("vdb.raw", 16 * MIB)}
    d, where = vm.serve(t, vm.VHOST_USER, images), t.path("set")
    guest = vm.Vm(t, vm.VHOST_USER, images, d, memory=MEMORY)
    guest.start("ext4", "exec guest_load files /data ext4 40")
    guest.start("blocks", "exec guest_load blocks blocks /dev/vdb 8")
    go_on(guest)
    points = [vm.backup(d, where)]
    d.fleece("snapshot", "create", "kept")

    there = arrival(t, images)
    gone_wrong = vm.Vm(t, vm.VHOST_USER, images, memory=MEMORY, incoming=t.path("first.sock"), suffix="arrival")
    guest.qmp.execute("migrate-set-parameters", max_bandwidth=MIB // 16)  # it must not be over before it is cancelled
    guest.qmp.execute("migrate", uri=f"unix:{t.path('first.sock')}")
    reached(guest, "active")
    go_on(guest)
    guest.qmp.execute("migrate_cancel")
    reached(guest, "cancelled")
    gone_wrong.process.wait(vm.WAIT * harness.FACTOR)
    go_on(guest)
    guest.qmp.execute("stop")
    guest.qmp.execute("cont")
    go_on(guest)
    assert "kept" in d.fleece("snapshot", "list").stdout and "broken" not in d.fleece("snapshot", "list").stdout
    fails_in_the_end(t, d, guest, images)
    assert "broken" in d.fleece("snapshot", "list").stdout
    d.fleece("snapshot", "delete", "kept")
    points.append(vm.backup(d, where))
    assert all(disk["kind"] == "incremental" for disk in points[1][1].values()), points[1]

    under_way = StuckBackup(t, d, where)
    new = vm.Vm(t, vm.VHOST_USER, images, memory=MEMORY, incoming=t.path("second.sock"), suffix="arrival")
    guest.qmp.execute("migrate-set-parameters", max_bandwidth=1 << 40)
    guest.qmp.execute("migrate", uri=f"unix:{t.path('second.sock')}")
    reached(guest, "completed")
    assert "locked" not in there.log() and not there.control.exists(), "the disks were opened while they were not free"
    refused = d.fleece("snapshot", "create", "late", status=1).stderr
    assert REASON in refused, refused
    said = under_way.end(1)
    assert REASON in said, said
    durable = guest.durable()
    guest.quit()
    d.stop()
    there.wait_ready()
    new.known = durable
    go_on(new)
    durable = new.durable()
    points.append(vm.backup(there, where))
    changed = points[2][1]
    assert all(disk["kind"] == "incremental" for disk in changed.values()), changed
    go_on(new)
    new.stop("blocks")
    new.stop("ext4")
    last = new.durable()["ext4"]
    new.run("echo 3 >/proc/sys/vm/drop_caches")
    new.run(f"guest_load check /data {last}")
    new.check_calm()
    points.append(vm.backup(there, where))
    new.power_off()
    there.stop()

    folders = vm.restore(t, where, points)
    for folder, number in zip(folders[2:], (durable["ext4"], last)):
        t.run("/sbin/e2fsck", "-fy", "-E", "journal_only", folder / "vda.raw", status=None)
        t.run("/sbin/e2fsck", "-fn", folder / "vda.raw")
        t.run("/sbin/debugfs", "-R", f"stat /data/{number}", folder / "vda.raw")
    t.fleece("verify", where)


def one_more_move(t, images, source, guest, number, host):
    """While backups are made one after the other at the source, until one says that the VM has left. (daemon, guest)."""
    where, suffix = t.path("set"), f"move{number}"
    vhost = [word for name in images for word in ("--vhost-user", f"{name}={vm.vhost_socket(t, name, suffix)}")]
    there = t.daemon(images, *vhost, "--incoming", "on", wait=False, **host)
    with open(t.path("backups.said"), "wb") as said:
        backups = t.spawn("sh", "-c", 'while "$0" --control "$1" backup "$2"; do :; done', t.program("fleece"),
                          source.control, where, stdout=said, stderr=said)
    harness.wait_for("the daemon awaits the VM", lambda: "is awaited" in there.log(), vm.WAIT)
    new = vm.Vm(t, vm.VHOST_USER, images, memory=MEMORY, incoming=t.path(f"{suffix}.sock"), suffix=suffix)
    guest.qmp.execute("migrate-set-parameters", max_bandwidth=1 << 40)
    guest.qmp.execute("migrate", uri=f"unix:{t.path(f'{suffix}.sock')}")
    reached(guest, "completed")
    backups.wait(vm.WAIT * harness.FACTOR)
    assert REASON in t.path("backups.said").read_text(), t.path("backups.said").read_text()
    new.known = guest.durable()
    guest.quit()
    source.stop()
    there.wait_ready()
    return there, new


def three_moves_under_backups(t):
    """There, back, and there once more; on one disk of two a writer whose writes depend on one another."""
    images = {"vda": vm.root_disk(t, "vda.raw", 48 * MIB), "vdb": t.disk("vdb.raw", 16 * MIB)}
    d, where, hosts = vm.serve(t, vm.VHOST_USER, images), t.path("set"), [t.other_host(), {}]
    guest = vm.Vm(t, vm.VHOST_USER, images, d, memory=MEMORY)
    guest.start("ext4", "exec guest_load files /data ext4 40")
    guest.start("blocks", "exec guest_load blocks blocks /dev/vdb 8")
    go_on(guest)
    for number in range(3):
        d, guest = one_more_move(t, images, d, guest, number, hosts[number % 2])
        go_on(guest)
        point, disks = vm.backup(d, where)
        assert all(disk["kind"] == "incremental" for disk in disks.values()), (number, disks)
    guest.stop("blocks")
    guest.stop("ext4")
    last = guest.durable()["ext4"]
    guest.run("echo 3 >/proc/sys/vm/drop_caches")
    guest.run(f"guest_load check /data {last}")
    guest.check_calm()
    points = [vm.backup(d, where)]
    guest.power_off()
    d.stop()
    folder, = vm.restore(t, where, points)
    t.run("/sbin/e2fsck", "-fy", "-E", "journal_only", folder / "vda.raw", status=None)
    t.run("/sbin/e2fsck", "-fn", folder / "vda.raw")
    t.run("/sbin/debugfs", "-R", f"stat /data/{last}", folder / "vda.raw")
    t.fleece("verify", where)
    assert point


if harness.LONG:
    test_three_moves_under_backups = three_moves_under_backups


harness.main()
