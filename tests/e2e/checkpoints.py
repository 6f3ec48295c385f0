#!/usr/bin/python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""Checkpoints: how they are made, committed, deleted and given up; what changed since each of them, as NBD shows it, against
a model of the writes; and what is said when something is wrong."""
import json
import random
import threading
import time

import harness
from tracking_kit import (BLOCK, DIRTY, MIB, blocks_of, changed, dirty_blocks, extents_of, listed, nbd_client, nbd_module,
                          refused, states)


def two_disks(t):
    return {"vda": t.disk("a.raw", 16 * MIB, 1), "vdb": t.disk("b.raw", 8 * MIB)}


class Model:
    """Writes to the disks, and which blocks they touched since each checkpoint."""

    def __init__(self, d, seed, disks=(("vda", 16 * MIB), ("vdb", 8 * MIB))):
        self.clients = {disk: nbd_client(d.uri(disk)) for disk, _ in disks}
        self.sizes, self.random, self.since = dict(disks), random.Random(seed), {}

    def mark(self, name):
        self.since[name] = {disk: set() for disk in self.sizes}

    def touch(self, disk, offset, length):
        for touched in self.since.values():
            touched[disk].update(blocks_of(offset, length))

    def write(self, count, disk=None):
        for _ in range(count):
            name = disk or self.random.choice(list(self.sizes))
            length = self.random.choice((1, 512, 4096, 5000, 65536, 200000))
            offset = self.random.randrange(self.sizes[name] - length)
            kind = self.random.randrange(5)
            if kind == 0:
                self.clients[name].zero(length, offset)
            elif kind == 1:
                self.clients[name].trim(length, offset)
            else:
                self.clients[name].pwrite(self.random.randbytes(length), offset)
            self.touch(name, offset, length)

    def blocks(self, name, disk="vda"):
        return self.since[name][disk]

    def bytes(self, name, disk="vda"):
        return len(self.since[name][disk]) * BLOCK

    def close(self):
        for client in self.clients.values():
            client.shutdown()


def dirty_by_nbdinfo(t, d, export, name):
    return extents_of(t, d, export, DIRTY + name, lambda flags: flags == 1)


def dirty_by_qemu(t, d, export, name):
    """As QEMU's own block driver sees it, which turns what is dirty into holes."""
    source = f"driver=nbd,server.type=unix,server.path={d.nbd[5:]},export={export},x-dirty-bitmap={DIRTY}{name}"
    extents = json.loads(t.run("qemu-img", "map", "--output=json", "--image-opts", source).stdout)
    return {b for e in extents if not e["data"] for b in blocks_of(e["start"], e["length"])}


def needed_blocks(t, d, export):
    return extents_of(t, d, export, "fleece:residence", lambda flags: not flags & 16)


