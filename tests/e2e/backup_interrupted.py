#!/usr/bin/python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""Backups that do not reach their end: the set is as it was, the VM has no snapshot of theirs, and a sentence says why."""
import os
import signal

import nbd

import harness
from backup_kit import MIB, RAW, HeldBackup, look, points, snapshots, two_disks


def start(t, *options, data_mib=64):
    """A daemon, and a set with one point that must survive everything."""
    d = t.daemon(two_disks(t, data_mib), *options)
    d.fleece("backup", t.path("set"), *RAW)
    return d, look(t.path("set"))


def check_clean(t, d, before):
    assert look(t.path("set")) == before, "the set has changed"
    harness.wait_for("the snapshot is gone", lambda: snapshots(d) == [])


def check_next(t, d, count=2):
    """The next backup works and leaves nothing of the failed one."""
    done = d.fleece("backup", t.path("set"), *RAW)
    assert done.stderr == "", done.stderr
    assert len(points(t, t.path("set"))) == count
    assert len(os.listdir(t.path("set"))) == count + 1, os.listdir(t.path("set"))
    t.fleece("verify", t.path("set"))


def test_signals(t):
    d, before = start(t)
    for number in (signal.SIGINT, signal.SIGTERM):
        held = HeldBackup(t, d, t.path("set"), *RAW)
        assert snapshots(d) == [held.snapshot["name"]]
        held.process.send_signal(number)
        _, said = held.end(130)
        assert said == f"fleece: interrupted: the backup was abandoned; '{t.path('set')}' is as it was\n", said
        assert snapshots(d) == []
        check_clean(t, d, before)
    # A set that did not exist before does not exist afterwards.
    held = HeldBackup(t, d, t.path("new"), *RAW)
    held.process.send_signal(signal.SIGINT)
    held.end(130)
    assert not t.path("new").exists()
    check_next(t, d)
    d.stop()


def test_the_client_is_killed(t):
    d, before = start(t)
    for _ in range(3):
        held = HeldBackup(t, d, t.path("set"), *RAW, "--grace", "0")
        held.process.kill()
        held.process.wait()
        harness.wait_for("the leased snapshot is gone", lambda: snapshots(d) == [])
    # What is left is not a point, and goes with the next backup; what was there is untouched.
    after = look(t.path("set"))
    assert {name: after[name] for name in before} == before
    assert sum(name.startswith(".tmp-") for name in os.listdir(t.path("set"))) == 1, os.listdir(t.path("set"))
    assert len(points(t, t.path("set"))) == 1
    t.fleece("verify", t.path("set"))
    check_next(t, d)
    d.stop()


def test_the_daemon_is_killed(t):
    d, before = start(t)
    held = HeldBackup(t, d, t.path("set"), *RAW)
    d.kill()
    _, said = held.end(1)
    assert said.startswith(f"fleece: the daemon at {d.control} ") and said.count("\n") == 1, said
    assert said.endswith("; the backup can go on with --resume while the snapshot lives\n"), said
    after = look(t.path("set"))
    assert {name: after[name] for name in before} == before and len(points(t, t.path("set"))) == 1
    again = t.daemon({"vda": t.path("vda.raw"), "vdb": t.path("vdb.raw")})
    check_next(t, again)
    again.stop()


def test_the_daemon_hangs(t):
    """One that does not answer any more can still be left."""
    d, before = start(t)
    held = HeldBackup(t, d, t.path("set"), *RAW)
    d.process.send_signal(signal.SIGSTOP)
    try:
        held.process.send_signal(signal.SIGINT)
        held.go_on()
        held.process.wait(20 * harness.FACTOR)
    except Exception:
        held.process.send_signal(signal.SIGINT)  # the second one ends it in any case
        held.process.wait(harness.SOON)
    finally:
        d.process.send_signal(signal.SIGCONT)
    assert held.process.returncode == 130, held.process.returncode
    check_clean(t, d, before)
    check_next(t, d)
    d.stop()


