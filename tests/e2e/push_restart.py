#!/usr/bin/python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""Pushes that outlive kill -9 of the daemon: they go on, or they end with the reason and leave nothing."""
import contextlib
import json
import os
import pathlib
import random
import shutil
import signal
import socket
import subprocess
import time

import harness
from loop_kit import loop_device
from tracking_kit import nbd_client

MIB = 1 << 20
SLOW = MIB  # so that no machine is done with a push before it is killed often enough


def memory(t):
    return f"/dev/shm/fleece-{os.getuid()}/{t.vm}"


def again(t, d, images, *options):
    """The daemon is killed, and another one has its place."""
    d.kill()
    t.daemons.clear()
    return t.daemon(images, *options)


def job(d):
    """The only job."""
    with d.qmp() as q:
        shown = q.execute("query-block-jobs")
    assert len(shown) == 1, shown
    return shown[0]


def status_of(d):
    with d.qmp() as q:
        return [(j["id"], j["status"], j.get("error")) for j in q.execute("query-jobs")]


def wait_offset(d, more_than):
    harness.wait_for(f"more than {more_than} bytes are copied", lambda: job(d)["offset"] > more_than)


def hurry(d, name):
    """No limit from now on; on a slow machine the job may be done already."""
    with d.qmp() as q, contextlib.suppress(harness.QmpError):
        q.execute("block-job-set-speed", device=name, speed=0)


def wait_concluded(d):
    harness.wait_for("the job has concluded", lambda: job(d)["status"] == "concluded")
    return job(d)


