#!/usr/bin/python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""fleece prune: what stays restores as before, for fleece and for qemu-img; whatever interrupts it."""
import json
import os
import random
import shutil
import time

import harness
from backup_kit import look
from set_kit import MIB, Set, content_of, hour, some_blocks

SIZE = 2 * MIB + 1000


def chain(t, count, size=SIZE, blocks=12):
    """A set with a full point and so many incrementals."""
    made = Set(t, t.path("set"))
    made.add(hour(0), {"vda": content_of(1, size)})
    for i in range(1, count + 1):
        made.add(hour(i), {"vda": (some_blocks(i, size, blocks), size)}, parent=hour(i - 1))
    return made


def points(made):
    return sorted(p.name for p in made.path.iterdir() if p.is_dir() and p.name[0] != ".")


def check(t, made, stays):
    """Exactly these points are there; each verifies, restores to what it was, and is right for qemu-img."""
    assert points(made) == sorted(stays), f"{points(made)} are there, not {sorted(stays)}"
    assert not [p for p in made.path.iterdir() if p.name.startswith(".tmp-")]
    t.fleece("verify", made.path)
    for point in stays:
        manifest = json.loads((made.path / point / "manifest.json").read_text())
        for entry in manifest["disks"]:
            right, image = made.model[point][entry["name"]], made.path / point / entry["image"]
            t.path("out").unlink(missing_ok=True)
            t.fleece("restore", f"{made.path}@{point}", "--disk", entry["name"], "--to", t.path("out"))
            assert t.path("out").read_bytes() == right, f"{point} {entry['name']} is not as it was"
            if entry["format"] == "qcow2":
                t.run("qemu-img", "check", "-q", "-f", "qcow2", image)
            t.run("qemu-img", "convert", "-f", entry["format"], "-O", "raw", image, t.path("by-qemu"))
            assert t.path("by-qemu").read_bytes()[:len(right)] == right, f"{point}: qemu-img reads something else"
            if entry["kind"] == "incremental":
                assert entry["parent"]["point"] in stays, entry


def prune(t, made, *rules, **options):
    return t.fleece("prune", made.path, *rules, **options)


def test_the_oldest_go(t):
    made = chain(t, 5)
    before = look(made.path)
    said = prune(t, made, "--keep-last", "3", "--dry-run").stdout
    assert look(made.path) == before, "a dry run has changed something"
    assert "3 points would stay, 3 go, 1 be merged" in said and f"{hour(2)}     expires" in said, said
    said = prune(t, made, "--keep-last", "3").stdout
    assert "3 points stay, 3 went, 1 was merged with what it lay over" in said, said
    check(t, made, [hour(3), hour(4), hour(5)])
    before = look(made.path)
    prune(t, made, "--keep-last", "3")
    assert look(made.path) == before, "there was nothing to do"
    said = prune(t, made, "--keep-last", "1").stdout
    assert "1 point stays, 2 went, 1 was merged with what it lay over" in said, said
    check(t, made, [hour(5)])


def test_those_between_go(t):
    for full, compress in (("vda", True), ("vda.raw", False)):
        made = Set(t, t.path("set"))
        made.add(hour(0), {full: content_of(1, SIZE)}, compress=compress)
        for i in range(1, 9):
            made.add(hour(6 * i), {"vda": (some_blocks(i, SIZE, 9), SIZE)}, parent=hour(6 * i - 6))
        lines = [json.loads(line) for line in
                 t.fleece("--json", "prune", made.path, "--keep-daily", "3", "--keep-last", "2").stdout.splitlines()]
        stays = {line["point"]: line["rules"] for line in lines if line["event"] == "point" and line["stays"]}
        assert stays == {hour(18): ["daily"], hour(42): ["last", "daily"], hour(48): ["last", "daily"]}, stays
        assert [line["point"] for line in lines if line["event"] == "removed"] == \
            [hour(i) for i in (12, 6, 0, 36, 30, 24)], lines
        check(t, made, stays)
        done, = (line for line in lines if line["event"] == "done")
        assert (done["stay"], done["removed"], done["merged"]) == (3, 6, 2) and done["freed"] > done["written"] > 0, done
        shutil.rmtree(made.path)


