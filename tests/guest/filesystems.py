#!/usr/bin/python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""Real file systems and a database under load while they are backed up, in full and by increments; QEMU is killed in the
middle of the full backup, and the guest is reset and loses its power between two others. What is restored holds all that
was durable when its backup began, starts as a guest of its own, and checks clean."""
import json

import harness
import vm
from vm import MIB

SYSTEMS = {"vda": "ext4", "vdb": "xfs", "vdc": "btrfs"}
SIZES = {"vda": 64 * MIB, "vdb": 320 * MIB, "vdc": 128 * MIB, "vdd": MIB, "vde": MIB}
MOUNT = """
mkdir -p /data /mnt/xfs /mnt/btrfs
mount -t xfs /dev/vdb /mnt/xfs && mkdir -p /mnt/xfs/data /mnt/xfs/sql
mount -t btrfs /dev/vdc /mnt/btrfs && mkdir -p /mnt/btrfs/data
"""
FOLDERS = {"ext4": "/data", "xfs": "/mnt/xfs/data", "btrfs": "/mnt/btrfs/data"}
# One transaction after the other, each known outside when it is committed; the row and the sum are one transaction.
SQLITE = """
cd /mnt/xfs/sql
n=$(sqlite3 db 'PRAGMA journal_mode=WAL; CREATE TABLE IF NOT EXISTS row(n INTEGER PRIMARY KEY, text);
    CREATE TABLE IF NOT EXISTS total(rows, sum); INSERT INTO total SELECT 0, 0 WHERE NOT EXISTS (SELECT * FROM total);
    SELECT rows FROM total' | tail -n 1)
{
    echo 'PRAGMA synchronous=FULL; PRAGMA wal_autocheckpoint=20;'
    while :; do
        n=$((n + 1))
        echo "BEGIN; INSERT INTO row VALUES ($n, hex(randomblob(700)));"
        echo "UPDATE total SET rows = rows + 1, sum = sum + $n; COMMIT;"
        echo ".system echo sqlite $n"
        sleep 0.05
    done
} | sqlite3 db
"""
SQLITE_CHECK = """
cd %s
sqlite3 db 'PRAGMA integrity_check; SELECT rows FROM total;
    SELECT count(*) = max(n) AND count(*) = rows AND sum(n) = sum FROM row, total'
"""


def start_load(guest):
    guest.run(MOUNT)
    for name, folder in FOLDERS.items():
        guest.start(name, f"exec guest_load files {folder} {name} 40")
    guest.start("sqlite", SQLITE)
    guest.start("ordered", "exec guest_load ordered ordered /dev/vdd /dev/vde")


def more(guest, count):
    """Lets everything go on for `count` steps of each file system; returns what is durable then."""
    known = guest.durable()
    guest.wait_durable({name: known.get(name, 0) + count for name in (*FOLDERS, "sqlite", "ordered")})
    return guest.durable()


def check_disks(d, guest):
    """Two processors have two queues of each disk, which says its name."""
    assert guest.run("ls /sys/block/vd[abcde]/mq | grep -c '^[01]$'") == "10\n", guest.run("ls /sys/block/vd[abcde]/mq")
    assert guest.run("cat /sys/block/vd[abcde]/serial") == "".join(SIZES), guest.run("cat /sys/block/vd?/serial")
    queues = {export["disk"]: export["queues"] for export in d.status()["vhost-user"]}
    assert queues == dict.fromkeys(SIZES, 2), queues


def backup_through_a_crash(t, d, where, guest):
    """QEMU is killed in the middle of a backup, which goes on."""
    backup = t.spawn(t.program("fleece"), "--json", "--control", d.control, "backup", where, stdout=-1, text=True)
    harness.wait_for("its snapshot is there", lambda: d.status()["snapshots"] or backup.poll() is not None, vm.WAIT)
    guest.crash()
    said = backup.communicate(timeout=vm.WAIT * harness.FACTOR)[0]
    assert backup.returncode == 0, said
    line = json.loads(said.splitlines()[-1])
    return line["point"], {disk["name"]: disk for disk in line["disks"]}


def check_guest(guest, folders, durable, label):
    """What is in the mounted file systems of one point."""
    for name, folder in folders.items():
        print(label, name, guest.run(f"guest_load check {folder} {durable[name]}").strip())


def check_database(guest, folder, durable):
    integrity, rows, whole = guest.run(SQLITE_CHECK % folder).split()
    assert (integrity, whole) == ("ok", "1") and int(rows) >= durable["sqlite"], (integrity, whole, rows, durable)


def check_ordered(folder, durable):
    """One instant of both ordered disks: vdd >= vde >= vdd - 1."""
    first, second = (vm.number_of(folder / f"{name}.raw") for name in ("vdd", "vde"))
    assert first - 1 <= second <= first and second >= durable["ordered"], (first, second, durable)


def check_clean(t, folder):
    """The file systems' own checkers, after the guest has replayed their journals."""
    t.run("/sbin/e2fsck", "-fn", folder / "vda.raw")
    t.run("/sbin/xfs_repair", "-n", folder / "vdb.raw")
    t.run("btrfs", "check", "--readonly", folder / "vdc.raw")


def look_at(t, points):
    """Starts a guest from the first of the restored points ([(folder, durable)]), and looks at the others' disks, too."""
    disks = {f"{disk}{n}": folder / f"{disk}.raw" for n, (folder, _) in enumerate(points) for disk in SYSTEMS}
    guest = vm.Vm(t, vm.FILE, disks, modules=("xfs", "btrfs"))
    for n, (folder, durable) in enumerate(points):
        disk = {name: f"/dev/vd{chr(ord('a') + 3 * n + i)}" for i, name in enumerate(SYSTEMS)}
        guest.run(MOUNT.replace("/dev/vdb", disk["vdb"]).replace("/dev/vdc", disk["vdc"]))
        if n > 0:
            guest.run(f"mkdir -p /mnt/ext4 && mount -t ext4 {disk['vda']} /mnt/ext4")
        folders = dict(FOLDERS, ext4="/mnt/ext4/data" if n else "/data")
        check_guest(guest, folders, durable, folder.name)
        check_database(guest, "/mnt/xfs/sql", durable)
        guest.run("umount /mnt/xfs /mnt/btrfs" + (" /mnt/ext4" if n else ""))
    guest.check_calm()
    guest.power_off()


def check_report(points):
    """The first point is full, the others hold what was written since, which is far less than the disks."""
    for n, (point, disks, _) in enumerate(points):
        captured = {name: disk["captured"] for name, disk in disks.items()}
        print(point, captured)
        assert {disk["kind"] for disk in disks.values()} == {"incremental" if n else "full"}, disks
        assert n == 0 or all(captured[name] <= SIZES[name] // 4 for name in SYSTEMS), captured
        assert n == 0 or max(captured["vdd"], captured["vde"]) <= 4096, captured


def file_systems(t, kind):
    harness.need("sqlite3", "btrfs")
    images = {"vda": vm.root_disk(t, "vda.raw", SIZES["vda"])}
    for name, system in list(SYSTEMS.items())[1:]:
        images[name] = vm.file_system(t, f"{name}.raw", SIZES[name], system)
    images.update({name: t.disk(f"{name}.raw", SIZES[name]) for name in ("vdd", "vde")})
    where, points = t.path("set"), []
    d = vm.serve(t, kind, images)
    guest = vm.Vm(t, kind, images, d, modules=("xfs", "btrfs"), cpus=2)
    if kind == vm.VHOST_USER:
        check_disks(d, guest)
    start_load(guest)

    durable = more(guest, 12)
    points.append((*backup_through_a_crash(t, d, where, guest), durable))
    durable = guest.known
    guest = vm.Vm(t, kind, images, d, modules=("xfs", "btrfs"), cpus=2)
    guest.known = dict(durable)
    start_load(guest)
    check_guest(guest, FOLDERS, durable, "after the crash")
    durable = more(guest, 6)
    points.append((*vm.backup(d, where), durable))  # under load
    more(guest, 2)
    guest.check_calm()
    guest.reset()  # in the middle of it
    durable = guest.durable()
    start_load(guest)
    check_guest(guest, FOLDERS, durable, "after the reset")
    durable = more(guest, 4)
    points.append((*vm.backup(d, where), durable))
    guest.check_calm()
    guest.quit()
    # Nobody writes now: the last point is what the images hold, and after it nothing has changed.
    points.append((*vm.backup(d, where), guest.known))
    _, unchanged = vm.backup(d, where)
    assert all(disk["kind"] == "incremental" and disk["captured"] == 0 for disk in unchanged.values()), unchanged
    d.stop()

    check_report(points)
    folders = vm.restore(t, where, points)
    for name, image in images.items():
        t.run("cmp", image, folders[3] / f"{name}.raw")
    for folder, (_, _, durable) in zip(folders, points):
        check_ordered(folder, durable)
    both = 1 if harness.LONG else 2  # points that one guest looks at
    for n in range(0, len(points), both):
        look_at(t, [(folders[k], points[k][2]) for k in range(n, min(n + both, len(points)))])
    for folder in folders:
        check_clean(t, folder)


if harness.LONG:
    def test_file_systems_over_nbd(t):
        file_systems(t, vm.NBD)


def test_file_systems_over_vhost_user(t):
    file_systems(t, vm.VHOST_USER)


harness.main()
