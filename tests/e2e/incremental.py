#!/usr/bin/python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""Incremental backups: every point is what the disks were at its cut, as qemu-img sees it, and only what changed travels."""
import hashlib
import json
import os

import harness
from backup_kit import MIB, HeldBackup, points, snapshots
from incremental_kit import SIZES, Guest, backup, check_point, checkpoints, disks_of, keep, start

STAMP = "tests/tools/stamp"


def test_a_chain(t):
    """Made while the guest goes on writing, each point is the disks at its cut, and holds what had changed and no more."""
    paths, d = start(t)
    guest = Guest(d, SIZES)
    done = []
    for number in range(5):
        if number:
            guest.work(60)
        expected = guest.captured()
        held = HeldBackup(t, d, t.path("set"))
        keep(t, paths, number)
        guest.work(40)
        lines, said = held.end(0)
        assert said == "" and snapshots(d) == [], said
        done.append(lines[-1])
        for name, disk in disks_of(lines[-1]).items():
            assert disk["format"] == "qcow2" and disk["kind"] == ("incremental" if number else "full"), disk
            assert disk["captured"] == (expected[name] if number else SIZES[name]), (disk, expected)
    found = points(t, t.path("set"))
    assert list(found) == [line["point"] for line in done]
    for number, point in enumerate(found):
        check_point(t, point, number, paths)
        for disk in found[point]["disks"]:
            parent = done[number - 1]["point"] if number else None
            assert disk.get("parent", {}).get("point") == parent, disk
            if number:
                assert disk["parent"]["snapshot"] == found[parent]["snapshot"], disk
                image = t.path("set") / point / disk["image"]
                info = json.loads(t.run("qemu-img", "info", "--output=json", image).stdout)
                assert info["backing-filename"] == f"../{parent}/{disk['image']}", info
                assert info["backing-filename-format"] == "qcow2", info
    t.fleece("verify", t.path("set"))
    for name, path in paths.items():
        t.fleece("restore", t.path("set"), "--disk", name, "--to", t.path("restored"), "--force")
        assert t.path("restored").read_bytes() == t.path(f"{name}.{len(done) - 1}").read_bytes()
    # One checkpoint, that of the latest point, is left of the set.
    left = checkpoints(d)
    assert [(c["uuid"], c["state"]) for c in left] == [(found[done[-1]["point"]]["checkpoint"]["uuid"], "committed")], left
    listed = t.fleece("list", t.path("set")).stdout.splitlines()
    assert [line.split()[1] for line in listed[2:]] == ["full"] + 4 * ["incremental"], listed
    guest.leave()
    d.stop()


def test_while_it_is_written_to(t):
    """Under load, all disks of a point show one instant: what was acknowledged before, nothing that was issued after."""
    paths, d = start(t)
    writer = t.spawn(t.program(STAMP), "write", d.uri("vda"), d.uri("vdb"), "--log", t.path("log"), "--writers", "2",
                     "--region", "1M:2M", stdout=open(t.path("said"), "wb"), stderr=-2)
    harness.wait_for("the writers write", lambda: d.status()["disks"][1]["writes"] > 200)
    for number in range(4):
        before = t.run(t.program(STAMP), "now").stdout.strip()
        line = backup(d, t.path("set"))
        after = t.run(t.program(STAMP), "now").stdout.strip()
        assert {disk["kind"] for disk in line["disks"]} == {"incremental" if number else "full"}, line
        for name in paths:
            t.run("qemu-img", "convert", "-O", "raw", t.path("set") / line["point"] / f"{name}.qcow2", t.path(f"{name}.now"))
        t.run(t.program(STAMP), "check", t.path("vda.now"), t.path("vdb.now"), "--log", t.path("log"), "--before", before,
              "--after", after)
    writer.terminate()
    assert writer.wait(harness.SOON) == 0, t.path("said").read_text()
    d.stop()


