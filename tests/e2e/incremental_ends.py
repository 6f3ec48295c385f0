#!/usr/bin/python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""Incremental backups that do not reach their end: nothing that changed is forgotten, and what can go on goes on."""
import contextlib
import json
import os
import shutil
import signal
import socket
import threading
import time

import harness
from backup_kit import MIB, HeldBackup, points, snapshots
from incremental_kit import SIZES, Guest, backup, check_point, checkpoints, disks_of, keep, start


class Killer:
    """Stands between a client and the daemon, and kills the client at a command: before the daemon gets it, or after it has
    answered and before the client hears of it."""

    def __init__(self, t, d, command, after):
        self.path, self.command, self.after = t.path("killer.sock"), command.encode(), after
        self.path.unlink(missing_ok=True)
        self.server = socket.socket(socket.AF_UNIX)
        self.server.bind(str(self.path))
        self.server.listen(1)
        self.daemon = socket.socket(socket.AF_UNIX)
        self.daemon.connect(str(d.control))
        self.process, self.started, self.fired = None, threading.Event(), False
        self.armed = threading.Event()
        threading.Thread(target=self.run, daemon=True).start()

    def run(self):
        client, _ = self.server.accept()
        threading.Thread(target=self.upwards, args=[client], daemon=True).start()
        with contextlib.suppress(OSError):
            for line in self.daemon.makefile("rb"):
                if self.armed.is_set() and b'"event"' not in line:
                    self.kill()
                    return
                client.sendall(line)

    def upwards(self, client):
        with contextlib.suppress(OSError):
            self.forward(client)

    def forward(self, client):
        for line in client.makefile("rb"):
            if self.command in line and not self.fired:
                self.fired = True
                if not self.after:
                    self.kill()
                    return
                self.armed.set()
            self.daemon.sendall(line)
        self.daemon.shutdown(socket.SHUT_RDWR)

    def kill(self):
        self.started.wait(harness.SOON)
        self.process.kill()
        self.process.wait()
        self.daemon.shutdown(socket.SHUT_RDWR)


def test_the_client_dies_at_the_end(t):
    """Wherever it dies between snapshot and last word: the set is right, and so is the next backup, an incremental one."""
    paths, d = start(t)
    guest = Guest(d, SIZES)
    keep(t, paths, 0)
    backup(d, t.path("set"))
    number, count = 0, 1
    steps = [("fleece-snapshot-create", True, 0), ("fleece-snapshot-delete", False, 0),
             ("fleece-checkpoint-commit", False, 0), ("fleece-checkpoint-commit", False, 60),
             ("fleece-checkpoint-commit", True, 0), ("fleece-checkpoint-delete", False, 0),
             ("fleece-checkpoint-delete", True, 0)]
    for command, after, grace in steps:
        number += 1
        guest.work(20)
        keep(t, paths, number)
        killer = Killer(t, d, command, after)
        process = t.spawn(t.program("fleece"), "--control", killer.path, "backup", t.path("set"), "--grace", grace,
                          stdout=-1, stderr=-1)
        killer.process = process
        killer.started.set()
        process.communicate(timeout=harness.SOON)
        assert killer.fired and process.returncode == -signal.SIGKILL, (command, after, process.returncode)
        published = command.startswith("fleece-checkpoint")
        found = list(points(t, t.path("set")))
        count += published
        assert len(found) == count, (command, after, found)
        if published:
            check_point(t, found[-1], number, paths)
        harness.wait_for("the snapshot is gone", lambda: snapshots(d) == [])
        number += 1
        guest.work(20)
        keep(t, paths, number)
        held = HeldBackup(t, d, t.path("set"))
        if grace:  # it said so in the place of the dead one
            latest = points(t, t.path("set"))[found[-1]]["checkpoint"]["uuid"]
            assert [c["state"] for c in checkpoints(d) if c["uuid"] == latest] == ["committed"], checkpoints(d)
        lines, said = held.end(0)
        line = lines[-1]
        assert said == "" and {disk["kind"] for disk in line["disks"]} == {"incremental"}, (command, after, said, line)
        check_point(t, line["point"], number, paths)
        count += 1
        assert [c["state"] for c in checkpoints(d)] == ["committed"], (command, after, checkpoints(d))
        assert not [name for name in os.listdir(t.path("set")) if name.startswith(".tmp-")]
    guest.leave()
    d.stop()