def test_life(t):
    """From nothing to nothing, by commands and by the CLI, with their events."""
    harness.need("qemu-io")
    d = t.daemon(two_disks(t))
    assert [x["tracking"] for x in d.status()["disks"]] == [{"state": "off"}] * 2
    assert d.fleece("checkpoint", "list").stdout == "no checkpoints\n" and listed(d) == []
    d.fleece("snapshot", "create", "monday")
    assert listed(d) == [] and not t.path("a.raw.fleece").exists()  # nobody has asked for one
    with d.qmp() as q:
        monday = q.execute("fleece-checkpoint-create", name="monday")
        assert monday["name"] == "monday" and monday["state"] == "committed" and monday["created"].endswith("Z"), monday
        assert q.event("FLEECE_CHECKPOINT_CREATED")["data"] == {"name": "monday", "uuid": monday["uuid"]}
        tuesday = json.loads(d.fleece("--json", "checkpoint", "create", "tuesday").stdout)
        said = d.fleece("checkpoint", "create", "3").stdout
        assert [c["name"] for c in listed(d)] == ["monday", "tuesday", "3"]
        assert said == f"checkpoint 3 created: {listed(d)[2]['uuid']}\n", said
        table = d.fleece("checkpoint", "list").stdout.splitlines()
        assert len(table) == 7 and table[1].split()[0] == "monday" and table[2].split()[3:5] == ["vdb", "committed"], table
        for c in listed(d):
            assert c["state"] == "committed" and [p["disk"] for p in c["disks"]] == ["vda", "vdb"], c
            assert all(p["state"] == "committed" and p["changed"] == 0 and p["file-bytes"] > 0 for p in c["disks"]), c
        assert t.path("a.raw.fleece").exists() and t.path("b.raw.fleece").exists()
        tracking = d.status()["disks"][0]["tracking"]
        assert tracking["state"] == "on" and tracking["recovery"] == "new" and tracking["granularity"] == 4096, tracking
        assert "TRACKING" in d.fleece("status").stdout
        t.run("qemu-io", "-f", "raw", "-c", "write 1M 5k", d.uri("vda"))
        assert d.status()["disks"][0]["tracking"]["activations"] == 1
        assert changed(d) == {"monday": 8192, "tuesday": 8192, "3": 8192} and set(changed(d, "vdb").values()) == {0}
        assert all(p["memory-bytes"] > 0 for c in listed(d) for p in c["disks"]), listed(d)
        q.execute("fleece-checkpoint-commit", uuid=monday["uuid"])  # again: no error
        assert d.fleece("checkpoint", "delete", "monday").stdout == "checkpoint monday deleted\n"
        assert q.event("FLEECE_CHECKPOINT_DELETED")["data"]["uuid"] == monday["uuid"]
        q.execute("fleece-checkpoint-delete", uuid=tuesday["uuid"])
        assert changed(d) == {"3": 8192}
        d.fleece("checkpoint", "delete", listed(d)[0]["uuid"])
        assert listed(d) == []


def test_what_is_wrong_is_named(t):
    d = t.daemon(two_disks(t))
    with d.qmp() as q:
        q.execute("fleece-checkpoint-create", name="there")
        for kind, text, command, arguments in (
                ("GenericError", "there is a checkpoint 'there' already", "checkpoint-create", {"name": "there"}),
                ("GenericError", "'a b'", "checkpoint-create", {"name": "a b"}),
                ("GenericError", "1 to 64", "checkpoint-create", {"name": ""}),
                ("GenericError", "1 to 64", "checkpoint-create", {"name": "x" * 65}),
                ("GenericError", "'name' is missing", "checkpoint-create", {}),
                ("GenericError", "'force' is unexpected", "checkpoint-create", {"name": "x", "force": True}),
                ("DeviceNotFound", "there is no checkpoint 'nobody'", "checkpoint-delete", {"name": "nobody"}),
                ("DeviceNotFound", "there is no checkpoint", "checkpoint-commit", {"uuid": "0" * 36}),
                ("GenericError", "'uuid', expected: string", "checkpoint-commit", {"uuid": 7}),
                ("GenericError", "not both", "checkpoint-delete", {"name": "there", "uuid": "x"}),
                ("GenericError", "not neither", "checkpoint-delete", {}),
                ("DeviceNotFound", "has no disk 'vdz'", "checkpoint-reset", {"disk": "vdz"}),
                ("DeviceNotFound", "there is no checkpoint 'nobody'", "snapshot-create", {"since": "nobody"}),
                ("DeviceNotFound", "there is no checkpoint 'nobody'", "snapshot-create", {"maps": ["there", "nobody"]}),
                ("GenericError", "there is a checkpoint 'there' already", "snapshot-create", {"checkpoint": "there"}),
                ("GenericError", "'a/b'", "snapshot-create", {"checkpoint": "a/b"}),
                ("GenericError", "member 0 must be the name or UUID", "snapshot-create", {"maps": [["there"]]}),
                ("GenericError", "has 9 members, but must have at most 8", "snapshot-create", {"maps": ["there"] * 9}),
                ("GenericError", "give one", "snapshot-create", {"since": "there", "bitmap": "b"}),
                ("GenericError", "needs 'lease'", "snapshot-create", {"grace": 5}),
                ("GenericError", "from 0 to 86400", "snapshot-create", {"grace": 86401, "lease": True}),
                ("DeviceNotFound", "there is no snapshot", "snapshot-lease", {"uuid": "nobody"})):
            refused(q, kind, text, f"fleece-{command}", **arguments)
        assert q.execute("fleece-query-snapshots") == []
        assert states(d) == {"there": "committed"}
    for words, text in ((("create",), "name of one checkpoint"), (("create", "a b"), "'a b'"), (("delete",), "name or UUID"),
                        (("commit", "x", "y"), "UUID"), (("reset",), "name of one disk"), (("make",), "unknown action"),
                        ((), "say what to do"), (("list", "x"), "takes no argument")):
        assert text in d.fleece("checkpoint", *words, status=2).stderr, words
    assert "there is no checkpoint 'x'" in d.fleece("checkpoint", "delete", "x", status=1).stderr
    assert "give one" in d.fleece("snapshot", "create", "--since", "a", "--bitmap", "b", status=2).stderr
    assert "--map" in d.fleece("snapshot", "create", "--map", "a b", status=2).stderr


