#!/usr/bin/python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""Snapshots that outlive kill -9 of the daemon."""
import os
import random
import shutil
import signal
import time

import harness
from tracking_kit import dirty_blocks, nbd_client

MIB = 1 << 20
STAMP = "tests/tools/stamp"
HANDED_OVER = 4  # the exit status


def disks(t):
    return {"vda": t.disk("a.raw", 24 * MIB, fill=1), "vdb": t.disk("b.raw", 8 * MIB, fill=2)}


def writer(t, d, log):
    said = open(t.path(f"{log}.said"), "wb")
    return t.spawn(t.program(STAMP), "write", d.uri("vda"), d.uri("vdb"), "--log", t.path(log), "--region", "0:8M",
                   "--writers", "4", "--queue", "8", "--until-disconnect", stdout=said, stderr=-2)


def copy(t, d, export, name):
    path = t.path(name)
    path.unlink(missing_ok=True)
    t.run("nbdcopy", d.uri(export), path)
    return path.read_bytes()


def snapshots(d):
    return {s["name"]: s for s in d.status()["snapshots"]}


def memory(t):
    return f"/dev/shm/fleece-{os.getuid()}/{t.vm}"


def test_snapshots_survive_kills_under_load(t):
    """RAM and cache files, several snapshots, several deaths: what was read of each before is read again after; and one that
    nobody had read yet holds exactly what was acknowledged before it was made."""
    harness.need("nbdcopy")
    images, content, made = disks(t), {}, {}
    options = ["--fleece", "ram=4M,max=256M"]
    for round_ in range(3):
        t.daemons.clear()
        d = t.daemon(images, *options)
        known = snapshots(d)
        assert set(known) == set(made), (known, made)
        for name, before in made.items():
            assert known[name] == before, (known[name], before)
        for (export, data) in content.items():
            assert copy(t, d, export, "again") == data, f"round {round_}: {export} has changed"
        if round_:
            t.run(t.program(STAMP), "check", d.uri(f"vda@late{round_ - 1}"), d.uri(f"vdb@late{round_ - 1}"), "--log",
                  t.path(f"log{round_ - 1}"), "--before", before_late, "--after", after_late)
        load = writer(t, d, f"log{round_}")
        harness.wait_for("the writer writes", lambda: d.status()["disks"][1]["writes"] > 300)
        d.fleece("snapshot", "create", f"s{round_}")
        for disk in images:
            content[f"{disk}@s{round_}"] = copy(t, d, f"{disk}@s{round_}", "first")
        if round_ == 2:  # one in the middle goes
            d.fleece("snapshot", "delete", "s0")
            content = {export: data for export, data in content.items() if not export.endswith("@s0")}
        before_late = t.run(t.program(STAMP), "now").stdout.strip()
        d.fleece("snapshot", "create", f"late{round_}")
        after_late = t.run(t.program(STAMP), "now").stdout.strip()
        time.sleep(random.uniform(0.1, 0.8))
        made = snapshots(d)
        assert all(s["state"] == "live" and s["durability"] == "restartable" for s in made.values()), made
        if round_ == 2:
            assert d.status()["cache"]["file-bytes"] > 0 and d.status()["cache"]["bytes"] > 0
        d.kill()
        assert load.wait(harness.SOON) == 0, t.path(f"log{round_}.said").read_text()
    t.daemons.clear()
    d = t.daemon(images, *options)
    for (export, data) in content.items():
        assert copy(t, d, export, "again") == data, f"at the end: {export} has changed"
    for name in made:
        d.fleece("snapshot", "delete", name)
    status = d.status()
    assert status["cache"]["file-bytes"] == 0 and not list(t.dir.glob("*.fleece-cache")), status["cache"]
    d.stop()
    assert not os.path.exists(memory(t))


