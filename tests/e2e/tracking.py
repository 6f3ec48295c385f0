#!/usr/bin/python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""Change tracking that outlives the daemon: kill -9 under load at random times, restarts, a sidecar that is damaged or
another disk's, a disk that somebody changed meanwhile. Reported is always at least what differs, and after kill -9 nothing
that was not submitted."""
import fcntl
import os
import pathlib
import random
import shutil
import struct
import threading
import time

import harness
from loop_kit import loop_device
from tracking_kit import (BLOCK, MIB, Load, blocks_of, changed, changed_since, differing, dirty_blocks, listed, nbd_client,
                          part, states, tracking)

SIZE = 32 * MIB


def restart(t, disks, *options):
    """The next daemon, with the sockets of the last one."""
    t.daemons.clear()
    return t.daemon(disks, *options)


def shared_memory(t):
    return pathlib.Path(f"/dev/shm/fleece-{os.getuid()}/{t.vm}")


def write(d, offset, length=BLOCK, disk="vda"):
    h = nbd_client(d.uri(disk))
    h.pwrite(os.urandom(length), offset)
    h.flush()
    h.shutdown()
    return set(blocks_of(offset, length))


def test_an_orderly_restart(t):
    """Exactly what it was, however often; and checkpoints with their state."""
    path = t.disk("a.raw", SIZE, 1)
    d = t.daemon({"vda": path})
    d.fleece("checkpoint", "create", "base")
    before, model = path.read_bytes(), set()
    for round_ in range(3):
        load = Load(d, "vda", SIZE, round_)
        load.run(writes=100)
        load.close()
        model |= load.submitted
        d.fleece("checkpoint", "create", f"c{round_}")
        d.stop()
        d = restart(t, {"vda": path})
        assert tracking(d)["recovery"] == "clean", tracking(d)
        assert list(states(d).values()) == ["committed"] * (2 + round_)
        assert changed_since(d, "base") == model and differing(path, before) <= model
        assert changed(d)[f"c{round_}"] == 0


def test_kill_under_load(t):
    """Killed again and again under load of several clients: adopted, without any superset; fio writes to the second disk."""
    harness.need("fio")
    paths = {"vda": t.disk("a.raw", SIZE, 1), "vdb": t.disk("b.raw", SIZE)}
    before = {disk: path.read_bytes() for disk, path in paths.items()}
    submitted, acknowledged, rng = set(), set(), random.Random(4)
    d = t.daemon(paths, "--io-threads", "2")
    d.fleece("checkpoint", "create", "base")
    for round_ in range(5):
        fio = t.spawn("fio", "--name=f", "--ioengine=nbd", f"--uri={d.uri('vdb')}", "--rw=randwrite", "--bs=4k",
                      "--iodepth=8", "--time_based", "--runtime=60", "--offset=16m", "--size=8m",
                      f"--randseed={round_}", cwd=t.dir, stdout=open(t.path("fio.log"), "wb"), stderr=-2)
        loads = [Load(d, "vda", SIZE, 10 * round_ + n) for n in range(2)]
        threads = [threading.Thread(target=load.run, args=(60,)) for load in loads]
        for thread in threads:
            thread.start()
        time.sleep(rng.choice((0.02, 0.1, 0.3, 0.6)))
        d.kill()
        for load, thread in zip(loads, threads):
            thread.join()
            assert load.lost
            submitted |= load.submitted
            acknowledged |= load.acknowledged
        fio.wait(harness.SOON)
        d = restart(t, paths, "--io-threads", "2")
        assert tracking(d)["recovery"] == "adopted", tracking(d)
        now = changed_since(d, "base")
        assert acknowledged <= now, f"round {round_}: {len(acknowledged - now)} acknowledged writes are forgotten"
        assert now <= submitted, f"round {round_}: {len(now - submitted)} blocks that nobody has written"
        assert differing(paths["vda"], before["vda"]) <= now
        other = changed_since(d, "base", "vdb")
        assert differing(paths["vdb"], before["vdb"]) <= other <= set(blocks_of(16 * MIB, 8 * MIB))
    assert states(d) == {"base": "committed"}
    d.stop()
    assert not shared_memory(t).exists()


def test_cuts_under_load(t):
    """Between two snapshots with checkpoints, under load, exactly that differs which the map of the first shows, or less."""
    path = t.disk("a.raw", 8 * MIB, 1)
    d = t.daemon({"vda": path})
    loads = [Load(d, "vda", 8 * MIB, n, in_flight=4) for n in range(2)]
    threads = [threading.Thread(target=load.run, args=(60,)) for load in loads]
    d.fleece("checkpoint", "create", "c0")
    last = path.read_bytes()
    for thread in threads:
        thread.start()
    for i in range(1, 9):
        before = d.status()["disks"][0]["writes"]
        harness.wait_for("they write", lambda: d.status()["disks"][0]["writes"] > before + 10)
        d.fleece("snapshot", "create", "s", "--checkpoint", f"c{i}", "--map", f"c{i - 1}")
        h = nbd_client(d.uri("vda@s"))
        now = h.pread(8 * MIB, 0)
        h.shutdown()
        told = dirty_blocks(d, "vda@s", f"c{i - 1}")
        different = {b for b in range(8 * MIB // BLOCK) if now[b * BLOCK:(b + 1) * BLOCK] != last[b * BLOCK:(b + 1) * BLOCK]}
        assert different and different <= told, f"{len(different - told)} blocks are forgotten"
        last = now
        d.fleece("snapshot", "delete", "s")
    d.kill()
    for thread in threads:
        thread.join()


def test_kill_while_checkpoints_are_made(t):
    """What was reported is there afterwards: made, committed, deleted; since each of them what was written since."""
    path = t.disk("a.raw", SIZE, 1)
    rng = random.Random(7)
    d = t.daemon({"vda": path})
    d.fleece("checkpoint", "create", "base")
    contents = {"base": path.read_bytes()}  # of the disk at each checkpoint
    for round_ in range(4):
        reported, gone, doubtful = dict(states(d)), set(), set()
        lock = threading.Lock()
        load = Load(d, "vda", SIZE, round_)
        thread = threading.Thread(target=load.run, args=(60,))
        thread.start()

        def change(d=d, reported=reported, gone=gone, doubtful=doubtful, round_=round_):
            """Makes and deletes, one after the other, until the daemon is gone; what was under way then is doubtful."""
            try:
                with d.qmp() as q:
                    for i in range(1000):
                        name = f"r{round_}-{i}"
                        doubtful.add(name)
                        q.execute("fleece-checkpoint-create", name=name)
                        with lock:
                            reported[name] = "committed"
                            doubtful.discard(name)
                        if i % 2:
                            victim = f"r{round_}-{i - 1}"
                            doubtful.add(victim)
                            q.execute("fleece-checkpoint-delete", name=victim)
                            with lock:
                                doubtful.discard(victim)
                                gone.add(victim)
                                del reported[victim]
            except (ConnectionError, OSError):
                pass
        changer = threading.Thread(target=change)
        changer.start()
        time.sleep(rng.choice((0.03, 0.1, 0.25, 0.5)))
        d.kill()
        changer.join()
        thread.join()
        d = restart(t, {"vda": path})
        there = states(d)
        for name, state in reported.items():
            assert name in doubtful or there.get(name) == state, (round_, name, there)
        assert not gone & set(there), (round_, gone, there)
        assert set(there) <= set(reported) | doubtful
        assert differing(path, contents["base"]) <= changed_since(d, "base")
        for name in list(there):
            if name != "base":
                d.fleece("checkpoint", "delete", name)


def test_pending_ones_wait(t):
    """A checkpoint whose backup was under way when the daemon died can be committed, once or more, or given up."""
    paths = {"vda": t.disk("a.raw", 8 * MIB, 1), "vdb": t.disk("b.raw", MIB)}
    d = t.daemon(paths)
    d.fleece("checkpoint", "create", "base")
    model = write(d, MIB)
    made = {}
    with d.qmp() as q:
        for name in ("safe", "lost"):
            made[name] = q.execute("fleece-snapshot-create", name=name, since="base", checkpoint=name)["checkpoint"]["uuid"]
            model |= write(d, len(made) * 2 * MIB)
    d.kill()
    d = restart(t, paths)
    assert states(d) == {"base": "committed", "safe": "pending", "lost": "pending"}
    with d.qmp() as q:
        q.execute("fleece-checkpoint-commit", uuid=made["safe"])
        q.execute("fleece-checkpoint-commit", uuid=made["safe"])
        q.execute("fleece-checkpoint-delete", uuid=made["lost"])
    assert states(d) == {"base": "committed", "safe": "committed"}
    assert changed(d) == {"base": len(model) * BLOCK, "safe": 2 * BLOCK}
    d.kill()
    d = restart(t, paths)
    assert states(d) == {"base": "committed", "safe": "committed"}
    assert changed_since(d, "base") == model


def test_a_backup_goes_on_after_kill(t):
    """An incremental one was under way: its client finds snapshot and checkpoint again, reads what changed, and commits."""
    path = t.disk("a.raw", 8 * MIB, 1)
    d = t.daemon({"vda": path})
    d.fleece("checkpoint", "create", "base")
    needed = write(d, MIB, 50000) | write(d, 6 * MIB)
    content = path.read_bytes()
    with d.qmp() as q:
        made = q.execute("fleece-snapshot-create", name="s", since="base", checkpoint="next", lease=True)
        after = write(d, MIB, 5 * MIB)  # over what is needed, and more
        h = nbd_client(d.uri("vda@s"))
        h.trim(BLOCK, 6 * MIB)  # this block has been copied
        h.shutdown()
        d.kill()
    d = restart(t, {"vda": path})
    assert states(d) == {"base": "committed", "next": "pending"}
    waiting, = d.status()["snapshots"]
    assert waiting["uuid"] == made["uuid"] and waiting["grace-left-ms"] > 0, waiting
    with d.qmp() as q:
        back = q.execute("fleece-snapshot-lease", uuid=made["uuid"])
        assert back["since"] == made["since"] and back["exports"][0]["incremental"], back
        assert back["checkpoint"]["uuid"] == made["checkpoint"]["uuid"] and back["leased"], back
        h = nbd_client(d.uri("vda@s"))
        for block in needed - {6 * MIB // BLOCK}:
            assert h.pread(BLOCK, block * BLOCK) == content[block * BLOCK:(block + 1) * BLOCK], block
        h.shutdown()
        assert dirty_blocks(d, "vda@s", "base") == needed and back["exports"][0]["dirty"] == len(needed) * BLOCK
        q.execute("fleece-checkpoint-commit", uuid=made["checkpoint"]["uuid"])
        q.execute("fleece-snapshot-delete", name="s")
    assert changed_since(d, "next") == after and changed_since(d, "base") == needed | after


def test_a_checkpoint_waits_as_long_as_its_snapshot(t):
    """After kill -9, that of a leased snapshot for the same grace time, that of another one until it is wanted."""
    d = t.daemon({"vda": t.disk("a.raw", MIB)})
    with d.qmp() as q:
        q.execute("fleece-snapshot-create", name="s", checkpoint="leased", lease=True, grace=1)
        q.execute("fleece-snapshot-create", name="s2", checkpoint="free")
        d.kill()
    d = restart(t, {"vda": t.path("a.raw")})
    harness.wait_for("the leased one is given up", lambda: states(d) == {"free": "pending"})


def test_the_memory_is_lost(t):
    """On an image, a qcow2 image and a block device: exact after kill -9; when what was in memory is gone, as after a loss
    of power, the log says in which extents something may have changed."""
    harness.need("qemu-img")
    path, far = t.disk("a.raw", SIZE, 1), t.path("far")
    far.mkdir()
    t.run("qemu-img", "create", "-q", "-f", "qcow2", t.path("b.qcow2"), str(SIZE))
    with loop_device(t, t.disk("c.raw", SIZE, 1)) as device:
        disks = {"vda": path, "vdb": f"{t.path('b.qcow2')},format=qcow2", "vdc": device}
        before, models = path.read_bytes(), {disk: set() for disk in disks}
        d = t.daemon(disks, "--state-dir", far)
        d.fleece("checkpoint", "create", "base")
        for round_, lost in enumerate((False, True, True)):
            for disk, model in models.items():
                model |= write(d, round_ * 8 * MIB, 40000, disk)
            d.kill()
            if lost:
                shutil.rmtree(shared_memory(t))
            d = restart(t, disks, "--state-dir", far)
            for number, (disk, model) in enumerate(models.items()):
                assert tracking(d, number)["recovery"] == ("replayed" if lost else "adopted"), tracking(d, number)
                now, extents = changed_since(d, "base", disk), {b * BLOCK // (4 * MIB) for b in model}
                assert model <= now <= {b for e in extents for b in blocks_of(e * 4 * MIB, 4 * MIB)}
                assert lost or now == model
            assert differing(path, before) <= models["vda"]
        d.stop()


def test_track_options(t):
    """on: tracked from the start. off: a sidecar that is there is void, since nobody notes what is written (C11)."""
    path = t.disk("a.raw", 4 * MIB, 1)
    sidecar = t.path("a.raw.fleece")
    d = t.daemon({"vda": f"{path},track=on"})
    assert tracking(d)["state"] == "on" and sidecar.exists()
    d.fleece("checkpoint", "create", "base")
    d.stop()
    d = restart(t, {"vda": path})  # it is there, so it is used
    assert states(d) == {"base": "committed"}
    d.stop()
    d = restart(t, {"vda": f"{path},track=off"})
    assert tracking(d)["state"] == "invalid" and "track=off" in tracking(d)["reason"], tracking(d)
    assert "track=off" in d.fleece("checkpoint", "create", "x", status=1).stderr
    write(d, 0)
    d.stop()
    d = restart(t, {"vda": path})
    assert set(states(d).values()) <= {"invalid"}, states(d)
    assert tracking(d)["state"] == "invalid" and tracking(d)["reason"], tracking(d)
    made = d.fleece("snapshot", "create", "s", *(["--since", "base"] if states(d) else []))
    assert not states(d) or "in full, since" in made.stdout, made.stdout


def test_a_sidecar_that_can_not_be_opened(t):
    """Something else holds it when the next daemon starts. The disk is served and written without it, so nobody may believe
    it later, nor what the killed daemon left in memory (C11)."""
    path = t.disk("a.raw", SIZE)
    d = t.daemon({"vda": path})
    d.fleece("checkpoint", "create", "base")
    write(d, 0)
    d.kill()
    with open(t.path("a.raw.fleece"), "r+b") as held:
        fcntl.fcntl(held, 37, struct.pack("hhqqi4x", fcntl.F_WRLCK, 0, 0, 0, 0))  # F_OFD_SETLK
        d = restart(t, {"vda": path}, "--lock-timeout", "0.2")
        assert tracking(d)["state"] == "invalid" and "locked" in tracking(d)["reason"], tracking(d)
        write(d, 16 * MIB)
        d.stop()
    d = restart(t, {"vda": path})
    assert "committed" not in states(d).values(), listed(d)
    d.fleece("checkpoint", "create", "new")
    assert changed_since(d, "new") == set()


DAMAGED = (0, 100, 4096, 20000, 65536, 66048)


def begin_anew(d, reset):
    """A new checkpoint of a disk whose others are invalid is right, and those still say why they are not."""
    old, reason = states(d), tracking(d)["reason"]
    if reset:
        d.fleece("checkpoint", "reset", "vda")
        assert states(d) == {}
    d.fleece("checkpoint", "create", "new")
    model = write(d, MIB)
    assert changed_since(d, "new") == model and tracking(d)["state"] == "on"
    assert states(d) == ({"new": "committed"} if reset else {**old, "new": "committed"})
    if old and not reset:
        assert part(d, "base")["reason"] == reason
        said = d.fleece("snapshot", "create", "s", "--since", "base").stdout
        assert f"disk vda: in full, since checkpoint 'base' is invalid on disk vda: {reason}" in said, said


def test_a_damaged_sidecar(t):
    """Whatever byte is wrong: a clear sentence with the byte range, and the way out; the disk is served all the same."""
    path = t.disk("a.raw", 8 * MIB, 1)
    sidecar = t.path("a.raw.fleece")
    d = t.daemon({"vda": path})
    d.fleece("checkpoint", "create", "base")
    write(d, 0)
    write(d, 5 * MIB)
    d.stop()
    whole = sidecar.read_bytes()
    noticed = 0
    for at in DAMAGED:
        if at >= len(whole):
            continue
        damaged = bytearray(whole)
        damaged[at] ^= 0x10
        sidecar.write_bytes(damaged)
        d = restart(t, {"vda": path})
        now = tracking(d)
        if now["state"] == "on":  # a spare copy, or what is not in use: nothing may be lost by it
            assert changed_since(d, "base") == set(blocks_of(0, BLOCK)) | set(blocks_of(5 * MIB, BLOCK)), at
        else:
            noticed += 1
            assert f"ytes {at // 512 * 512}-" in now["reason"] or "ytes 0-" in now["reason"], (at, now)
            begin_anew(d, "checkpoint reset" in now["reason"])
        d.stop()
        sidecar.write_bytes(whole)
    assert noticed >= 2, noticed
    sidecar.write_bytes(os.urandom(3000))
    d = restart(t, {"vda": path})
    assert "checkpoint reset" in tracking(d)["reason"], tracking(d)
    assert d.fleece("checkpoint", "create", "x", status=1).stderr
    d.fleece("checkpoint", "reset", "vda")
    assert tracking(d)["state"] == "off" and listed(d) == [] and not sidecar.exists()
    d.fleece("checkpoint", "create", "new")
    model = write(d, MIB)
    assert changed_since(d, "new") == model


def test_changed_behind_our_back(t):
    """Somebody wrote to the image, cut it, or put another disk's sidecar there: nothing is believed, and it says why."""
    path, other = t.disk("a.raw", 8 * MIB, 1), t.disk("b.raw", 8 * MIB, 2)
    sidecars = {p: pathlib.Path(f"{p}.fleece") for p in (path, other)}

    def begin():
        d = restart(t, {"vda": path, "vdb": other})
        d.fleece("checkpoint", "create", "base")
        write(d, 0)
        write(d, MIB, disk="vdb")
        d.stop()

    def touched():
        with open(path, "r+b") as f:
            f.seek(3 * MIB)
            f.write(b"x")

    def grown():
        os.truncate(path, 9 * MIB)

    def swapped():
        shutil.copyfile(sidecars[other], sidecars[path])

    def replaced():
        new = t.path("new.raw")
        shutil.copyfile(path, new)
        st = path.stat()
        os.utime(new, ns=(st.st_atime_ns, st.st_mtime_ns))
        os.rename(new, path)

    for change in (touched, grown, swapped, replaced):
        begin()
        change()
        d = restart(t, {"vda": path, "vdb": other})
        assert tracking(d)["state"] == "invalid" and tracking(d)["reason"], (change, tracking(d))
        assert tracking(d, 1)["state"] == "on", (change, tracking(d, 1))
        if change is not swapped:
            assert part(d, "base")["state"] == "invalid" and part(d, "base")["reason"], listed(d)
            made = d.fleece("snapshot", "create", "s", "--since", "base").stdout
            assert "disk vda: in full, since" in made and "disk vdb: 4 KiB changed" in made, made
        d.fleece("checkpoint", "reset", "vda")
        d.fleece("checkpoint", "delete", "base")
        d.stop()
        if change is grown:
            os.truncate(path, 8 * MIB)
        for sidecar in sidecars.values():
            sidecar.unlink(missing_ok=True)


def test_an_older_sidecar(t):
    """A sidecar from an earlier time, beside a disk that went on: noticed."""
    path, sidecar = t.disk("a.raw", 8 * MIB, 1), t.path("a.raw.fleece")
    d = t.daemon({"vda": path})
    d.fleece("checkpoint", "create", "base")
    d.stop()
    old = sidecar.read_bytes()
    d = restart(t, {"vda": path})
    write(d, 2 * MIB)
    d.stop()
    sidecar.write_bytes(old)
    d = restart(t, {"vda": path})
    assert tracking(d)["state"] == "invalid" and part(d, "base")["state"] == "invalid", (tracking(d), listed(d))


harness.main()