def test_what_changed(t):
    """Maps equal the model of the writes, for every checkpoint; a limited snapshot has exactly what changed, as it was."""
    harness.need("nbdinfo", "qemu-img")
    d = t.daemon(two_disks(t), "--io-threads", "2")
    m = Model(d, 3)
    m.write(20)  # nobody tracks these
    for name in ("one", "two", "three"):
        d.fleece("checkpoint", "create", name)
        m.mark(name)
        m.write(25)
    for disk in ("vda", "vdb"):
        assert changed(d, disk) == {name: m.bytes(name, disk) for name in m.since}
    made = json.loads(d.fleece("--json", "snapshot", "create", "s", "--since", "two", "--map", "one", "--map", "three",
                               "--checkpoint", "four").stdout)
    then = {name: {disk: set(blocks) for disk, blocks in disks.items()} for name, disks in m.since.items()}
    content = {"vda": t.path("a.raw").read_bytes(), "vdb": t.path("b.raw").read_bytes()}
    m.mark("four")
    m.write(25)
    assert made["since"]["name"] == "two" and made["checkpoint"]["state"] == "pending", made
    for export in made["exports"]:
        assert export["incremental"] is True and export["checkpoint"] is True and "reason" not in export, export
        assert export["dirty"] == len(then["two"][export["disk"]]) * BLOCK, export
    for disk in ("vda", "vdb"):
        for name in ("one", "two", "three"):
            assert dirty_blocks(d, f"{disk}@s", name) == then[name][disk], (disk, name)
            assert dirty_by_nbdinfo(t, d, f"{disk}@s", name) == then[name][disk], (disk, name)
            assert dirty_by_qemu(t, d, f"{disk}@s", name) == then[name][disk], (disk, name)
        assert needed_blocks(t, d, f"{disk}@s") == then["two"][disk]
        h = nbd_client(d.uri(f"{disk}@s"))
        for block in then["two"][disk]:
            assert h.pread(BLOCK, block * BLOCK) == content[disk][block * BLOCK:(block + 1) * BLOCK], block
        h.trim(4 * MIB, 0)  # dirty is dirty, released or not
        h.shutdown()
        assert dirty_blocks(d, f"{disk}@s", "two") == then["two"][disk]
    contexts = json.loads(t.run("nbdinfo", "--json", "--list", d.uri("")).stdout)["exports"]
    shown = {e["export-name"]: {c for c in e["contexts"] if c.startswith("qemu:")} for e in contexts}
    assert shown == {"vda": set(), "vdb": set(), "vda@s": {DIRTY + n for n in ("one", "two", "three")},
                     "vdb@s": {DIRTY + n for n in ("one", "two", "three")}}, shown
    m.close()


