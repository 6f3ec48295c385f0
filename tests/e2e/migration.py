#!/usr/bin/python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""A VM that migrates (docs/moving.md), with the front-end of tests/vhost as its VMM: what the back-end marks; what becomes
of snapshots, backups and jobs when the guest has stopped; disks of all kinds that another daemon takes over; daemons that
are killed meanwhile. A real guest does it in tests/guest/migration.py."""
import contextlib
import json
import os
import signal
import struct
import subprocess

import harness
import loop_kit
from backup_kit import Gate
from tracking_kit import nbd_client, nbd_module, refused

MIB = 1 << 20
CLIENT = "tests/vhost/vhost_client"
REASON = "the VM migrates: its disks may be written elsewhere from now on"
USED = ("--size", "4m", "--requests", "1000000")


class Guest:
    """A VMM with a guest that writes random blocks of the first 4 MiB, and migrates."""

    def __init__(self, t, socket, *options, reconnect=False):
        self.said = t.path(f"guest-{len(t.processes)}")
        with open(self.said, "wb") as said:
            self.process = t.spawn(t.program(CLIENT), "model", socket, *USED, *(["--reconnect"] if reconnect else []),
                                   *options, stdin=subprocess.PIPE, stdout=said, stderr=said)
        self.partings = 0

    def tell(self, line):
        self.process.stdin.write(line + b"\n")
        self.process.stdin.flush()

    def running(self):
        assert self.process.poll() is None, self.said.read_text()

    def part(self):
        """Its guest stops in mid-migration, with requests in flight."""
        self.partings += 1
        self.tell(b"part")

        def parted():
            self.running()
            return self.said.read_text().count("parted") == self.partings
        harness.wait_for("the guest has stopped in mid-migration", parted)

    def stay(self):
        self.tell(b"stay")

    def migrate(self):
        """It goes on, and so does its migration."""
        self.tell(b"migrate")

    def leave(self):
        """It is elsewhere: this VMM ends."""
        self.process.stdin.close()
        assert self.process.wait(harness.SOON) == 0, self.said.read_text()

    def end(self):
        self.running()
        self.process.kill()
        self.process.wait()


def options(t, disks, suffix="v"):
    return [word for name in disks for word in ("--vhost-user", f"{name}={t.path(f'{name}.{suffix}')}")]


def writes_more(d):
    before = d.status()["disks"][0]["writes"]
    harness.wait_for("the guest writes", lambda: d.status()["disks"][0]["writes"] > before + 20)


def backup(d, where, status=0):
    line = json.loads(d.fleece("--json", "backup", where, status=status).stdout.splitlines()[-1])
    return line["point"], {disk["name"]: disk for disk in line["disks"]}


def check_restored(t, where, point, disks):
    """disks: {name: raw image or device}, at rest since the backup."""
    folder = t.path(f"at-{point}")
    t.fleece("restore", f"{where}@{point}", "--all", "--to-dir", folder, "--format", "raw")
    for name, path in disks.items():
        t.run("cmp", folder / f"{name}.raw", path)


def arrival(t, disks, *more):
    d = t.daemon(disks, *options(t, disks, "there"), "--incoming", "on", *more, wait=False, **t.other_host())
    harness.wait_for("the daemon awaits the VM", lambda: "is awaited" in d.log())
    return d


def test_all_that_is_written_is_marked(t):
    """Memory that is copied by the marks is whole when the rings have stopped: rings of all kinds, several queues, and a
    daemon that is killed with requests in flight, which are done again and marked by the next one."""
    disk = t.disk("a.raw", 16 * MIB)
    d = t.daemon({"vda": disk}, *options(t, ["vda"]))
    for seed, shape in enumerate((["--queues", "4", "--queue-size", "16", "--mixed"], ["--packed", "--queues", "2"],
                                  ["--queue-size", "1024"],
                                  ["--packed", "--no-event-idx", "--no-indirect", "--regions", "3", "--mem-slots"],
                                  ["--no-event-idx", "--no-ack", "--no-inflight"])):
        said = json.loads(t.run(t.program(CLIENT), "model", t.path("vda.v"), "--migrate", "--size", "4m", "--requests",
                                "300", "--seed", str(seed), *shape).stdout)
        assert said["switches"] > 0 and said["pages_copied"] > 1000, said
    for packed in ([], ["--packed"]):
        guest = Guest(t, t.path("vda.v"), "--migrate", "--queues", "2", "--depth", "64", *packed, reconnect=True)
        writes_more(d)
        d.kill()
        t.daemons.clear()  # the same socket paths again
        d = t.daemon({"vda": disk}, *options(t, ["vda"]))
        writes_more(d)
        guest.end()
    d.stop()


def backup_in_the_middle(t, d, where):
    """A backup that does not get any further: its process is stopped."""
    gate = Gate(d)
    with d.qmp() as q, open(t.path("backup.said"), "wb") as said:
        process = t.spawn(t.program("fleece"), "--control", d.control, "backup", where, stdout=said, stderr=said)
        q.event("FLEECE_SNAPSHOT_CREATED")
        process.send_signal(signal.SIGSTOP)
    gate.leave()
    return process


def test_whoever_has_a_snapshot_is_told(t):
    """Readers over NBD, a backup, a push, events; what is asked for while the VM is away; and a guest that goes on here."""
    disk, where = t.disk("a.raw", 16 * MIB), t.path("set")
    d = t.daemon({"vda": disk}, *options(t, ["vda"]))
    guest = Guest(t, t.path("vda.v"), "--part")
    guest.part()
    guest.stay()
    writes_more(d)
    guest.part()  # away while nothing is under way: the guest goes on once more
    refused(d.qmp(), "GenericError", REASON, "fleece-snapshot-create", name="no")
    guest.stay()
    writes_more(d)
    with d.qmp() as q:
        q.execute("fleece-snapshot-create", name="kept")
        reader = nbd_client(d.uri("vda@kept"))
        assert len(reader.pread(65536, 0)) == 65536
        q.execute("blockdev-backup", job_id="push", device="vda", target=str(t.path("push.qcow2")), sync="full",
                  speed=MIB // 16)
        under_way = backup_in_the_middle(t, d, where)
        guest.part()
        broken = [q.event("FLEECE_SNAPSHOT_BROKEN")["data"] for _ in range(3)]
        assert all(REASON in json.dumps(event) for event in broken), broken
        for offset in range(0, 16 * MIB, 4 * MIB):
            try:
                reader.pread(65536, offset)
            except nbd_module().Error as error:
                assert error.errnum in (5, 108), error  # EIO, ESHUTDOWN
            else:
                raise AssertionError("a snapshot is read after its VM has left")
        ended = q.event("BLOCK_JOB_COMPLETED")["data"]
        assert REASON in ended["error"], ended
        under_way.send_signal(signal.SIGCONT)
        status, said = under_way.wait(harness.SOON), t.path("backup.said").read_text()
        assert status == 1 and REASON in said, said
        refused(q, "GenericError", REASON, "fleece-checkpoint-create", name="no")
        refused(q, "GenericError", REASON, "block_resize", device="vda", size=32 * MIB)
        assert REASON in d.fleece("backup", where, status=1).stderr
        guest.stay()
        writes_more(d)
        guest.end()
    reader.shutdown()
    point, disks = backup(d, where)
    assert disks["vda"]["kind"] == "full"
    d.stop()
    check_restored(t, where, point, {"vda": disk})


def write_there(d, name):
    h = nbd_client(d.uri(name))
    h.pwrite(b"there" * 8192, 5 * MIB)
    h.shutdown()


def move(t, old, disks, there):
    """From a guest that has stopped at `old` to one that writes at `there`, and is at rest again."""
    old.stop()
    said = t.run(t.program(CLIENT), "model", t.path("vda.there"), "--size", "4m", "--requests", "100", timeout=90)
    there.wait_ready()
    assert json.loads(said.stdout)["writes"] > 10
    return there


def test_disks_of_all_kinds(t):
    """A file, a qcow2 image and a block device go to another daemon, and the VM's next backup is incremental, but for the
    device's, whose sidecar did not come along: it is full, says why, and all are right."""
    where, here, far = t.path("set"), t.path("state-here"), t.path("state-there")
    here.mkdir(), far.mkdir()
    t.run("qemu-img", "create", "-q", "-f", "qcow2", t.path("b.qcow2"), "16M")
    with loop_kit.loop_device(t, t.disk("c.raw", 16 * MIB)) as device:
        disks = {"vda": t.disk("a.raw", 16 * MIB), "vdb": f"{t.path('b.qcow2')},format=qcow2", "vdc": device}
        old = t.daemon(disks, *options(t, disks), "--state-dir", here)
        guest = Guest(t, t.path("vda.v"), "--part")
        backup(old, where)
        there = arrival(t, disks, "--state-dir", far)
        guest.part()
        void = here / f"{t.vm}@vdc.fleece-void"
        assert "may have gone on elsewhere" in void.read_text()
        guest.stay()  # not yet
        harness.wait_for("the guest is back", lambda: not void.exists())
        guest.part()
        assert void.exists() and "locked" not in there.log()
        guest.leave()
        move(t, old, disks, there)
        assert list(here.iterdir()) == [], "something is left of a VM that has gone"
        write_there(there, "vdb")
        write_there(there, "vdc")
        point, now = backup(there, where, status=3)
        assert now["vda"]["kind"] == now["vdb"]["kind"] == "incremental" and now["vdc"]["kind"] == "full", now
        assert "vdc was not tracked" in now["vdc"]["reason"], now
        there.stop()
        t.run("qemu-img", "convert", "-O", "raw", t.path("b.qcow2"), t.path("b.raw"))
        check_restored(t, where, point, {"vda": t.path("a.raw"), "vdb": t.path("b.raw"), "vdc": device})
        t.fleece("verify", where)