def test_the_kinds(t):
    """A leased snapshot waits for its client, a broken one is still broken and says why, an ephemeral one is gone; the end
    in good order leaves nothing."""
    images = disks(t)
    d = t.daemon(images, "--fleece", "ram=4M")
    d.fleece("snapshot", "create", "breaks")
    t.run("qemu-io", "-f", "raw", "-c", "write 0 16M", d.uri("vda"))
    reason = snapshots(d)["breaks"]["reason"]
    d.fleece("snapshot", "create", "--ephemeral", "brief")
    client = d.qmp()
    client.execute("fleece-snapshot-create", name="leased", lease=True)
    client.execute("fleece-snapshot-create", name="day")
    client.execute("fleece-snapshot-delete", name="day")
    uuids = {name: s["uuid"] for name, s in snapshots(d).items()}
    d.kill()
    again = t.daemon(images, "--fleece", "ram=4M")
    found = snapshots(again)
    assert set(found) == {"breaks", "leased"}, found
    assert all(s["uuid"] == uuids[name] for name, s in found.items())
    assert found["breaks"]["state"] == "broken" and found["breaks"]["reason"] == reason, found
    assert found["leased"]["state"] == "live" and not found["leased"]["leased"], found
    assert "snapshot leased has survived\n" in again.log() and "snapshot breaks has survived, though broken" in again.log()
    t.run("qemu-img", "compare", "-f", "raw", "-F", "raw", again.uri("vdb@leased"), images["vdb"])
    again.fleece("snapshot", "create", "brief")  # the name is free
    again.stop()
    assert not os.path.exists(memory(t))


def an_incremental_goes_on(t, end):
    """A client of what has changed comes back to a new daemon: it takes its lease again, sees all that had changed, also
    what it has released, and commits the checkpoint that was made with the snapshot."""
    images = disks(t)
    d = t.daemon(images)
    with d.qmp() as client:
        client.execute("fleece-checkpoint-create", name="base")
    t.run("qemu-io", "-f", "raw", "-c", "write -P 1 0 64k", "-c", "write -P 2 1M 4k", d.uri("vda"))
    client = d.qmp()
    made = client.execute("fleece-snapshot-create", name="inc", lease=True, grace=30, since="base", checkpoint="next")
    t.run("qemu-io", "-f", "raw", "-c", "write -P 9 0 2M", d.uri("vda"))
    h = nbd_client(d.uri("vda@inc"))
    h.trim(32768, 0)  # these are safe
    h.shutdown()
    end(d)
    again = t.daemon(images)
    assert dirty_blocks(again, "vda@inc", "base") == set(range(16)) | {256}
    assert dirty_blocks(again, "vdb@inc", "base") == set()
    h = nbd_client(again.uri("vda@inc"))
    assert h.pread(32768, 32768) == b"\1" * 32768 and h.pread(4096, MIB) == b"\2" * 4096
    h.shutdown()
    with again.qmp() as client:
        client.execute("fleece-snapshot-lease", uuid=made["uuid"])
        assert snapshots(again)["inc"]["leased"]
        states = {c["name"]: c["state"] for c in client.execute("fleece-query-checkpoints")}
        assert states == {"base": "committed", "next": "pending"}, states
        client.execute("fleece-checkpoint-commit", uuid=made["checkpoint"]["uuid"])
        client.execute("fleece-snapshot-delete", name="inc")
    with again.qmp() as client:
        client.execute("fleece-checkpoint-delete", name="base")
        [left] = client.execute("fleece-query-checkpoints")
        assert left["name"] == "next" and left["disks"][0]["changed"] == 2 * MIB, left
    again.stop()
    assert not os.path.exists(memory(t))


def test_an_incremental_goes_on(t):
    an_incremental_goes_on(t, harness.Daemon.kill)


def test_a_daemon_that_hands_over(t):
    """SIGUSR2: what a kill leaves is left to the next daemon, and no socket."""
    def hand_over(d):
        d.process.send_signal(signal.SIGUSR2)
        d.wait(HANDED_OVER)
        assert not os.path.exists(d.control) and "ending for the next daemon" in d.log()
    an_incremental_goes_on(t, hand_over)