def test_a_long_chain(t):
    sizes = {"vda": 8 * MIB}
    paths, d = start(t, sizes=sizes)
    guest = Guest(d, sizes)
    for number in range(51):
        guest.work(3)
        keep(t, paths, number)
        assert backup(d, t.path("set"))["disks"][0]["kind"] == ("incremental" if number else "full")
    guest.leave()
    found = list(points(t, t.path("set")))
    assert len(found) == 51
    for number in (0, 1, 2, 10, 25, 40, 49, 50):
        check_point(t, found[number], number, paths)
    d.stop()


def test_formats(t):
    """Incrementals over raw images, over compressed ones, and full ones in between."""
    paths, d = start(t)
    guest = Guest(d, SIZES)
    plan = [(["--format", "raw"], "raw", "full"), (["--format", "raw"], "qcow2", "incremental"),
            (["--full", "--compress"], "qcow2", "full"), ([], "qcow2", "incremental"), (["--full"], "qcow2", "full")]
    for number, (options, image, kind) in enumerate(plan):
        guest.work(50)
        keep(t, paths, number)
        for disk in backup(d, t.path("set"), *options)["disks"]:
            assert (disk["format"], disk["kind"], disk.get("reason")) == (image, kind, None), disk
    for number, point in enumerate(points(t, t.path("set"))):
        check_point(t, point, number, paths)
    guest.leave()
    d.stop()


def test_two_sets(t):
    """Two tools, each with a set of its own and its own rhythm."""
    paths, d = start(t)
    guest = Guest(d, SIZES)
    sets = [t.path("set"), t.path("other")]
    for number, which in enumerate([0, 1, 0, 0, 1, 0, 1]):
        guest.work(30)
        keep(t, paths, number)
        line = backup(d, sets[which])
        assert {disk["kind"] for disk in line["disks"]} == {"full" if number < 2 else "incremental"}, line
        if which == 0:
            check_point(t, line["point"], number, paths)
    os.rename(sets[0], t.path("first"))
    os.rename(sets[1], sets[0])
    check_point(t, list(points(t, sets[0]))[-1], 6, paths)
    assert len(checkpoints(d)) == 2
    guest.leave()
    d.stop()


def test_disks_come_and_go(t):
    """New ones are full, others go on; one of another size is right, however it is copied."""
    sizes = dict(SIZES)
    paths, d = start(t)
    backup(d, t.path("set"))
    guest = Guest(d, sizes)
    guest.work(20)
    guest.leave()
    d.stop()
    paths["vdc"], sizes["vdc"] = t.disk("vdc.img", 4 * MIB, fill=7), 4 * MIB
    d = t.daemon(paths)
    keep(t, paths, 1)
    line = backup(d, t.path("set"))
    kinds = {name: disk["kind"] for name, disk in disks_of(line).items()}
    assert kinds == {"vda": "incremental", "vdb": "incremental", "vdc": "full"}, line
    assert disks_of(line)["vdc"]["reason"] == "the latest point has no such disk"
    check_point(t, line["point"], 1, paths)
    d.stop()
    del paths["vda"]
    d = t.daemon(paths)
    guest = Guest(d, {name: sizes[name] for name in paths})
    guest.work(20)
    guest.leave()
    keep(t, paths, 2)
    line = backup(d, t.path("set"))
    assert {name: disk["kind"] for name, disk in disks_of(line).items()} == {"vdb": "incremental", "vdc": "incremental"}
    check_point(t, line["point"], 2, paths)
    d.stop()
    os.truncate(paths["vdb"], 12 * MIB)
    os.truncate(paths["vdc"], 3 * MIB)
    d = t.daemon(paths)
    keep(t, paths, 3)
    said = d.fleece("--json", "backup", t.path("set"), status=None)
    line = json.loads(said.stdout.splitlines()[-1])
    full = [disk["name"] for disk in line["disks"] if disk["kind"] == "full"]
    assert said.returncode == (3 if full else 0), said.stderr
    for name in full:
        assert f"fleece: warning: disk {name} is backed up in full: " in said.stderr, said.stderr
    check_point(t, line["point"], 3, paths)
    d.stop()