def killed(t, reason, *, has_stopped):
    """The old daemon is killed in mid-migration. Whoever starts it again later finds a snapshot that is broken or gone, and
    no checkpoint of a disk whose sidecar did not go along; the file's has, with all that was written there."""
    where, here, far = t.path("set"), t.path("state-here"), t.path("state-there")
    here.mkdir(), far.mkdir()
    with loop_kit.loop_device(t, t.disk("c.raw", 16 * MIB)) as device:
        disks = {"vda": t.disk("a.raw", 16 * MIB), "vdc": device}
        old = t.daemon(disks, *options(t, disks), "--state-dir", here)
        guest = Guest(t, t.path("vda.v"), "--part")
        backup(old, where)
        if not has_stopped:
            guest.part()
            guest.migrate()
            writes_more(old)
        old.fleece("snapshot", "create", "kept")
        if has_stopped:
            guest.part()
        guest.running()
        old.kill()
        guest.process.kill()  # it may have noticed
        guest.process.wait()
        there = arrival(t, disks, "--state-dir", far)
        t.run(t.program(CLIENT), "model", t.path("vda.there"), "--size", "4m", "--requests", "100", timeout=90)
        there.wait_ready()
        write_there(there, "vdc")
        there.process.terminate()
        assert there.process.wait(harness.SOON) == 0, there.log()
        t.daemons.clear()  # what the killed one has left is there still
        again = t.daemon(disks, *options(t, disks), "--state-dir", here)
        assert "the checkpoints of disk vdc are gone" in again.log()
        with again.qmp() as q:
            for snapshot in q.execute("fleece-query-snapshots"):
                assert reason in json.dumps(snapshot), snapshot
        point, now = backup(again, where, status=3)
        assert now["vdc"]["kind"] == "full" and "vdc was not tracked" in now["vdc"]["reason"], now
        again.stop()
        check_restored(t, where, point, {"vda": t.path("a.raw"), "vdc": device})