def write(d, chance, disk="vda", size=24 * MIB, count=60):
    """The guest writes somewhere."""
    guest = nbd_client(d.uri(disk))
    for _ in range(count):
        guest.pwrite(chance.randbytes(4096), chance.randrange(size // 4096) * 4096)
    guest.shutdown()


def nothing_left(t, d):
    """No snapshot, no memory in use; after an orderly end no memory and no file but those that belong to the test."""
    status = d.status()
    assert status["snapshots"] == [] and status["cache"]["bytes"] == 0, status
    d.stop()
    assert not os.path.exists(memory(t)), os.listdir(memory(t))
    assert not list(t.dir.glob(".fleece-push-*")) and not list(t.dir.glob("*.fleece-cache"))


def test_a_full_push_survives_kills(t):
    """A new file and one that is overwritten, of two disks, one of which is written all the time; two deaths."""
    chance = random.Random(1)
    images = {"vda": t.disk("a.raw", 24 * MIB, 1), "vdb": t.disk("b.raw", 6 * MIB + 512, harness.pattern(9000, 2)),
              "vdc": t.disk("c.raw", 2 * MIB, 3)}  # which is not pushed
    a, b = t.path("a.copy"), t.disk("b.copy", 6 * MIB + 512, 3)
    d = t.daemon(images, "--fleece", "ram=4M,max=256M")
    right = [image.read_bytes() for image in images.values()]
    with d.qmp() as q:
        q.execute("fleece-push", targets=[{"disk": "vda", "target": str(a)}, {"disk": "vdb", "target": str(b)}],
                  job_id="j", speed=SLOW, force=True)
    assert [s["durability"] for s in d.status()["snapshots"]] == ["restartable"]
    offset, inode = 0, b.stat().st_ino
    for _ in range(2):
        wait_offset(d, offset + MIB)
        write(d, chance)
        before = job(d)["offset"]
        d = again(t, d, images, "--fleece", "ram=4M,max=256M")
        shown = job(d)
        assert shown["device"] == "j" and shown["len"] == 30 * MIB + 512 and shown["speed"] == SLOW, shown
        assert shown["status"] in ("running", "concluded") and shown["offset"] >= before, (shown, before)
        assert "job j has survived" in d.log()
        write(d, chance)
        offset = max(before, job(d)["offset"])
    hurry(d, "j")
    shown = wait_concluded(d)
    assert shown["offset"] == shown["len"] and "error" not in shown, shown
    assert a.read_bytes() == right[0] and b.read_bytes() == right[1] and b.stat().st_ino == inode
    with d.qmp() as q:
        q.execute("job-dismiss", id="j")
    nothing_left(t, d)


def test_disks_that_are_not_pushed(t):
    """They have no target, neither at the end of a job nor at that of one that was taken over."""
    images = {"vda": t.disk("a.raw", 4 * MIB, 1), "vdb": t.disk("b.raw", 4 * MIB, 2), "vdc": t.disk("c.raw", 4 * MIB, 3)}
    d = t.daemon(images)
    d.fleece("push", "--to", f"vda={t.path('a.copy')}")
    with d.qmp() as q:
        q.execute("fleece-push", targets=[{"disk": "vdb", "target": str(t.path("b.copy"))}], job_id="j", speed=MIB)
    wait_offset(d, 0)
    d = again(t, d, images)
    hurry(d, "j")
    assert "error" not in wait_concluded(d)
    assert t.path("a.copy").read_bytes() == images["vda"].read_bytes()
    assert t.path("b.copy").read_bytes() == images["vdb"].read_bytes()
    with d.qmp() as q:
        q.execute("job-dismiss", id="j")
    nothing_left(t, d)


def test_what_was_released_is_not_copied_again(t):
    """Nor preserved any more (C24): what the target has for good is the target's alone, before and after the kill."""
    disk, image = t.disk("a.raw", 32 * MIB, 1), t.path("o.raw")
    d = t.daemon({"vda": disk})
    right = disk.read_bytes()
    with d.qmp() as q:
        q.execute("fleece-push", targets=[{"disk": "vda", "target": str(image)}], job_id="j", speed=4 * MIB)
    harness.wait_for("something is released", lambda: d.status()["disks"][0]["blocks-released"] >= 6 * MIB // 4096)
    with d.qmp() as q:
        q.execute("job-pause", id="j")
        harness.wait_for("it pauses", lambda: q.execute("query-jobs")[0]["status"] == "paused")
        released = d.status()["disks"][0]["blocks-released"] * 4096
        q.execute("block-job-set-speed", device="j", speed=9 * MIB)
    d = again(t, d, {"vda": disk})
    harness.wait_for("it is paused again", lambda: job(d)["status"] == "paused")
    assert job(d)["paused"] and job(d)["speed"] == 9 * MIB, job(d)
    guest = nbd_client(d.uri("vda"))
    for number in range(6):
        guest.pwrite(b"x" * 4096, number * MIB)
    assert d.status()["disks"][0]["blocks-preserved"] == 0
    guest.shutdown()
    data = job(d)["disks"][0]["data"]
    with d.qmp() as q:
        q.execute("job-resume", id="j")
    copied = wait_concluded(d)["disks"][0]["data"] - data
    assert copied <= 32 * MIB - released, (copied, released)
    assert image.read_bytes() == right
    with d.qmp() as q:
        q.execute("job-dismiss", id="j")
    nothing_left(t, d)


def test_an_incremental_push_survives_kills(t):
    """Only what is set in the bitmap at the cut is written, whatever the bitmap and the disk become afterwards."""
    chance = random.Random(3)
    disk, image = t.disk("a.raw", 32 * MIB, 1), t.path("o.raw")
    d = t.daemon({"vda": disk})
    with d.qmp() as q:
        q.execute("block-dirty-bitmap-add", node="vda", name="b", granularity=4096)
    d.fleece("push", "--to", f"vda={image}")
    write(d, chance, size=32 * MIB, count=3000)
    right = bytearray(disk.read_bytes())
    clean = next(at for at in range(0, 32 * MIB, 4096) if right[at:at + 4096] == image.read_bytes()[at:at + 4096])
    with open(image, "r+b") as f:  # where nothing changed the target keeps what it has
        f.seek(clean)
        f.write(b"kept")
    right[clean:clean + 4] = b"kept"
    with d.qmp() as q:
        q.execute("blockdev-backup", job_id="i", device="vda", target=str(image), sync="bitmap", bitmap="b",
                  bitmap_mode="never", speed=SLOW)
    offset = 0
    for _ in range(2):
        wait_offset(d, offset + MIB)
        write(d, chance, size=32 * MIB, count=50)
        d = again(t, d, {"vda": disk})
        write(d, chance, size=32 * MIB, count=50)
        offset = job(d)["offset"]
    hurry(d, "i")
    assert "error" not in wait_concluded(d)
    assert image.read_bytes() == right
    with d.qmp() as q:
        q.execute("job-dismiss", id="i")
    nothing_left(t, d)


def test_what_cannot_go_on_ends_with_the_reason(t):
    """Another file, no file, a mode without a cache: the job fails, strangers' files stay as they are."""
    disk = t.disk("a.raw", 16 * MIB, 1)

    def moved(image):
        image.rename(t.path("moved"))
        image.write_bytes(b"mine" * 4 * MIB)

    cases = [("both", moved, "not there any more, or another file"), ("both", os.unlink, "not there any more"),
             ("both", lambda image: t.path("a.raw").touch(), None),
             ("ram", lambda image: None, "in mode 'ram' old data went straight"),
             ("plain", lambda image: None, "in mode 'plain' old data went straight")]
    for mode, act, reason in cases:
        image = t.path("o.raw")
        d = t.daemon({"vda": disk})
        with d.qmp() as q:
            q.execute("fleece-push", targets=[{"disk": "vda", "target": str(image)}], job_id="j", mode=mode, speed=MIB)
        wait_offset(d, 0)
        d.kill()
        act(image)
        t.daemons.clear()
        d = t.daemon({"vda": disk})
        if reason:
            shown = wait_concluded(d)
            assert reason in shown["error"], shown
            assert status_of(d) == [("j", "concluded", shown["error"])]
        with d.qmp() as q:
            q.execute("job-dismiss" if reason else "job-cancel", id="j")
        if not reason:
            wait_concluded(d)
        if act is moved:
            assert image.read_bytes() == b"mine" * 4 * MIB
            image.unlink()
        assert not image.exists(), (mode, reason)
        nothing_left(t, d)
        t.daemons.clear()


def test_ends_survive(t):
    """Cancelled; waiting to be finalized; concluded and not dismissed: so they are again."""
    disk, image = t.disk("a.raw", 8 * MIB, 1), t.path("o.raw")
    d = t.daemon({"vda": disk})
    with d.qmp() as q:
        q.execute("fleece-push", targets=[{"disk": "vda", "target": str(image)}], job_id="j", auto_finalize=False,
                  auto_dismiss=False)
    for _ in range(2):
        harness.wait_for("it waits for its user", lambda: job(d)["status"] == "pending")
        assert job(d)["offset"] == 8 * MIB
        d = again(t, d, {"vda": disk})
    harness.wait_for("it waits for its user", lambda: job(d)["status"] == "pending")
    with d.qmp() as q:
        q.execute("job-finalize", id="j")
    wait_concluded(d)
    d = again(t, d, {"vda": disk})
    assert wait_concluded(d)["offset"] == 8 * MIB and image.read_bytes() == disk.read_bytes()
    with d.qmp() as q:
        q.execute("job-dismiss", id="j")
        q.execute("fleece-push", targets=[{"disk": "vda", "target": str(t.path("p.raw"))}], job_id="k", speed=MIB,
                  auto_dismiss=False)
        q.execute("job-cancel", id="k")
    wait_concluded(d)
    d = again(t, d, {"vda": disk})
    shown = wait_concluded(d)
    assert "cancelled" in shown["error"] and not t.path("p.raw").exists(), shown
    with d.qmp() as q:
        q.execute("job-dismiss", id="k")
    nothing_left(t, d)


def test_a_whole_copy_is_kept(t):
    """Also when the next daemon does not have its disk, and when a start fails: it may be the user's already."""
    disk, other, image = t.disk("a.raw", 4 * MIB, 1), t.disk("b.raw", 4 * MIB, 2), t.path("o.raw")
    for finalize in (False, True):
        d = t.daemon({"vda": disk})
        with d.qmp() as q:
            q.execute("fleece-push", targets=[{"disk": "vda", "target": str(image)}], job_id="j", auto_dismiss=False,
                      auto_finalize=finalize)
        state = "concluded" if finalize else "pending"
        harness.wait_for(f"the job is {state}", lambda: job(d)["status"] == state)
        d.kill()
        failing = t.daemon({"vda": disk}, "--vhost-user", f"vda={t.path('no-folder')}/v.sock", wait=False)
        failing.wait(status=1)
        assert image.read_bytes() == disk.read_bytes(), failing.log()
        t.daemons.clear()
        d = t.daemon({"vda": disk})
        harness.wait_for(f"the job is {state} again", lambda: job(d)["status"] == state)
        d = again(t, d, {"vdb": other})
        assert status_of(d) == [] and image.read_bytes() == disk.read_bytes()
        assert "job j of the daemon that was killed is lost: disk vda is not there any more" in d.log()
        nothing_left(t, d)
        t.daemons.clear()
        image.unlink()


def test_a_target_that_somebody_changed(t):
    """The very file, while no daemon had it: the snapshot has no more of what was released, so nobody can put it right."""
    disk, image = t.disk("a.raw", 4 * MIB, 1), t.path("o.raw")
    for changed in (False, True):
        d = t.daemon({"vda": disk})
        with d.qmp() as q:
            q.execute("fleece-push", targets=[{"disk": "vda", "target": str(image)}], job_id="j", speed=MIB // 2)
        harness.wait_for("something is released", lambda: d.status()["disks"][0]["blocks-released"] > 0)
        with d.qmp() as q:
            q.execute("job-pause", id="j")
            harness.wait_for("it pauses", lambda: q.execute("query-jobs")[0]["status"] == "paused")
        d.kill()
        t.daemons.clear()
        if changed:
            with open(image, "r+b") as f:
                f.write(b"mine")
            later = time.time() + 11  # what comes sooner may be what the daemon had on its way
            os.utime(image, (later, later))
        d = t.daemon({"vda": disk})
        with d.qmp() as q:
            if not changed:
                q.execute("job-resume", id="j")
                q.execute("block-job-set-speed", device="j", speed=0)
        shown = wait_concluded(d)
        if changed:
            assert "somebody has changed target" in shown["error"], shown
        else:
            assert "error" not in shown and image.read_bytes() == disk.read_bytes(), shown
        with d.qmp() as q:
            q.execute("job-dismiss", id="j")
        nothing_left(t, d)
        t.daemons.clear()
        image.unlink(missing_ok=True)


def test_a_target_that_is_replaced(t):
    """While it is written, and between its last byte and the end of the job: what is there is not the copy."""
    disk, image = t.disk("a.raw", 4 * MIB, 1), t.path("o.raw")
    for late in (False, True):
        d = t.daemon({"vda": disk})
        with d.qmp() as q:
            q.execute("fleece-push", targets=[{"disk": "vda", "target": str(image)}], job_id="j", auto_dismiss=False,
                      auto_finalize=False, **({} if late else {"speed": MIB}))
        if late:
            harness.wait_for("it waits for its user", lambda: job(d)["status"] == "pending")
            d.kill()
        else:
            wait_offset(d, 0)
        image.rename(t.path("moved"))
        image.write_bytes(b"mine")
        if late:
            t.daemons.clear()
            d = t.daemon({"vda": disk})
        else:
            with d.qmp() as q:
                q.execute("block-job-set-speed", device="j", speed=0)
        assert "another file than was written" in wait_concluded(d)["error"]
        assert image.read_bytes() == b"mine"
        with d.qmp() as q:
            q.execute("job-dismiss", id="j")
        nothing_left(t, d)
        t.daemons.clear()
        image.unlink()


def client(t, d, *arguments):
    process = t.spawn(t.program("fleece"), "--control", d.control, "push", "--job", "j", *arguments,
                      stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    harness.wait_for("the job runs", lambda: [j[1] for j in status_of(d)] == ["running"])
    return process


def hears(push, text):
    """What the client says next has that in it."""
    harness.wait_for(text, lambda: text in os.read(push.stderr.fileno(), 4096))


def test_the_client_waits_for_the_daemon(t):
    """It watches on after the daemon has come back: to a good end, to a bad one, to one that came before it was there."""
    disk, image = t.disk("a.raw", 16 * MIB, 1), t.path("o.raw")
    d = t.daemon({"vda": disk})
    push = client(t, d, "--to", f"vda={image}", "--speed", "512K")
    for _ in range(2):
        wait_offset(d, job(d)["offset"])
        d = again(t, d, {"vda": disk})
    hurry(d, "j")
    out, said = push.communicate(timeout=harness.SOON)
    assert push.returncode == 0 and b"pushed vda: 16" in out and b"waiting until it is back" in said, (out, said)
    assert image.read_bytes() == disk.read_bytes()
    harness.wait_for("the client has dismissed it", lambda: not status_of(d))
    push = client(t, d, "--to", f"vda={t.path('p.raw')}", "--speed", "512K")
    push.send_signal(signal.SIGSTOP)
    d.kill()
    t.path("p.raw").unlink()
    t.daemons.clear()
    d = t.daemon({"vda": disk})
    wait_concluded(d)
    push.send_signal(signal.SIGCONT)
    said = push.communicate(timeout=harness.SOON)[1].decode()
    assert push.returncode == 1 and "not there any more" in said, said
    harness.wait_for("the client has dismissed it", lambda: not status_of(d))
    push = client(t, d, "--to", f"vda={t.path('p.raw')}", "--speed", "512K")
    d.kill()
    hears(push, b"waiting")
    push.send_signal(signal.SIGINT)
    said = push.communicate(timeout=harness.SOON)[1].decode()
    assert push.returncode == 130 and "goes on with job 'j'" in said, said
    t.daemons.clear()
    d = t.daemon({"vda": disk})
    with d.qmp() as q:
        q.execute("job-cancel", id="j")
    wait_concluded(d)
    nothing_left(t, d)


def test_the_client_and_a_daemon_that_goes_twice(t):
    """One that hands over is waited for, too; an interruption is heard in the second wait. One that ends is the end."""
    disk, image = t.disk("a.raw", 16 * MIB, 1), t.path("o.raw")
    d = t.daemon({"vda": disk})
    push = client(t, d, "--to", f"vda={image}", "--speed", "512K")
    d.process.send_signal(signal.SIGUSR2)
    d.wait(status=4)
    t.daemons.clear()
    d = t.daemon({"vda": disk})
    hears(push, b"the daemon is back: job 'j' is running")
    d.kill()
    hears(push, b"waiting")
    push.send_signal(signal.SIGINT)
    said = push.communicate(timeout=harness.SOON)[1].decode()
    assert push.returncode == 130 and "goes on with job 'j'" in said, (push.returncode, said)
    t.daemons.clear()
    d = t.daemon({"vda": disk})
    with d.qmp() as q:
        q.execute("job-cancel", id="j")
        wait_concluded(d)
        q.execute("job-dismiss", id="j")
    push = client(t, d, "--to", f"vda={image}", "--speed", "512K")
    d.stop()
    said = push.communicate(timeout=harness.SOON)[1].decode()
    assert push.returncode == 1 and "was cancelled" in said and not image.exists(), (push.returncode, said)


def lose_the_answer(listener, greeting):
    """A daemon that is killed when it has made a job, and has not said so."""
    client = listener.accept()[0]
    listener.close()  # nobody else gets in
    client.sendall(json.dumps({"QMP": greeting}).encode() + b"\n")
    with client, client.makefile("r") as lines:
        for line in lines:
            asked = json.loads(line)
            if asked["execute"] == "fleece-push":
                return
            client.sendall(json.dumps({"return": {}, "id": asked.get("id")}).encode() + b"\n")


def test_the_client_has_lost_the_answer(t):
    """It hears of the job from the next daemon, and that the guest should have been frozen and was not: status 3."""
    disk, control = t.disk("a.raw", 4 * MIB, 1), t.path("c.sock")
    d = t.daemon({"vda": disk}, "--guest-agent", t.path("nobody.sock"))
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(control))
        listener.listen()
        with d.qmp() as q:
            q.execute("fleece-push", targets=[{"disk": "vda", "target": str(t.path("o.raw"))}], job_id="j",
                      auto_dismiss=False)
        push = t.spawn(t.program("fleece"), "--control", control, "push", "--job", "j", "--to", f"vda={t.path('o.raw')}",
                       stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        lose_the_answer(listener, q.greeting)
    control.unlink()
    control.symlink_to(d.control)
    said = push.communicate(timeout=harness.SOON)[1].decode()
    assert push.returncode == 3 and "what is pushed is crash-consistent: the guest agent can't" in said, said
    nothing_left(t, d)


def start(d, name, target, **options):
    """A slow push of the only disk."""
    disk = d.status()["disks"][0]["name"]
    with d.qmp() as q:
        q.execute("fleece-push", targets=[{"disk": disk, "target": str(target)}], job_id=name, speed=SLOW, **options)
    wait_offset(d, 0)


def kill_for_good(t, d):
    """As another VM the next daemon will not clean up behind it."""
    d.kill()
    t.daemons.clear()
    for path in (d.control, d.nbd[5:]):
        os.unlink(path)
    shutil.rmtree(f"/run/fleece/{t.vm}", ignore_errors=True)


def test_a_vm_that_was_renamed(t):
    """The job belongs to the disks: it goes on under the new name, twice, and nothing is left under an old one."""
    chance, first = random.Random(5), t.vm
    disk, image = t.disk("a.raw", 16 * MIB, 1), t.path("o.raw")
    right = disk.read_bytes()
    d = t.daemon({"vda": disk})
    start(d, "j", image)
    for number in range(2):
        offset, old = job(d)["offset"], memory(t)
        write(d, chance, size=16 * MIB)
        kill_for_good(t, d)
        t.vm = f"{first}-{number}"
        d = t.daemon({"vda": disk})
        assert job(d)["device"] == "j" and job(d)["offset"] >= offset, (job(d), offset)
        assert not os.path.exists(old) and "push.0" in os.listdir(memory(t))
    hurry(d, "j")
    shown = wait_concluded(d)
    assert "error" not in shown and image.read_bytes() == right, shown
    with d.qmp() as q:
        q.execute("job-dismiss", id="j")
    nothing_left(t, d)
    t.vm = first


def test_two_vms_become_one(t):
    """Each had a job of the same number, and snapshots of its own disk alone, which can't go on: both jobs say so, and what
    they had made is removed."""
    first, images = t.vm, {"vda": t.disk("a.raw", 16 * MIB, 1), "vdb": t.disk("b.raw", 16 * MIB, 2)}
    for name, image in images.items():
        t.vm = f"{first}-{name}"
        d = t.daemon({name: image})
        start(d, f"of-{name}", t.path(f"{name}.copy"))
        kill_for_good(t, d)
    t.vm = first
    d = t.daemon(images)
    harness.wait_for("both have concluded", lambda: [j[1] for j in status_of(d)] == ["concluded"] * 2)
    assert {j[0] for j in status_of(d)} == {"of-vda", "of-vdb"}, status_of(d)
    for name, _, error in status_of(d):
        assert "has not survived" in error, (name, error)
        with d.qmp() as q:
            q.execute("job-dismiss", id=name)
    assert not list(t.dir.glob("*.copy"))
    nothing_left(t, d)


def push_and_kill(t, disk, target, release):
    """How a push ends whose daemon is killed when the target has got something."""
    d = t.daemon({"vda": disk})
    with d.qmp() as q:
        q.execute("fleece-push", targets=[{"disk": "vda", "target": target}], job_id="j", speed=MIB, release=release,
                  force=True)
    wait_offset(d, MIB)
    if release:
        harness.wait_for("something is released", lambda: d.status()["disks"][0]["blocks-released"] > 0)
    d = again(t, d, {"vda": disk})
    if not release:
        wait_offset(d, MIB)
        hurry(d, "j")
    shown = wait_concluded(d)
    with d.qmp() as q:
        q.execute("job-dismiss", id="j")
    nothing_left(t, d)
    t.daemons.clear()
    return shown.get("error")


def test_an_export_as_the_target(t):
    """What of it nobody has released yet is copied again; else it can't be known whether it is still there."""
    harness.need("nbdkit")
    disk, socket = t.disk("a.raw", 8 * MIB, 1), t.path("target.sock")
    server = t.spawn_server("nbdkit", "-f", "-U", socket, "memory", "8M", stderr=subprocess.DEVNULL)
    uri = f"nbd+unix:///?socket={socket}"
    assert "can't be known whether" in push_and_kill(t, disk, uri, True)
    assert push_and_kill(t, disk, uri, False) is None
    t.run("nbdcopy", uri, t.path("o.raw"))
    assert t.path("o.raw").read_bytes() == disk.read_bytes()
    server.kill()
    server.wait()


def test_a_block_device_as_the_target(t):
    """Nothing tells whether somebody wrote to it while no daemon ran: the same, and somebody has."""
    disk = t.disk("a.raw", 8 * MIB, 1)
    with loop_device(t, t.disk("target.raw", 8 * MIB, 2)) as device:
        assert "can't be known whether" in push_and_kill(t, disk, device, True)
        assert push_and_kill(t, disk, device, False) is None
        assert pathlib.Path(device).read_bytes() == disk.read_bytes()


harness.main()