def test_disks_go_their_own_ways(t):
    """One disk was full again in between, one came later, one is raw; the image of a disk that stays is not copied."""
    made = Set(t, t.path("set"))
    size = 2 * MIB + 512
    made.add(hour(0), {"vda": content_of(1, size), "vdb.raw": content_of(2, size)})
    made.add(hour(1), {"vda": (some_blocks(3, size, 9), size), "vdb": content_of(4, size), "vdc.raw": content_of(5, size)},
             parent=hour(0))
    made.add(hour(2), {d: (some_blocks(d, size, 9), size) for d in ("vda", "vdb", "vdc")}, parent=hour(1))
    made.add(hour(3), {d: (some_blocks(d, size, 9), size) for d in ("vda", "vdc")}, parent=hour(2))
    made.add(hour(4), {"vda": (some_blocks(8, size, 9), size), "vdc.raw": content_of(6, size)}, parent=hour(3))
    inode = made.image(hour(4), "vdc").stat().st_ino
    prune(t, made, "--keep-last", "1")
    check(t, made, [hour(4)])
    assert made.image(hour(4), "vdc").stat().st_ino == inode


def test_branches(t):
    """Two points lie over the same one, which expires; and one that nothing lies over."""
    made = Set(t, t.path("set"))
    made.add(hour(0), {"vda": content_of(1, SIZE)})
    made.add(hour(1), {"vda": (some_blocks(1, SIZE, 9), SIZE)}, parent=hour(0))
    for i in (2, 3, 4):
        made.add(hour(i), {"vda": (some_blocks(i, SIZE, 9), SIZE)}, parent=hour(1))
    made.add(hour(5), {"vda": (some_blocks(5, SIZE, 9), SIZE)}, parent=hour(2))
    made.add(hour(24), {"vda": (some_blocks(6, SIZE, 9), SIZE)}, parent=hour(3))
    prune(t, made, "--keep-daily", "2")
    check(t, made, [hour(5), hour(24)])