def kill_in_the_middle(t, d, where, disk=0):
    """A backup that is stopped when it has noted and released something of a disk, but has not copied all."""
    qmp = d.qmp()

    def released():
        return qmp.execute("fleece-query-status")["disks"][disk]["blocks-released"]
    before = released()

    def copied_in_part(gate):
        gate.allow(16 * MIB)
        time.sleep(0.6)  # something was copied, and from now on it is time to flush it
        for step in range(500):  # who has got a piece releases what was flushed, which may take long
            gate.allow(MIB if step < 10 else 64 << 10)
            with contextlib.suppress(AssertionError):
                return harness.wait_for("something is released", lambda: released() > before, 0.1)
        raise AssertionError("nothing is released")

    held = HeldBackup(t, d, where, until=copied_in_part)
    qmp.close()
    assert held.process.poll() is None, "it could not be caught in its middle"
    return held


def test_an_interrupted_backup_goes_on(t):
    sizes = {"vda": 64 * MIB, "vdb": 2 * MIB}
    paths, d = start(t, sizes=sizes)
    guest = Guest(d, sizes)
    for number, kind in enumerate(("full", "incremental")):
        if number:  # nearly all of it anew
            for at in range(0, 60):
                guest.disks["vda"].pwrite(guest.random.randbytes(MIB - 4096), at * MIB)
        held = kill_in_the_middle(t, d, t.path("set"))
        held.process.kill()
        held.process.wait()
        keep(t, {"vdb": paths["vdb"]}, number)
        before = t.path(f"vda.{number}")
        shutil.copyfile(paths["vda"], before)  # nothing was written since the cut
        guest.work(200)
        assert snapshots(d) == [held.snapshot["name"]]
        done = d.fleece("--json", "backup", t.path("set"), "--resume")
        first, last = (json.loads(line) for line in (done.stdout.splitlines()[0], done.stdout.splitlines()[-1]))
        assert first["resumed"] and first["uuid"] == held.snapshot["uuid"], first
        assert done.stderr == "" and {disk["kind"] for disk in last["disks"]} == {kind}, done
        assert snapshots(d) == []
        check_point(t, last["point"], number, paths, leaks=True)
        t.fleece("verify", t.path("set"))
        assert points(t, t.path("set"))[last["point"]]["snapshot"] == held.snapshot["uuid"]
    # A snapshot that is gone can't be gone on with; neither can what was never begun.
    held = HeldBackup(t, d, t.path("set"))
    held.process.kill()
    held.process.wait()
    d.fleece("snapshot", "delete", held.snapshot["name"])
    said = d.fleece("backup", t.path("set"), "--resume", status=3).stderr
    assert said.startswith("fleece: warning: no interrupted backup can go on, so this is a new one: "), said
    said = d.fleece("backup", t.path("set"), "--resume", status=3).stderr
    assert "has no interrupted backup that can go on" in said, said
    # Without --resume what a killed one has left goes: its folder, its snapshot, its checkpoint.
    held = HeldBackup(t, d, t.path("set"))
    held.process.kill()
    held.process.wait()
    backup(d, t.path("set"))
    assert snapshots(d) == [] and len(checkpoints(d)) == 1
    assert not [name for name in os.listdir(t.path("set")) if name.startswith(".tmp-")]
    guest.leave()
    d.stop()


def test_the_first_disk_was_done(t):
    """Interrupted while the second one was copied: of the first one all is there, its hashes, too."""
    paths, d = start(t, sizes={"vda": 2 * MIB, "vdb": 64 * MIB})
    held = kill_in_the_middle(t, d, t.path("set"), disk=1)
    held.process.kill()
    held.process.wait()
    keep(t, paths, 0)
    assert list(t.path("set").glob(".tmp-*/vda.sha256")), "the first disk is not done"
    done = d.fleece("--json", "backup", t.path("set"), "--resume")
    assert json.loads(done.stdout.splitlines()[0])["resumed"], done.stdout
    check_point(t, json.loads(done.stdout.splitlines()[-1])["point"], 0, paths, leaks=True)
    t.fleece("verify", t.path("set"))
    d.stop()