def test_disks_change_places(t):
    """Two images that are served under each other's names are other disks: full, and why is said."""
    paths, d = start(t, sizes={"vda": MIB, "vdb": MIB})
    Guest(d, {"vdb": MIB}).work(20)
    backup(d, t.path("set"))
    for end in "stop", "kill":
        getattr(d, end)()
        paths = {"vda": paths["vdb"], "vdb": paths["vda"]}
        t.daemons.clear()
        d = t.daemon(paths)
        line = backup(d, t.path("set"), status=3)
        for disk in line["disks"]:
            other = {"vda": "vdb", "vdb": "vda"}[disk["name"]]
            assert disk["kind"] == "full", disk
            assert f"the disk is called {disk['name']}, it was {other} when it was tracked last" in disk["reason"], disk
        for name, path in paths.items():
            t.fleece("restore", t.path("set"), "--disk", name, "--to", t.path("restored"), "--force")
            assert t.path("restored").read_bytes() == path.read_bytes(), name
    d.stop()


def test_what_is_lost_is_said(t):
    """Without its checkpoint a set goes full, and says why; and which checkpoints can be a base."""
    paths, d = start(t)
    where = t.path("set")
    said = d.fleece("backup", where, "--since", "x", status=1).stderr
    assert "there is nothing that changes since 'x' could be added to" in said, said
    assert not where.exists()
    with d.qmp() as qmp:
        qmp.execute("fleece-checkpoint-create", name="early")
        backup(d, where)
        qmp.execute("fleece-checkpoint-create", name="late")
        said = d.fleece("backup", where, "--since", "late", status=1).stderr
        assert "'late' can't be the base: nothing proves that it is not newer than the latest point" in said, said
        said = d.fleece("backup", where, "--since", "never", status=1).stderr
        assert said == "fleece: there is no checkpoint 'never'\n", said
        guest = Guest(d, SIZES)
        guest.work(30)
        keep(t, paths, 1)
        line = backup(d, where, "--since", "early")
        assert {disk["kind"] for disk in line["disks"]} == {"incremental"}, line
        check_point(t, line["point"], 1, paths)
        ours, = [c for c in checkpoints(d) if c["name"].startswith("fleece-")]
        qmp.execute("fleece-checkpoint-delete", uuid=ours["uuid"])
    done = d.fleece("backup", where, status=3)
    latest = line["point"]
    for name in SIZES:
        words = f"warning: disk {name} is backed up in full: the checkpoint of the latest point {latest} is gone\n"
        assert words in done.stderr, done.stderr
    guest.work(30)
    keep(t, paths, 2)
    line = backup(d, where)
    assert {disk["kind"] for disk in line["disks"]} == {"incremental"}, line
    check_point(t, line["point"], 2, paths)
    assert {c["name"] for c in checkpoints(d)} > {"early", "late"}  # nobody else's are touched
    said = t.fleece("list", where).stdout
    assert f"vda is full: the checkpoint of the latest point {latest} is gone" in said, said
    guest.leave()
    d.stop()


def test_no_room_for_a_checkpoint(t):
    """Other tools have made all the checkpoints that there may be: incremental nevertheless, since the one before."""
    paths, d = start(t)
    guest = Guest(d, SIZES)
    backup(d, t.path("set"))
    base, = checkpoints(d)
    with d.qmp() as qmp:
        for number in range(63):
            qmp.execute("fleece-checkpoint-create", name=f"other{number}")
        captured = dict.fromkeys(SIZES, 0)
        for number in range(2):
            guest.work(30)
            keep(t, paths, number)
            done = d.fleece("--json", "backup", t.path("set"), status=3)
            assert "the next one will copy what this one does once more: checkpoint 'fleece-" in done.stderr, done
            line = json.loads(done.stdout.splitlines()[-1])
            check_point(t, line["point"], number, paths)
            for name, disk in disks_of(line).items():
                assert disk["kind"] == "incremental" and disk["captured"] > captured[name], line
                captured[name] = disk["captured"]
            assert checkpoints(d)[0] == base | {"disks": checkpoints(d)[0]["disks"]}, checkpoints(d)[0]
        qmp.execute("fleece-checkpoint-delete", uuid=checkpoints(d)[1]["uuid"])
    backup(d, t.path("set"))
    line = backup(d, t.path("set"))
    assert [disk["captured"] for disk in line["disks"]] == [0, 0], line
    t.fleece("verify", t.path("set"))
    guest.leave()
    d.stop()


