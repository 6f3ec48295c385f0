#!/usr/bin/python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""Pushes to targets that are slow, stop or fail: the guest does not feel them, and nothing but the job suffers."""
import signal
import subprocess
import time

import harness
from slow_kit import KIB, MIB, Guest, content, stop, target


def served(t, size, fill, *options):
    """A disk full of a pattern, a daemon that serves it and a guest that writes to it."""
    harness.need("nbdkit")
    image = t.disk("a.raw", size, fill=fill)
    d = t.daemon({"vda": image}, *options)
    return image, d, Guest(d, image)


def begin(q, uri, **options):
    """A job to that target; its id."""
    return q.execute("fleece-push", targets=[{"disk": "vda", "target": uri}], **options)["job-id"]


def finished(q, job):
    """BLOCK_JOB_COMPLETED or _CANCELLED of the job, when it is gone."""
    harness.wait_for("the job is gone", lambda: all(j["device"] != job for j in q.execute("query-block-jobs")))
    q.execute("query-status")
    found = [e for e in q.events if e["event"] in ("BLOCK_JOB_COMPLETED", "BLOCK_JOB_CANCELLED")
             and e["data"]["device"] == job]
    assert len(found) == 1, q.events
    return found[0]


def nothing_left(d):
    status = d.status()
    assert status["snapshots"] == [] and status["cache"]["bytes"] == 0, status


def end(t, d, guest, server):
    """Of daemon, guest and target, after a job that has left nothing."""
    nothing_left(d)
    guest.end()
    stop(t, server)
    d.stop()


def test_a_slow_target_and_a_guest_that_writes(t):
    """N9, N27: 16 Mbit/s and 10 ms away; the guest overwrites the whole disk meanwhile, at local speed."""
    image, d, guest = served(t, 8 * MIB + 512, 1)
    was = bytes(guest.model)
    server, uri = target(t, "slow", len(was), "rate", "delay", rate="16M", delay_write="10ms")
    places = list(range(0, 8 * MIB, 32 * KIB))
    for _ in range(5):  # a machine that stands still for a moment is not the target's doing
        alone = guest.write_for(0.5)
        was = bytes(guest.model)
        with d.qmp() as q:
            job = begin(q, uri, speed=256 * KIB)  # however slow the guest is, there is something left to copy
            guest.begin()
            guest.chance.shuffle(places)
            for place in places:
                guest.write(place, 32 * KIB)
            shown, = q.execute("query-block-jobs")
            assert shown["offset"] < shown["len"], "the target is not slow"
            q.execute("block-job-set-speed", device=job, speed=0)
            print(f"p99 of the guest: alone {alone * 1000:.1f} ms, with the push {guest.p99() * 1000:.1f} ms", flush=True)
            assert finished(q, job)["event"] == "BLOCK_JOB_COMPLETED"
        if guest.p99() < 2 * alone + 0.1 * harness.FACTOR:
            break
    else:
        raise AssertionError(f"the guest waits for the target: {sorted(guest.took)[-5:]}")
    assert content(uri) == was
    end(t, d, guest, server)
    assert image.read_bytes() == guest.model


def test_a_target_that_stops(t):
    """P3: the guest's writes go on; the job can be cancelled, by force at once, else after a moment; the daemon can end."""
    image, d, guest = served(t, 16 * MIB, 2)
    server, uri = target(t, "stopped", 16 * MIB, "delay", delay_write="200ms")
    with d.qmp() as q:
        for command in ("block-job-cancel", "job-cancel", None):
            job = begin(q, uri)
            harness.wait_for("data is on its way", lambda: q.execute("query-block-jobs"))
            server.send_signal(signal.SIGSTOP)
            guest.begin()
            for place in range(0, 8 * MIB, 64 * KIB):
                guest.write(place, 64 * KIB)
            assert max(guest.took) < 8 * harness.FACTOR, sorted(guest.took)[-5:]  # cbw-timeout: 10 s
            shown, = q.execute("query-block-jobs")
            assert shown["offset"] < shown["len"] and shown["status"] == "running", shown
            if not command:
                break
            started = time.monotonic()
            q.execute(command, **{"id" if command == "job-cancel" else "device": job})
            assert finished(q, job)["event"] == "BLOCK_JOB_CANCELLED"
            took = time.monotonic() - started
            print(f"{command}: {took:.2f} s", flush=True)
            assert took < 20 * harness.FACTOR, took  # it is stopped until then, and would never have ended
            nothing_left(d)
            server.send_signal(signal.SIGCONT)
    guest.end()
    started = time.monotonic()
    d.stop()
    assert time.monotonic() - started < 20 * harness.FACTOR
    stop(t, server)