def test_commit_and_give_up(t):
    """A pending checkpoint is committed by its UUID, or deleted: then its changes are those of the one before."""
    d = t.daemon(two_disks(t))
    m = Model(d, 4)
    d.fleece("checkpoint", "create", "base")
    m.mark("base")
    m.write(20)
    with d.qmp() as q:
        for i, good in enumerate((False, True, False)):
            name = f"try-{i}"
            made = q.execute("fleece-snapshot-create", name="s", since="base", checkpoint=name)
            assert states(d)[name] == "pending" and made["exports"][0]["dirty"] == m.bytes("base"), made
            m.mark(name)
            m.write(10)
            assert changed(d)[name] == m.bytes(name) and changed(d)["base"] == m.bytes("base")
            q.execute("fleece-snapshot-delete", name="s")
            if good:
                q.execute("fleece-checkpoint-commit", uuid=made["checkpoint"]["uuid"])
                assert q.event("FLEECE_CHECKPOINT_COMMITTED")["data"]["name"] == name
                q.execute("fleece-checkpoint-commit", uuid=made["checkpoint"]["uuid"])
            else:
                q.execute("fleece-checkpoint-delete", uuid=made["checkpoint"]["uuid"])
                refused(q, "DeviceNotFound", "there is no checkpoint", "fleece-checkpoint-commit",
                        uuid=made["checkpoint"]["uuid"])
                del m.since[name]
            for disk in ("vda", "vdb"):
                assert changed(d, disk) == {n: m.bytes(n, disk) for n in m.since}
        assert states(d) == {"base": "committed", "try-1": "committed"}
    m.close()


def test_neighbours_stay_right(t):
    """Deleted in any order, the others' changes are what they were."""
    d = t.daemon(two_disks(t))
    m = Model(d, 5)
    names = [f"c{i}" for i in range(7)]
    for name in names:
        d.fleece("checkpoint", "create", name)
        m.mark(name)
        m.write(8)
    for name in ("c3", "c0", "c6", "c5", "c1", "c4"):
        d.fleece("checkpoint", "delete", name)
        del m.since[name]
        m.write(2)
        d.fleece("snapshot", "create", "s", *[w for n in m.since for w in ("--map", n)])
        for disk in ("vda", "vdb"):
            assert changed(d, disk) == {n: m.bytes(n, disk) for n in m.since}
            for n in m.since:
                assert dirty_blocks(d, f"{disk}@s", n) == m.blocks(n, disk), (disk, n)
        d.fleece("snapshot", "delete", "s")
    m.close()


def test_tools_side_by_side(t):
    """Three tools with checkpoints of their own, at their own pace, at once: each gets what changed since its own."""
    d = t.daemon(two_disks(t), "--io-threads", "2")
    m = Model(d, 6)
    tools = ("hourly", "daily", "other")
    last = {}
    for tool in tools:
        d.fleece("checkpoint", "create", f"{tool}-0")
        m.mark(f"{tool}-0")
        last[tool] = f"{tool}-0"
    with d.qmp() as q:
        for step in range(1, 7):
            m.write(10)
            for tool in tools[:1 + (step % 2 == 0) + (step % 3 == 0)]:
                base, name = last[tool], f"{tool}-{step}"
                made = q.execute("fleece-snapshot-create", name=f"s-{tool}", since=base, checkpoint=name)
                expected = {disk: set(m.blocks(base, disk)) for disk in m.sizes}
                m.mark(name)
                m.write(3)
                for disk in m.sizes:
                    assert dirty_blocks(d, f"{disk}@s-{tool}", base) == expected[disk], (tool, step, disk)
                q.execute("fleece-checkpoint-commit", uuid=made["checkpoint"]["uuid"])
                q.execute("fleece-checkpoint-delete", name=base)
                q.execute("fleece-snapshot-delete", name=f"s-{tool}")
                del m.since[base]
                last[tool] = name
    assert set(states(d)) == set(last.values())
    m.close()