def test_killed_when_the_vm_has_gone(t):
    """After its guest has stopped."""
    killed(t, REASON, has_stopped=True)


def test_killed_before_the_vm_has_gone(t):
    """While its guest runs: nobody tells a daemon that is dead that it stops."""
    killed(t, "ended while the VM migrated", has_stopped=False)


def test_a_daemon_dies_at_the_handover(t):
    """Two daemons of one host, one image: the new one is killed while it waits for the lock, and the guest goes on where it
    was; the old one is killed while the next one waits, which has the disk then, is killed, and has it once more."""
    disks, where, host = {"vda": t.disk("a.raw", 16 * MIB)}, t.path("set"), t.other_host()
    awaited = []  # whose log is one

    def awaits():
        t.daemons.clear()  # the same socket paths again
        d = t.daemon(disks, *options(t, disks, "there"), "--incoming", "on", wait=False, **host)
        awaited.append(d)
        harness.wait_for("the daemon awaits the VM", lambda: d.log().count("is awaited") == len(awaited))
        return d

    def arrives():
        with open(t.path("arrival.said"), "ab") as said:
            return t.spawn(t.program(CLIENT), "model", t.path("vda.there"), "--size", "4m", "--requests", "100",
                           stdout=said, stderr=said)

    def next_is_incremental(d):
        now = backup(d, where)[1]
        assert now["vda"]["kind"] == "incremental", now

    old = t.daemon(disks, *options(t, disks))
    guest = Guest(t, t.path("vda.v"), "--part")
    backup(old, where)
    guest.part()
    there = awaits()
    guest_there = arrives()
    harness.wait_for("the new daemon waits for the lock", lambda: "waiting up to" in there.log())
    there.kill()
    guest_there.wait(60)
    guest.stay()
    writes_more(old)
    next_is_incremental(old)
    guest.part()
    there = awaits()
    guest_there = arrives()
    harness.wait_for("the next daemon waits for the lock", lambda: there.log().count("waiting up to") == 2)
    old.kill()
    there.wait_ready()
    assert guest_there.wait(60) == 0, t.path("arrival.said").read_text()
    guest.end()
    next_is_incremental(there)
    there.kill()
    there = awaits()
    assert arrives().wait(60) == 0, t.path("arrival.said").read_text()
    there.wait_ready()
    next_is_incremental(there)
    there.process.terminate()
    assert there.process.wait(60) == 0, there.log()
    t.daemons.clear()  # what the killed one has left is there still
    old = t.daemon(disks, *options(t, disks))
    point, now = backup(old, where, status=3)
    assert "older than what the daemon left in memory" in now["vda"]["reason"], now  # for all that it can know
    old.stop()
    check_restored(t, where, point, {"vda": t.path("a.raw")})