def test_a_file_system_that_hangs(t):
    """P3: FUSE that never answers. The guest's writes and flushes go on, also when the job is cancelled and when the daemon
    is to end; both come about when the file system answers, which the kernel itself waits for."""
    harness.need("nbdfuse")
    image, d, guest = served(t, 16 * MIB, 2)
    server, uri = target(t, "behind", 16 * MIB)
    folder = t.path("fuse")
    folder.mkdir()
    fuse = t.spawn("nbdfuse", folder / "disk", uri, stderr=subprocess.DEVNULL)
    harness.wait_for("the target is mounted", lambda: (folder / "disk").exists() or fuse.poll() is not None, 20)
    if fuse.poll() is not None:
        raise harness.Skip("there is no FUSE here")
    try:
        with d.qmp() as q:
            job = begin(q, str(folder / "disk"), force=True, speed=4 * MIB)
            harness.wait_for("something is copied", lambda: q.execute("query-block-jobs")[0]["offset"] > 0)
            fuse.send_signal(signal.SIGSTOP)
            q.execute("block-job-set-speed", device=job, speed=0)
            for last in (False, True):
                guest.begin()
                for place in range(0, 16 * MIB, MIB):
                    guest.write(place, 64 * KIB)
                    guest.handle.flush()
                assert max(guest.took) < 10 * harness.FACTOR, max(guest.took)
                shown = q.execute("query-jobs")
                assert last or (shown[0]["status"] == "running" and shown[0]["current-progress"] < 16 * MIB), shown
                if not last:
                    q.execute("job-cancel", id=job)
        if shown:  # else nothing was on its way
            d.process.send_signal(signal.SIGTERM)
            guest.write_for(0.3)
            assert max(guest.took) < 10 * harness.FACTOR and d.process.poll() is None, max(guest.took)
        fuse.send_signal(signal.SIGCONT)
        if shown:
            d.wait()
        else:
            d.stop()
    finally:
        fuse.send_signal(signal.SIGCONT)
        t.run("umount", "--lazy", folder, status=None)
    stop(t, server)


def test_a_target_that_does_not_even_answer(t):
    """It is stopped before the handshake: meanwhile the daemon serves others, and the job can be cancelled."""
    harness.need("nbdkit")
    d = t.daemon({"vda": t.disk("a.raw", MIB, fill=2)})
    server, uri = target(t, "dead", MIB)
    server.send_signal(signal.SIGSTOP)
    with d.qmp() as q, d.qmp() as other:
        q.send("fleece-push", targets=[{"disk": "vda", "target": uri}], job_id="j")
        shown = harness.wait_for("the job is there", lambda: other.execute("query-jobs"))
        assert (shown[0]["id"], shown[0]["status"]) == ("j", "created"), shown
        other.execute("job-cancel", id="j")
        started = time.monotonic()
        try:
            q.receive()
            raise AssertionError("it was pushed")
        except harness.QmpError as error:
            assert "cancelled" in error.text, error.text
        assert time.monotonic() - started < 8 * harness.FACTOR  # and not the 10 s that a handshake may take
        assert other.execute("query-jobs") == []
    stop(t, server)
    nothing_left(d)
    d.stop()


def test_a_target_that_fails(t):
    """A write fails, or the server dies: the job fails with the place and the reason, the guest goes on."""
    image, d, guest = served(t, 8 * MIB, 3)
    bad, uri = target(t, "bad", 8 * MIB, "error", error_pwrite="ENOSPC", error_pwrite_rate="100%")
    with d.qmp() as q:
        job = begin(q, uri)
        event = finished(q, job)
        assert event["event"] == "BLOCK_JOB_COMPLETED" and "No space left" in event["data"]["error"], event
        error, = [e["data"] for e in q.events if e["event"] == "BLOCK_JOB_ERROR"]
        assert error == {"device": job, "operation": "write", "action": "report"}, error
        nothing_left(d)
        dying, uri = target(t, "dying", 8 * MIB, "delay", delay_write=600)
        job = begin(q, uri)
        stop(t, dying)
        guest.write(0, 64 * KIB)
        assert "error" in finished(q, job)["data"]
    end(t, d, guest, bad)