def test_a_client_that_goes_away(t):
    """Its snapshot and its checkpoint wait for the grace time; who comes back takes them over; else they are given up."""
    d = t.daemon(two_disks(t))
    m = Model(d, 7)
    d.fleece("checkpoint", "create", "base")
    m.mark("base")
    m.write(10)
    with d.qmp() as q:
        made = q.execute("fleece-snapshot-create", name="s", since="base", checkpoint="mine", lease=True, grace=600)
        refuse_other(d, made["uuid"])
    m.write(10)
    harness.wait_for("the snapshot waits", lambda: "grace-left-ms" in d.status()["snapshots"][0])
    assert states(d) == {"base": "committed", "mine": "pending"}
    with d.qmp() as q:
        back = q.execute("fleece-snapshot-lease", uuid=made["uuid"])
        assert back["leased"] and back["exports"] == made["exports"] and "grace-left-ms" not in back, back
        assert back["checkpoint"]["uuid"] == made["checkpoint"]["uuid"]
        q.execute("fleece-checkpoint-commit", uuid=made["checkpoint"]["uuid"])
        q.execute("fleece-snapshot-delete", name="s")
        made = q.execute("fleece-snapshot-create", name="s", since="mine", checkpoint="lost", lease=True, grace=1)
    harness.wait_for("they are given up", lambda: not d.status()["snapshots"] and "lost" not in states(d))
    assert changed(d)["base"] == m.bytes("base")
    with d.qmp() as q:
        refused(q, "DeviceNotFound", "there is no snapshot", "fleece-snapshot-lease", uuid=made["uuid"])
    m.close()


def refuse_other(d, uuid):
    with d.qmp() as other:
        refused(other, "GenericError", "", "fleece-snapshot-lease", uuid=uuid)


def test_a_disk_goes_full_alone(t):
    """A disk that can't be tracked, or was not, is there in full and says why; the others are incremental."""
    disks = dict(two_disks(t), vdc=f"{t.disk('c.raw', MIB)},track=off", vdd=f"{t.disk('d.raw', MIB)},read-only=on")
    d = t.daemon(disks)
    d.fleece("checkpoint", "create", "base")
    nbd_client(d.uri("vda")).pwrite(b"x" * BLOCK, 0)
    said = d.fleece("snapshot", "create", "s", "--since", "base", "--checkpoint", "next").stdout
    assert "disk vda: 4 KiB changed since base" in said and "disk vdc: in full, since " in said, said
    with d.qmp() as q:
        made = q.execute("fleece-snapshot-create", name="s2", since="base")
        by_disk = {e["disk"]: e for e in made["exports"]}
        assert by_disk["vda"]["incremental"] and by_disk["vda"]["dirty"] == BLOCK, made
        for disk in ("vdc", "vdd"):
            assert not by_disk[disk]["incremental"] and disk in by_disk[disk]["reason"], made
            assert len(needed_blocks(t, d, f"{disk}@s2")) == MIB // BLOCK
        parts = {p["disk"]: p for p in listed(d)[0]["disks"]}
        assert parts["vdc"]["state"] == "absent" and parts["vdc"]["reason"], parts


def test_a_part_that_is_lost_holds_nobody_up(t):
    """A disk was changed behind our back before the commit: the other disk's part is committed all the same."""
    disks = two_disks(t)
    d = t.daemon(disks)
    with d.qmp() as q:
        uuid = q.execute("fleece-snapshot-create", name="s", checkpoint="one")["checkpoint"]["uuid"]
    d.stop()
    with open(disks["vdb"], "r+b") as f:
        f.write(b"x")
    t.daemons.clear()
    d = t.daemon(disks)
    with d.qmp() as q:
        q.execute("fleece-checkpoint-commit", uuid=uuid)
    assert states(d) == {"one": "committed"}
    assert {p["disk"]: p["state"] for p in listed(d)[0]["disks"]} == {"vda": "committed", "vdb": "invalid"}