def test_a_finished_backup_is_published(t):
    """Killed when everything was copied, and nobody saw it yet: prune leaves it alone, and --resume has next to nothing
    to do, whether the snapshot is still there or not."""
    paths, d = start(t)
    guest = Guest(d, SIZES)
    keep(t, paths, 0)
    backup(d, t.path("set"))
    for number, after in ((1, False), (2, True)):
        guest.work(20)
        keep(t, paths, number)
        killer = Killer(t, d, "fleece-snapshot-delete", after)
        killer.process = t.spawn(t.program("fleece"), "--control", killer.path, "backup", t.path("set"), stdout=-1,
                                 stderr=-1)
        killer.started.set()
        killer.process.communicate(timeout=harness.SOON)
        assert killer.fired and killer.process.returncode == -signal.SIGKILL and len(snapshots(d)) == (0 if after else 1)
        guest.work(20)
        left, = (name for name in os.listdir(t.path("set")) if name.startswith(".tmp-"))
        said = t.fleece("prune", t.path("set"), "--keep-last", "9", status=3).stderr
        assert said == f"fleece: warning: {t.path('set')}/{left} is an interrupted backup and was kept: 'fleece backup " \
            "--resume' may go on with it, the next backup without that removes it\n", said
        done = d.fleece("--json", "backup", t.path("set"), "--resume")
        last = json.loads(done.stdout.splitlines()[-1])
        assert done.stderr == "" and snapshots(d) == [] and last["event"] == "done", done
        check_point(t, last["point"], number, paths)
        assert sorted(points(t, t.path("set")))[-1] == last["point"] and len(points(t, t.path("set"))) == number + 1
        latest = points(t, t.path("set"))[last["point"]]["checkpoint"]["uuid"]
        assert [(c["uuid"], c["state"]) for c in checkpoints(d)] == [(latest, "committed")], checkpoints(d)
        time.sleep(1.1)  # the name of a point has whole seconds
    guest.work(20)
    keep(t, paths, 3)
    line = backup(d, t.path("set"))
    assert {disk["kind"] for disk in line["disks"]} == {"incremental"}, line
    check_point(t, line["point"], 3, paths)
    t.fleece("verify", t.path("set"))
    guest.leave()
    d.stop()


def test_the_daemon_dies_in_the_middle(t):
    """kill -9 of the daemon: the snapshot lives on, and the backup goes on where its image was safe."""
    sizes = {"vda": 64 * MIB, "vdb": 2 * MIB}
    paths, d = start(t, sizes=sizes)
    guest = Guest(d, sizes)
    for number, kind in enumerate(("full", "incremental")):
        if number:
            for at in range(0, 60):
                guest.disks["vda"].pwrite(guest.random.randbytes(MIB - 4096), at * MIB)
        held = kill_in_the_middle(t, d, t.path("set"))
        keep(t, paths, number)
        guest.work(50)
        guest.leave()
        d.kill()
        _, said = held.end(1)
        assert said.endswith("; the backup can go on with --resume while the snapshot lives\n"), said
        t.daemons.clear()
        d = t.daemon(paths)
        guest = Guest(d, sizes, seed=number + 2)
        guest.work(50)
        done = d.fleece("--json", "backup", t.path("set"), "--resume")
        first, last = (json.loads(line) for line in (done.stdout.splitlines()[0], done.stdout.splitlines()[-1]))
        assert first["resumed"] and first["uuid"] == held.snapshot["uuid"] and done.stderr == "", done
        assert {disk["kind"] for disk in last["disks"]} == {kind} and snapshots(d) == [], last
        check_point(t, last["point"], number, paths, leaks=True)
        t.fleece("verify", t.path("set"))
    guest.work(20)
    keep(t, paths, 2)
    line = backup(d, t.path("set"))
    assert {disk["kind"] for disk in line["disks"]} == {"incremental"}, line
    check_point(t, line["point"], 2, paths)
    guest.leave()
    d.stop()


def test_cancelled_ones_forget_nothing(t):
    """A backup that fails or is cancelled leaves the set's checkpoint as it was: the next one has all that changed."""
    paths, d = start(t)
    guest = Guest(d, SIZES)
    backup(d, t.path("set"))
    before = [c["uuid"] for c in checkpoints(d)]
    guest.captured()
    for number in (signal.SIGINT, signal.SIGTERM):
        guest.work(20)
        held = HeldBackup(t, d, t.path("set"))
        assert len(checkpoints(d)) == 2
        held.process.send_signal(number)
        held.end(130)
        assert [c["uuid"] for c in checkpoints(d)] == before
    held = HeldBackup(t, d, t.path("set"))
    d.fleece("snapshot", "delete", held.snapshot["name"])
    held.end(1)
    assert [c["uuid"] for c in checkpoints(d)] == before
    guest.work(20)
    keep(t, paths, 1)
    expected = guest.captured()
    line = backup(d, t.path("set"))
    assert {name: disk["captured"] for name, disk in disks_of(line).items()} == expected
    check_point(t, line["point"], 1, paths)
    guest.leave()
    d.stop()


harness.main()