def test_a_damaged_set(t):
    """Nothing is laid over an image that is not there, or over a point whose manifest is not right."""
    paths, d = start(t)
    where = t.path("set")
    for number, spoil in enumerate((lambda folder: (folder / "vdb.qcow2").unlink(),
                                    lambda folder: (folder / "manifest.json").write_text("{}"))):
        first = backup(d, where, "--full")["point"]
        spoil(where / first)
        keep(t, paths, number)
        done = d.fleece("--json", "backup", where, status=3)
        line = json.loads(done.stdout.splitlines()[-1])
        assert {disk["kind"] for disk in line["disks"]} == {"full"}, line
        check_point(t, line["point"], number, paths)
        what = f"the image {where}/{first}/vdb.qcow2" if number == 0 else f"{where}/{first}/manifest.json: "
        assert f"disk vda is backed up in full: {what}" in done.stderr, done.stderr
    d.stop()


def make_old(folder):
    """A set of raw images becomes one of version 1."""
    set_file = folder / "fleece.json"
    old = json.loads(set_file.read_text())
    set_file.write_text(json.dumps({"format": old["format"], "version": 1, "vm": old["vm"]}))
    for path in folder.glob("*/manifest.json"):
        manifest = json.loads(path.read_text())
        manifest["version"] = 1
        del manifest["checkpoint"], manifest["sha256"]
        for disk in manifest["disks"]:
            del disk["kind"], disk["captured"]
        text = json.dumps(manifest, sort_keys=True, separators=(",", ":"))
        manifest["sha256"] = hashlib.sha256(text.encode()).hexdigest()
        path.write_text(json.dumps(manifest))


def test_a_set_of_the_first_version(t):
    paths, d = start(t)
    keep(t, paths, 0)
    backup(d, t.path("set"), "--format", "raw")
    make_old(t.path("set"))
    t.fleece("verify", t.path("set"))
    assert [line["version"] for line in points(t, t.path("set")).values()] == [1]
    guest = Guest(d, SIZES)
    for number, (status, kind) in enumerate([(3, "full"), (0, "incremental")], 1):
        guest.work(20)
        keep(t, paths, number)
        line = backup(d, t.path("set"), status=status)
        assert {disk["kind"] for disk in line["disks"]} == {kind}, line
        if number == 1:
            assert line["disks"][0]["reason"].endswith("has no checkpoint"), line
    for number, point in enumerate(points(t, t.path("set"))):
        check_point(t, point, number, paths)
    guest.leave()
    d.stop()


def test_wrong_options(t):
    for options, words in ((["--full", "--since", "x"], "--full and --since exclude one another"),
                           (["--format", "vmdk"], "--format 'vmdk' is neither 'qcow2' nor 'raw'"),
                           (["--format", "raw", "--compress"], "--compress is for qcow2 images"),
                           (["--grace", "x"], "--grace 'x' is not a number of seconds from 0 to 86400"),
                           (["--grace", "86401"], "--grace '86401' is not"), (["--sincee"], "--sincee")):
        said = t.fleece("--vm", "none", "backup", t.path("set"), *options, status=2).stderr
        assert words in said, said
    # A set of that name could be made, but every other command would take it for a point.
    for point in "latest", "2026-11-22T06:05:45Z-2":
        said = t.fleece("--vm", "none", "backup", f"{t.path('set')}@{point}", status=2).stderr
        assert f"@{point}' is a point; backup wants the folder of a set" in said, said


harness.main()