def test_a_qcow2_disk(t):
    """Nobody flushes it: what is in the snapshot and on the disk is what was written, whatever was killed."""
    harness.need("qemu-img", "nbdcopy")
    image = t.path("a.qcow2")
    t.run("qemu-img", "create", "-q", "-f", "qcow2", image, "16M")
    d = t.daemon({"vda": f"{image},format=qcow2"})
    h = nbd_client(d.uri("vda"))
    for at in range(0, 12 * MIB, 192 << 10):
        h.pwrite(bytes([1 + at // 65536 % 250]) * 65536, at)
    d.fleece("snapshot", "create", "s")
    before = copy(t, d, "vda@s", "first")
    for at in range(0, 8 * MIB, 128 << 10):
        h.pwrite(b"\xff" * 4096, at)
    assert before[0] == 1 and before != bytes(len(before))
    d.kill()
    again = t.daemon({"vda": f"{image},format=qcow2"})
    assert copy(t, again, "vda@s", "again") == before
    again.stop()
    t.run("qemu-img", "check", "-q", "-r", "leaks", image)


def test_what_does_not_fit_is_buried(t):
    """Another unit of preservation, another disk, a disk of another size: nothing is adopted, nothing is left, the log says
    why, and the guest is served."""
    a, b = disks(t).values()
    other = t.disk("other.raw", 24 * MIB)
    cases = [({"vda": other, "vdb": b}, ["--fleece", "ram=8M,max=64M"], "disk vda is another file than then"),
             ({"vda": a, "vdb": b}, ["--fleece", "ram=8M"], "its cache file holds more than what is allowed"),
             ({"vda": a}, [], "the VM had 2 disks, and has 1 now"),
             ({"vda": f"{a},granularity=16K", "vdb": b}, ["--fleece", "ram=8M,max=64M"],
              "disk vda: blocks of 16384 bytes"),
             ({"vda": a, "vdb": b}, ["--fleece", "ram=8M,max=64M"],
              "disk vda: the disk has 67108864 bytes, and had 25165824")]
    for images, options, reason in cases:
        d = t.daemon({"vda": a, "vdb": b}, "--fleece", "ram=8M,max=64M")
        d.fleece("snapshot", "create", "s")
        t.run("qemu-io", "-f", "raw", "-c", "write 0 12M", d.uri("vda"))
        d.kill()
        t.daemons.clear()
        if "67108864" in reason:
            os.truncate(a, 64 * MIB)
        d = t.daemon(images, *options)
        assert snapshots(d) == {}, options
        assert "the snapshots of the daemon that was killed are lost: " in d.log(), d.log()
        assert reason in d.log(), d.log()
        assert not list(t.dir.glob("*.fleece-cache"))
        d.fleece("snapshot", "create", "s")
        d.stop()
        assert not os.path.exists(memory(t))
        t.daemons.clear()


def test_written_behind_our_back(t):
    """Somebody writes to an image while no daemon runs after a kill: neither snapshots nor checkpoints are believed. Nor is
    anything doubted when nobody did."""
    a = t.disk("a.raw", 16 * MIB, fill=1)
    d = t.daemon({"vda": a})
    d.fleece("checkpoint", "create", "base")
    d.fleece("snapshot", "create", "s")
    t.run("qemu-io", "-f", "raw", "-c", "write 0 1M", d.uri("vda"))
    for written in (False, True):
        for _ in range(10):  # until it is noted that the disk is at rest; all threads of the daemon have run in each round
            time.sleep(0.1)
            d.status()
        d.kill()
        t.daemons.clear()
        if written:
            with open(a, "r+b") as f:
                f.seek(9 * MIB)
                f.write(b"x")
        d = t.daemon({"vda": a})
        said = d.status()["disks"][0]["tracking"]
        if not written:
            assert set(snapshots(d)) == {"s"} and said["recovery"] == "adopted", said
    why = "somebody has changed the disk's file since the daemon was killed"
    assert snapshots(d) == {} and f"are lost: disk vda: {why}" in d.log(), d.log()
    assert said["state"] == "invalid" and said["reason"] == why, said
    assert os.listdir(memory(t)) == [] if os.path.exists(memory(t)) else True
    d.stop()


def kill_for_good(t, d):
    """No daemon of that VM comes again, so nobody takes its sockets away."""
    d.kill()
    for path in (d.control, d.nbd[5:]):
        os.unlink(path)
    shutil.rmtree(f"/run/fleece/{t.vm}")


def test_a_vm_that_was_renamed(t):
    """What a killed daemon has left belongs to the disks, whatever their VM is called then: it is there under the new name,
    and nothing of it under the old one. What belongs to the disks of another VM stays there."""
    images = disks(t)
    first, strange = t.vm, t.disk("c.raw", 16 * MIB)
    for name in (f"{first}-other", f"{first}-new", first):
        t.vm = name
        mine = {"vda": strange} if name.endswith("other") else images
        d = t.daemon(mine, "--fleece", "ram=8M,max=64M")
        if name != first:
            d.fleece("checkpoint", "create", "base")
            d.fleece("snapshot", "create", "s")
            data = copy(t, d, "vda@s", "before")
        else:
            assert set(snapshots(d)) == {"s"} and copy(t, d, "vda@s", "again") == data
            assert {disk["tracking"]["recovery"] for disk in d.status()["disks"]} == {"adopted"}
            assert f"VM {first}-new has left in memory" in d.log() and not os.path.exists(f"{memory(t)}-new")
            assert sorted(os.listdir(f"{memory(t)}-other")) == ["snapshots", "vda.map", "vda.slots", "vda.track"]
            d.fleece("snapshot", "delete", "s")
        t.run("qemu-io", "-f", "raw", "-c", "write 0 12M", d.uri("vda"))
        if name != first:
            kill_for_good(t, d)
    d.stop()
    t.vm = f"{first}-other"
    t.daemon({"vda": strange}).stop()
    t.vm = first


def test_a_disk_whose_file_is_not_surely_the_same(t):
    """On FUSE, as on NFS, a file's numbers are given again: under another VM's name what was left in memory is not trusted
    but removed, snapshots and bitmaps; under its own it is adopted."""
    harness.need("nbdfuse", "nbdkit")
    server, folder, first = t.path("nbd.sock"), t.path("fuse"), t.vm
    folder.mkdir()
    nbdkit = t.spawn_server("nbdkit", "-f", "-U", server, "memory", "16M")
    fuse = t.spawn("nbdfuse", folder / "disk", f"nbd+unix:///?socket={server}")
    image = folder / "disk"
    harness.wait_for("the disk is mounted", image.exists)
    try:
        d = t.daemon({"vda": image}, "--state-dir", t.path("state"))
        d.fleece("checkpoint", "create", "base")
        d.fleece("snapshot", "create", "s")
        old = memory(t)
        for name, recovery, left in ((first, "adopted", ["s"]), (f"{first}-new", None, [])):
            kill_for_good(t, d)
            t.vm = name
            d = t.daemon({"vda": image}, "--state-dir", t.path("state"))
            assert d.status()["disks"][0]["tracking"].get("recovery") == recovery and list(snapshots(d)) == left, d.log()
        assert "vda.track' is lost" in d.log() and "snapshots' is lost" in d.log() and not os.path.exists(old)
        d.stop()
    finally:
        d.kill()
        t.run("umount", folder, status=None)
        fuse.wait(harness.SOON)
        nbdkit.terminate()
        nbdkit.wait(harness.SOON)
        t.vm = first


def test_a_disk_that_went_to_another_vm(t):
    """Snapshots of two disks, one of which another VM serves now, by another name: they are buried there, and don't wait for
    ever. What changed on the other disk is known when it comes back."""
    images, first = disks(t), t.vm
    d = t.daemon(images)
    d.fleece("checkpoint", "create", "base")
    d.fleece("snapshot", "create", "s")
    t.run("qemu-io", "-f", "raw", "-c", "write 0 12M", d.uri("vda"))
    old = memory(t)
    kill_for_good(t, d)
    t.vm = f"{first}-new"
    d = t.daemon({"vdz": images["vda"]})
    assert snapshots(d) == {} and "are lost: disk vdz was not there then" in d.log(), d.log()
    assert d.status()["disks"][0]["tracking"]["reason"] == "the disk is called vdz, it was vda when it was tracked last"
    assert os.listdir(old) == ["vdb.track"]
    d.stop()
    assert not os.path.exists(memory(t))
    t.vm = first
    d = t.daemon({"vdb": images["vdb"]})
    assert d.status()["disks"][0]["tracking"]["recovery"] == "adopted"
    d.stop()


def test_a_start_that_fails_loses_nothing(t):
    images = disks(t)
    d = t.daemon(images)
    d.fleece("snapshot", "create", "s")
    d.kill()
    bad = t.daemon(images, nbd="unix:/nowhere/at/all", wait=False)
    bad.process.wait(harness.SOON)
    bad.ended = True
    assert bad.process.returncode == 1, bad.log()
    again = t.daemon(images)
    assert set(snapshots(again)) == {"s"}, again.log()
    again.stop()


harness.main()