def test_the_snapshot_breaks(t):
    d, before = start(t, "--fleece", "ram=4M")
    held = HeldBackup(t, d, t.path("set"), *RAW)
    live = nbd.NBD()
    live.connect_uri(d.uri("vda"))
    for start_ in range(0, 8 * MIB, MIB):
        live.pwrite(bytes(MIB), start_)
    live.shutdown()
    _, said = held.end(1)
    assert said.startswith("fleece: the snapshot broke in mid-backup: ") and said.count("\n") == 1, said
    assert "4" in said and "MiB" in said, said  # how large the cache is
    check_clean(t, d, before)
    check_next(t, d)
    d.stop()


def test_the_snapshot_is_deleted(t):
    d, before = start(t)
    held = HeldBackup(t, d, t.path("set"), *RAW)
    d.process  # the daemon waits for the reader's connections to end: it hangs up on them
    d.fleece("snapshot", "delete", held.snapshot["name"])
    _, said = held.end(1)
    assert said == f"fleece: the snapshot {held.snapshot['name']} was deleted in mid-backup\n", said
    check_clean(t, d, before)
    d.stop()


def test_two_at_once(t):
    d, _ = start(t)
    held = HeldBackup(t, d, t.path("set"), *RAW)
    said = d.fleece("backup", t.path("set"), *RAW, status=1).stderr
    assert f"another backup into '{t.path('set')}' is running (process {held.process.pid} on host " in said, said
    assert snapshots(d) == [held.snapshot["name"]]
    d.fleece("backup", t.path("other"), *RAW)  # another set is no problem
    lines, _ = held.end(0)
    assert lines[-1]["event"] == "done"
    check_next(t, d, count=3)
    d.stop()


def test_the_target_is_full(t):
    """A small file system, for a backup and for a restore."""
    if os.geteuid() != 0:
        raise harness.Skip("only root can mount")
    small = t.path("small")
    small.mkdir()
    if t.run("mount", "-t", "tmpfs", "-o", "size=24M", "none", small, status=None).returncode != 0:
        raise harness.Skip("mount is not permitted")
    try:
        d = t.daemon(two_disks(t))
        said = d.fleece("backup", small / "set", *RAW, status=1).stderr
        assert "vda.raw failed at byte " in said and "No space left on device" in said and said.count("\n") == 1, said
        assert os.listdir(small) == [] and snapshots(d) == []
        d.fleece("backup", t.path("set"), *RAW)
        said = t.fleece("restore", t.path("set"), "--disk", "vda", "--to", small / "x", status=1).stderr
        assert "writing" in said and "No space left on device" in said, said
        assert os.listdir(small) == []
        d.stop()
    finally:
        t.run("umount", small)


def interrupted(process, number):
    """The exit status of a process that gets a signal, and what it said."""
    process.send_signal(number)
    _, said = process.communicate(timeout=harness.SOON)
    return process.returncode, said


def in_time(attempt):
    """What it said, of the first attempt in which it was not done before the signal came."""
    for _ in range(10):
        status, said = attempt()
        if status != 0:
            assert status == 130, (status, said)
            return said
    raise AssertionError("it was done each time, or does not hear the signal")


def test_restore_is_interrupted(t):
    d, before = start(t, data_mib=128)
    d.stop()
    for number in (signal.SIGINT, signal.SIGTERM):
        def restore(number=number):
            t.path("out").unlink(missing_ok=True)
            process = t.spawn(t.program("fleece"), "restore", t.path("set"), "--disk", "vda", "--to", t.path("out"),
                              stderr=-1)
            harness.wait_for("the file appears", t.path("out").exists, pause=0.0005)
            return interrupted(process, number)
        said = in_time(restore)
        assert b"was not restored" in said, said
        assert not t.path("out").exists()

    def verify():
        process = t.spawn(t.program("fleece"), "--json", "verify", t.path("set"), stdout=-1, stderr=-1)
        process.stdout.readline()  # its first line of progress
        return interrupted(process, signal.SIGINT)
    said = in_time(verify)
    assert said == b"fleece: interrupted: not everything was verified\n", said
    assert look(t.path("set")) == before


harness.main()