def test_back_beside_a_void_sidecar(t):
    """A sidecar that is void for another reason, and can't be removed, is void still when the VM has come back."""
    disk, state = t.disk("a.raw", 16 * MIB), t.path("state-here")
    state.mkdir()
    void = state / f"{t.vm}@vda.fleece-void"
    void.write_text("it takes no writes any more\n")
    t.path("a.raw.fleece").mkdir()  # no unlink() removes it
    d = t.daemon({"vda": disk}, *options(t, ["vda"]), "--state-dir", state)
    assert "can't be removed" in json.dumps(d.status()), d.status()
    guest = Guest(t, t.path("vda.v"), "--part")
    writes_more(d)
    guest.part()
    guest.stay()
    writes_more(d)
    guest.end()
    d.stop()
    assert void.read_text() == "it takes no writes any more\n"


def test_back_and_forth(t):
    """Three moves between two daemons, with backups at each: every one after the first is incremental, and right."""
    disk, where, other = t.disk("a.raw", 16 * MIB), t.path("set"), t.other_host()
    disks, d = {"vda": disk}, None
    for number in range(4):
        d = t.daemon(disks, *options(t, disks), *(["--incoming", "on"] if number else []), wait=number == 0,
                     **(other if number % 2 else {}))
        guest = Guest(t, t.path("vda.v"), "--part", "--seed", str(number))
        d.wait_ready()
        backup(d, where)  # under the guest's writes
        guest.part()
        guest.stay()
        writes_more(d)
        guest.end()
        point, now = backup(d, where)
        assert now["vda"]["kind"] == "incremental", (number, now)
        d.stop()
        t.daemons.clear()
        check_restored(t, where, point, disks)
    t.fleece("verify", where)