def test_a_snapshot_that_breaks_gives_its_reason(t):
    """RAM for the cache runs out, since the target takes nothing and nothing can be released."""
    image, d, guest = served(t, 32 * MIB, 4, "--fleece", "ram=4M")
    server, uri = target(t, "stuck", 32 * MIB)
    with d.qmp() as q:
        job = begin(q, uri, speed=4 * MIB)
        harness.wait_for("data is on its way", lambda: q.execute("query-block-jobs"))
        server.send_signal(signal.SIGSTOP)
        for place in range(0, 32 * MIB, 64 * KIB):
            guest.write(place, 64 * KIB)
        server.send_signal(signal.SIGCONT)
        event = finished(q, job)
        assert "the snapshot of job" in event["data"]["error"] and "cache is full" in event["data"]["error"], event
        errors = [e["data"]["operation"] for e in q.events if e["event"] == "BLOCK_JOB_ERROR"]
        assert errors == ["read"], errors
        assert max(guest.took) < (10 + 8) * harness.FACTOR, max(guest.took)  # cbw-timeout: 10 s
    end(t, d, guest, server)


def test_plain_mode(t):
    """P2: no cache, for contrast: the guest waits for the target with the first write of each block, and with no other."""
    image, d, guest = served(t, 8 * MIB + 512, 8)
    was = bytes(guest.model)
    server, uri = target(t, "far", len(was), "delay", delay_write="300ms")
    with d.qmp() as q:
        job = begin(q, uri, mode="plain", speed=128 * KIB)
        places = [MIB * 7 + 64 * KIB * i for i in range(8)] + [8 * MIB - 4 * KIB]
        def write():
            guest.begin()
            for place in places:
                guest.write(place + 100, 3000)
            return sorted(guest.took)[len(places) // 2]
        write()
        first = min(guest.took)
        second = harness.best_of(10, 0.3, write)
        status = d.status()
        print(f"first writes at least {first * 1000:.0f} ms, second ones {second * 1000:.1f} ms", flush=True)
        assert first >= 0.3 > second, (first, guest.took)
        assert status["disks"][0]["cache-blocks"] == 0 and status["disks"][0]["errors"] == 0, status
        q.execute("block-job-set-speed", device=job, speed=0)
        assert finished(q, job)["event"] == "BLOCK_JOB_COMPLETED"
    assert content(uri) == was
    end(t, d, guest, server)
    assert image.read_bytes() == guest.model


def test_ram_mode(t):
    """N8: when RAM is full, old data goes straight to the target: nothing breaks, though nothing is released and three times
    as much is overwritten. In the mode with a cache alone that breaks the snapshot."""
    harness.need("nbdkit")
    image = t.disk("a.raw", 12 * MIB + 1536, fill=6)
    for mode, timeout in (("both", 1), ("ram", 10)):
        d = t.daemon({"vda": image}, "--fleece", f"ram=4M,cbw-timeout={timeout}")
        guest = Guest(d, image)
        was = bytes(guest.model)
        server, uri = target(t, mode, len(was), "rate", rate="32M")
        with d.qmp() as q:
            slowly = {} if mode == "ram" else {"speed": MIB}  # so that it is not done before the guest
            job = begin(q, uri, mode=mode, release=False, advice=False, **slowly)
            places = list(range(0, 12 * MIB, 64 * KIB))
            guest.chance.shuffle(places)
            for place in places:
                guest.write(place, 64 * KIB)
            status = d.status()
            assert status["disks"][0]["errors"] == 0 and status["cache"]["bytes-peak"] <= 4 * MIB, status
            said = finished(q, job)["data"].get("error")
            assert said is None if mode == "ram" else "cache is full" in said, said
        if mode == "ram":
            assert content(uri) == was
        end(t, d, guest, server)
        assert image.read_bytes() == guest.model
    d = t.daemon({"vda": image}, "--fleece", f"ram=4M,max=64M,dir={t.dir}")
    said = d.fleece("push", "--to", f"vda={t.path('x')}", "--mode", "ram", status=1).stderr
    assert "mode 'ram' can't be had" in said, said
    d.fleece("push", "--to", f"vda={t.path('x')}", "--mode", "quick", status=2)
    d.stop()


def test_plain_mode_and_a_target_that_stops(t):
    """P3: a write waits for cbw-timeout at most; then the job pays, not the guest."""
    image, d, guest = served(t, 8 * MIB, 7, "--fleece", "ram=8M,cbw-timeout=1")
    server, uri = target(t, "stopped", 8 * MIB)
    with d.qmp() as q:
        job = begin(q, uri, mode="plain", speed=1 * MIB)
        server.send_signal(signal.SIGSTOP)
        for place in range(4 * MIB, 8 * MIB, 64 * KIB):
            guest.write(place, 64 * KIB)
        print(f"the slowest write took {max(guest.took):.2f} s", flush=True)
        assert max(guest.took) < 1 + 8 * harness.FACTOR, max(guest.took)  # 10 s would be the default
        event = finished(q, job)
        assert "the snapshot of job" in event["data"]["error"], event
    end(t, d, guest, server)
    assert image.read_bytes() == guest.model


harness.main()