def test_sizes_that_change(t):
    made = Set(t, t.path("set"))
    sizes = [2 * MIB, MIB + 1000, MIB + 9 * 4096, 2 * MIB]
    made.add(hour(0), {"vda": content_of(1, sizes[0])})
    for i in range(1, 4):
        blocks = some_blocks(i, min(sizes[i - 1:i + 1]), 9)
        if sizes[i] > sizes[i - 1]:  # what a disk gains counts as changed
            blocks |= {b: None if b % 2 else bytes(range(256)) * 16 for b in range(sizes[i - 1] // 4096, sizes[i] // 4096)}
        made.add(hour(i), {"vda": (blocks, sizes[i])}, parent=hour(i - 1))
    made.add(hour(4), {"vda": (some_blocks(5, sizes[3], 5), sizes[3])}, parent=hour(3))
    made.add(hour(24), {"vda": (some_blocks(6, sizes[3], 5), sizes[3])}, parent=hour(4))
    prune(t, made, "--keep-daily", "1", "--keep-last", "2")
    check(t, made, [hour(4), hour(24)])


def test_blocks_that_files_share(t):
    """On XFS the full image is not copied: only what has changed takes new space."""
    harness.need("mkfs.xfs", "mount")
    t.run("truncate", "-s", "320M", t.path("xfs.img"))
    t.run("mkfs.xfs", "-q", "-m", "reflink=1", t.path("xfs.img"))
    folder = t.path("xfs")
    folder.mkdir()
    if t.run("mount", "-o", "loop", t.path("xfs.img"), folder, status=None).returncode != 0:
        raise harness.Skip("nothing can be mounted here")
    try:
        for compress in (False, True):
            size = 10 * MIB
            made = Set(t, folder / "set")
            content = b"".join(harness.pattern(2048, i) + bytes(2048) for i in range(size // 4096))
            made.add(hour(0), {"vda": content}, compress=compress)
            for i in (1, 2, 3):
                made.add(hour(i), {"vda": (some_blocks(i, size, 12), size)}, parent=hour(i - 1))
            os.link(made.image(hour(0)), folder / "keep")  # its blocks stay in use
            t.run("sync", "-f", folder)
            before = os.statvfs(folder).f_bavail * os.statvfs(folder).f_frsize
            done = json.loads(t.fleece("--json", "prune", made.path, "--keep-last", "2").stdout.splitlines()[-1])
            assert 0 < done["written"] < 3 * MIB and done["freed"] < 3 * MIB, f"{done}: what is shared is not freed"
            t.run("sync", "-f", folder)
            taken = before - os.statvfs(folder).f_bavail * os.statvfs(folder).f_frsize
            assert taken < 3 * MIB, f"{taken} bytes more are in use"
            check(t, made, [hour(2), hour(3)])
            lines = json.loads((made.path / hour(2) / "manifest.json").read_text())["disks"][0]
            right = made.model[hour(2)]["vda"]
            assert lines["data"] == sum(4096 for at in range(0, size, 4096) if any(right[at:at + 4096])), lines
            shutil.rmtree(made.path)
            (folder / "keep").unlink()
    finally:
        t.run("umount", folder)


def test_backups_go_on(t):
    """After a prune the next backup is incremental as before, over what was merged."""
    harness.need("qemu-io")
    disk = t.disk("a.raw", 4 * MIB, fill=1)
    d = t.daemon({"vda": disk})
    right = {}

    def backup(number):
        t.run("qemu-io", "-f", "raw", "-c", f"write -P {number} {number * 40960} 8192", d.uri("vda"))
        d.fleece("backup", t.path("set"))
        point = max(p.name for p in t.path("set").iterdir() if p.name[:2] == "20")
        right[point] = disk.read_bytes()
        time.sleep(1.1)  # the name of a point has whole seconds

    for number in range(1, 5):
        backup(number)
    t.fleece("prune", t.path("set"), "--keep-last", "2")
    backup(9)
    stays = sorted(right)[-3:]
    assert sorted(p.name for p in t.path("set").iterdir() if p.is_dir()) == stays
    kinds = [json.loads((t.path("set") / p / "manifest.json").read_text())["disks"][0]["kind"] for p in stays]
    assert kinds == ["full", "incremental", "incremental"], kinds
    t.fleece("verify", t.path("set"))
    d.fleece("audit", t.path("set"), "--sample", "100")
    for point in stays:
        t.path("out").unlink(missing_ok=True)
        t.fleece("restore", f"{t.path('set')}@{point}", "--disk", "vda", "--to", t.path("out"))
        assert t.path("out").read_bytes() == right[point], point
    d.stop()


def test_refusals(t):
    made = chain(t, 3)
    with open(made.image(hour(0)), "r+b") as f:  # some byte of the data at the end
        f.seek(-5000, os.SEEK_END)
        byte = f.read(1)[0]
        f.seek(-5000, os.SEEK_END)
        f.write(bytes([byte ^ 1]))
    before = look(made.path)
    said = prune(t, made, "--keep-last", "2", status=1).stderr
    assert f"{made.image(hour(0))} is damaged: extent " in said and said.count("\n") == 1, said
    assert look(made.path) == before
    manifest = made.path / hour(1) / "manifest.json"
    text = manifest.read_text()
    manifest.write_text(text.replace("kit", "cat"))
    assert f"nothing was pruned: {manifest}: it is damaged" in prune(t, made, "--keep-last", "1", status=1).stderr
    manifest.write_text(text)
    assert look(made.path) == before
    (made.path / hour(3) / "notes.txt").write_text("mine")
    said = prune(t, made, "--keep-last", "1", status=1).stderr
    assert f"point {hour(3)} of '{made.path}' can't be made anew: it holds 'notes.txt'" in said, said
    (made.path / hour(3) / "notes.txt").unlink()
    assert look(made.path) == before
    for wrong, words in (([], "say what stays"), (["--keep-last", "0"], "say what stays"),
                         (["--keep-last"], "wants a value"),
                         (["--keep-daily", "-1"], "--keep-daily '-1' is not a whole number"),
                         (["--keep-yearly", "1"], "unknown option --keep-yearly"), (["x"], "prune wants the folder")):
        assert words in prune(t, made, *wrong, status=2).stderr, words
    assert "no such folder" in t.fleece("prune", t.path("none"), "--keep-last", "1", status=1).stderr


def test_killed_at_any_time(t):
    """kill -9 after each line that it says; every point that is there then is right, and so is the end."""
    rng = random.Random(7)
    made = chain(t, 6, size=MIB + 512, blocks=9)
    all_points = points(made)
    shutil.copytree(made.path, t.path("keep"))
    command = [t.program("fleece"), "--json", "prune", made.path, "--keep-last", "2"]
    lines = t.run(*command).stdout.count("\n")
    assert lines >= len(all_points) + 2 + 5 + 1, lines  # the plan, progress, what was removed, the end
    killed = set()
    for line in range(len(all_points), lines):
        shutil.rmtree(made.path)
        shutil.copytree(t.path("keep"), made.path)
        process = t.spawn(*command, stdout=-1, stderr=-1)
        for _ in range(line):
            process.stdout.readline()
        time.sleep(rng.choice((0, 0.0005, 0.002)))
        process.kill()
        process.communicate()
        there = points(made)
        assert set(there[-2:]) == set(all_points[-2:]) and set(there) <= set(all_points), there
        killed.add(len(there))
        t.fleece("verify", made.path)
        t.path("out").unlink(missing_ok=True)
        t.fleece("restore", f"{made.path}@{there[-2]}", "--disk", "vda", "--to", t.path("out"))
        assert t.path("out").read_bytes() == made.model[there[-2]]["vda"]
        t.run(*command)
        assert points(made) == all_points[-2:]
    check(t, made, all_points[-2:])
    assert min(killed) < 7, killed


harness.main()