def test_a_push_and_an_arrival(t):
    """There is none before the VM has arrived, with a clear word; afterwards as anywhere, over the death of a daemon that
    is told again that the VM arrives."""
    disk, image = t.disk("a.raw", 8 * MIB, 5), t.path("o.raw")
    right = disk.read_bytes()[4 * MIB:]
    begin = [{"vda": disk}, *options(t, ["vda"]), "--incoming", "on"]
    d = t.daemon(*begin, wait=False)
    harness.wait_for("the daemon awaits the VM", lambda: "is awaited" in d.log())
    said = d.fleece("push", "--to", f"vda={image}", status=1).stderr
    assert "no daemon takes commands" in said and "awaits its VM" in said and not image.exists(), said
    guest = Guest(t, t.path("vda.v"), reconnect=True)  # which writes to the first half
    d.wait_ready()
    with d.qmp() as q:
        q.execute("fleece-push", targets=[{"disk": "vda", "target": str(image)}], job_id="j", speed=MIB)
        harness.wait_for("something is copied", lambda: q.execute("query-block-jobs")[0]["offset"] > 0)
    d.kill()
    t.daemons.clear()
    d = t.daemon(*begin)
    writes_more(d)
    with d.qmp() as q:
        with contextlib.suppress(harness.QmpError):  # it may have ended
            q.execute("block-job-set-speed", device="j", speed=0)
        harness.wait_for("it has concluded", lambda: q.execute("query-jobs")[0]["status"] == "concluded")
        shown, = q.execute("query-jobs")
        assert "error" not in shown and image.read_bytes()[4 * MIB:] == right, shown
        q.execute("job-dismiss", id="j")
    guest.end()
    d.stop()


def test_what_cannot_be_awaited(t):
    """Each with a sentence, before a VMM would find out."""
    disk = t.disk("a.raw", 16 * MIB)
    os.mkfifo(t.path("pipe"))
    t.path("empty.qcow2").write_bytes(struct.pack(">4sIQIIQ", b"QFI\xfb", 3, 0, 0, 16, 0) + bytes(80))
    for spec, text in ((f"{t.path('none.raw')}", "none.raw"), (f"{disk},format=qcow2", "is no qcow2 image"),
                       (f"{t.path('pipe')},format=qcow2", "it is neither a file nor a block device"),
                       (f"{t.path('empty.qcow2')},format=qcow2", "its disk has 0 bytes"),
                       (f"{disk}", "is the image of disk vda as well")):
        d = t.daemon({"vda": spec, "vdb": disk}, *options(t, ["vda"]), "--incoming", "on", wait=False)
        d.wait(1)
        assert text in d.log(), d.log()
        t.daemons.clear()
    done = t.run(t.program("fleeced"), "--name", t.vm, "--disk", f"vda={disk}", "--incoming", "on", status=2)
    assert "--incoming on without --vhost-user" in done.stderr
    first = t.daemon({"vda": disk}, *options(t, ["vda"]))
    d = arrival(t, {"vda": disk}, "--lock-timeout", "1")
    guest = t.spawn(t.program(CLIENT), "model", t.path("vda.there"), "--requests", "1", stdout=subprocess.DEVNULL,
                    stderr=subprocess.DEVNULL)
    d.wait(1)  # the other daemon never lets go
    assert "locked" in d.log() and "a.raw" in d.log(), d.log()
    assert guest.wait(harness.SOON) != 0
    first.stop()


harness.main()