def test_reset_beside_other_commands(t):
    """While the tracking of a disk is reset, nothing else reaches it: each of two commands at once succeeds or says why."""
    d = t.daemon({"vda": t.disk("a.raw", 16 * MIB)})
    others = (("fleece-checkpoint-delete", {"name": "one"}), ("fleece-snapshot-create", {"name": "s", "checkpoint": "two"}),
              ("fleece-checkpoint-reset", {"disk": "vda"}), ("fleece-query-checkpoints", {}))
    for command, arguments in others * 3:
        d.fleece("checkpoint", "create", "one")
        with d.qmp() as q, d.qmp() as other:
            q.send("fleece-checkpoint-reset", disk="vda")
            other.send(command, **arguments)
            left = {"two"}
            try:
                q.receive()
            except harness.QmpError as error:  # the other one came first
                assert "in use by another operation" in error.text, error
                left = {"one", "two"}
            try:
                other.receive()
            except harness.QmpError as error:
                assert error.text and command != "fleece-query-checkpoints"
            assert set(states(d)) <= left
            if command == "fleece-snapshot-create":
                other.execute("fleece-snapshot-delete", name="s")
        d.fleece("checkpoint", "reset", "vda")


def test_reset_under_load(t):
    """Of a disk whose activity log is being written all the time: writes go on, and tracking begins anew."""
    extent, extents = 4 * MIB, 4096
    d = t.daemon({"vda": t.disk("a.raw", extents * extent)})
    stop, failed = threading.Event(), []

    def load(seed):
        h, rng = nbd_client(d.uri("vda")), random.Random(seed)
        while not stop.is_set() and not failed:
            cookies = [h.aio_pwrite(nbd.Buffer.from_bytearray(bytearray(BLOCK)), rng.randrange(extents) * extent,
                                    completion=lambda e: failed.append(e.value) if e.value else None) for _ in range(16)]
            while h.aio_in_flight() and cookies:
                h.poll(-1)
        h.shutdown()

    nbd = nbd_module()
    threads = [threading.Thread(target=load, args=(seed,)) for seed in range(2)]
    d.fleece("checkpoint", "create", "one")
    for thread in threads:
        thread.start()
    try:
        for _ in range(5):
            time.sleep(0.05)
            d.fleece("checkpoint", "reset", "vda")
            assert states(d) == {}
            d.fleece("checkpoint", "create", "one")
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert not failed


def test_granularity(t):
    """What a disk's sidecar was made with holds; a map has that unit."""
    d = t.daemon({"vda": f"{t.disk('a.raw', 4 * MIB + 512)},track-granularity=64K"})
    d.fleece("checkpoint", "create", "base")
    h = nbd_client(d.uri("vda"))
    h.pwrite(b"x", 70000)
    h.pwrite(b"x", 4 * MIB + 511)
    h.shutdown()
    assert d.status()["disks"][0]["tracking"]["granularity"] == 65536
    assert changed(d) == {"base": 2 * 65536}
    d.fleece("snapshot", "create", "s", "--since", "base")
    wanted = set(blocks_of(65536, 65536)) | set(blocks_of(4 * MIB, 512))
    assert dirty_blocks(d, "vda@s", "base") == needed_blocks(t, d, "vda@s") == wanted


def test_hostile(t):
    """Many at once, beyond every bound, from several connections: refused by name, and nothing is lost."""
    d = t.daemon({"vda": t.disk("a.raw", MIB)})
    results = []

    def create(worker):
        with d.qmp() as q:
            for i in range(25):
                try:
                    q.execute("fleece-checkpoint-create", name=f"n{i}" if worker % 2 else f"w{worker}-{i}")
                    results.append(None)
                except harness.QmpError as error:
                    results.append(error)

    threads = [threading.Thread(target=create, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 100
    there = states(d)
    assert len(there) == results.count(None) == 64, len(there)
    texts = {error.text.split("'")[0] for error in results if error}
    assert texts <= {"checkpoint ", "there is a checkpoint ", "a checkpoint "}, texts
    with d.qmp() as q:
        for name in list(there)[:40]:
            q.execute("fleece-checkpoint-delete", name=name)
        q.execute("fleece-checkpoint-create", name="again")
        for bad in (["x"] * 8, [""], ["\u0000"], ["../x"], [{}], [None], "x", 7):
            try:
                q.execute("fleece-snapshot-create", maps=bad)
                raise AssertionError(f"{bad} was taken")
            except harness.QmpError as error:
                assert error.text
        assert q.execute("query-status")["running"]
    assert len(states(d)) == 25


harness.main()
