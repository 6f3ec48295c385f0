#!/usr/bin/python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""Sets with incrementals, made by qemu-img: every point is verified and restored, and chains that are wrong are named."""
import json
import shutil

import harness
from backup_kit import look
from set_kit import MIB, Set, content_of, hour, some_blocks

SIZE = 3 * MIB + 1000


def chain(t, count, size=SIZE, full="vda"):
    """A set with a full point and so many incrementals."""
    made = Set(t, t.path("set"))
    made.add(hour(0), {full: content_of(1, size)})
    for i in range(1, count + 1):
        made.add(hour(i), {"vda": (some_blocks(i, size, 12), size)}, parent=hour(i - 1))
    return made


def restore(t, made, point, *options, to="out", status=0):
    t.path(to).unlink(missing_ok=True)
    done = t.fleece("restore", f"{made.path}@{point}", "--disk", "vda", "--to", t.path(to), *options, status=status)
    if status == 0 and "qcow2" not in options:
        assert t.path(to).read_bytes() == made.model[point]["vda"], f"point {point} was restored wrongly"
    return done


def refused(t, made, point, *words):
    """verify and restore both say these words, and nothing is restored."""
    said = t.fleece("verify", f"{made.path}@{point}", status=1).stderr + restore(t, made, point, status=1).stderr
    for word in words:
        assert said.count(word) >= 2, f"'{word}' is not said twice: {said}"
    assert not t.path("out").exists()
    for line in said.splitlines():
        assert line.startswith("fleece: ") and len(line) < 700, line
    return said


def test_any_point(t):
    for full in ("vda", "vda.raw"):
        made = chain(t, 2, full=full)
        t.fleece("verify", made.path)
        for point in made.model:
            restore(t, made, point)
            t.fleece("verify", f"{made.path}@{point}")
        shutil.rmtree(made.path)


def test_disks_that_change_their_size(t):
    made = Set(t, t.path("set"))
    sizes = [5 * MIB + 1000, 3 * MIB + 512 * 3, 6 * MIB + 100, 6 * MIB + 4096]
    made.add(hour(0), {"vda": content_of(1, sizes[0])})
    for i in range(1, 4):
        blocks = some_blocks(i, min(sizes[i - 1:i + 1]), 20)
        if sizes[i] > sizes[i - 1]:  # what a disk gains counts as changed
            blocks |= {b: bytes(range(256)) * 16 for b in range(sizes[i - 1] // 4096, sizes[i] // 4096, 3)}
        made.add(hour(i), {"vda": (blocks, sizes[i])}, parent=hour(i - 1))
    t.fleece("verify", made.path)
    for point in made.model:
        restore(t, made, point)


def test_formats(t):
    made = chain(t, 2)
    restore(t, made, hour(2), "--format", "qcow2", to="out.qcow2")
    t.run("qemu-img", "check", "-f", "qcow2", t.path("out.qcow2"))
    t.run("qemu-img", "compare", "-f", "qcow2", "-F", "qcow2", t.path("out.qcow2"), made.image(hour(2)))
    info = json.loads(t.run("qemu-img", "info", "--output=json", t.path("out.qcow2")).stdout)
    assert "backing-filename" not in info, info
    assert "only with --force" in t.fleece("restore", made.path, "--disk", "vda", "--to", t.path("out.qcow2"),
                                           "--format", "qcow2", status=1).stderr
    t.path("out.qcow2").write_bytes(b"x" * 5000)
    t.fleece("restore", made.path, "--disk", "vda", "--to", t.path("out.qcow2"), "--format", "qcow2", "--force")
    t.run("qemu-img", "compare", "-f", "qcow2", "-F", "qcow2", t.path("out.qcow2"), made.image(hour(2)))
    # Sparse: no more space than the data takes.
    restore(t, made, hour(2))
    data = sum(4096 for at in range(0, SIZE, 4096) if any(made.model[hour(2)]["vda"][at:at + 4096]))
    assert harness.data_of(t.path("out")) <= data + 64 * 1024


def test_nbd(t):
    harness.need("qemu-nbd")
    made = chain(t, 2)
    target = t.disk("target.raw", 8 * MIB, fill=9)
    behind = target.read_bytes()[SIZE:]
    socket = t.path("nbd.sock")
    server = t.spawn("qemu-nbd", "-f", "raw", "-k", socket, "-t", "-x", "disk", target)
    harness.wait_for("the server listens", socket.exists)
    uri = f"nbd+unix:///disk?socket={socket}"
    command = ["restore", made.path, "--disk", "vda", "--to", uri]
    assert "only with --force" in t.fleece(*command, status=1).stderr
    assert "is for files" in t.fleece(*command, "--force", "--format", "qcow2", status=1).stderr
    t.fleece(*command, "--force")
    server.terminate()
    server.wait()
    content = target.read_bytes()
    assert content[:SIZE] == made.model[hour(2)]["vda"] and content[SIZE:] == behind
    small = t.disk("small.raw", MIB)
    server = t.spawn("qemu-nbd", "-f", "raw", "-k", socket, "-t", "-x", "disk", small)
    harness.wait_for("the server listens", socket.exists)
    assert f"has {MIB} bytes; disk vda needs {SIZE}" in t.fleece(*command, "--force", status=1).stderr
    server.terminate()
    server.wait()


def test_all_disks(t):
    made = Set(t, t.path("set"))
    made.add(hour(0), {"vda": content_of(1, SIZE), "vdb.raw": content_of(2, MIB)})
    made.add(hour(1), {"vda": (some_blocks(3, SIZE, 9), SIZE), "vdb": (some_blocks(4, MIB, 9), MIB)}, parent=hour(0))
    t.fleece("restore", made.path, "--all", "--to-dir", t.path("out"))
    for disk in ("vda", "vdb"):
        assert t.path(f"out/{disk}.raw").read_bytes() == made.model[hour(1)][disk]
    assert "only with --force" in t.fleece("restore", made.path, "--all", "--to-dir", t.path("out"), status=1).stderr
    for wrong, words in ((["--all"], "say where to: --to-dir"), (["--all", "--disk", "vda"], "--all goes with --to-dir"),
                         (["--disk", "vda", "--to-dir", "x"], "--to-dir goes with --all"),
                         (["--disk", "vda", "--to", "x", "--format", "vmdk"], "neither 'raw' nor 'qcow2'")):
        assert words in t.fleece("restore", made.path, *wrong, status=2).stderr


def test_a_chain_of_50(t):
    size = 2 * MIB
    made = Set(t, t.path("set"))
    made.add(hour(0), {"vda": content_of(1, size)})
    for i in (1, 2):
        made.add(hour(i), {"vda": ({b: harness.pattern(4096, b) for b in (7, 8, 90 * i, 200 * i)}, size)},
                 parent=hour(i - 1))
    for i in range(3, 51):
        made.add_like(hour(i), hour(1 + i % 2), parent=hour(i - 1), seed=i)
    t.fleece("verify", f"{made.path}@latest")
    restore(t, made, hour(50))


def test_broken_chains(t):
    made = chain(t, 3)
    keep = t.path("keep")
    shutil.copytree(made.path, keep)

    def again():
        shutil.rmtree(made.path)
        shutil.copytree(keep, made.path)

    shutil.rmtree(made.path / hour(1))
    refused(t, made, hour(3), f"disk vda of point {hour(2)} needs point {hour(1)}: {made.path}/{hour(1)} can't be opened")
    again()
    made.manifests[hour(1)]["snapshot"] = "00000000-0000-4000-8000-000000000000"
    made.write_manifest(hour(1))
    refused(t, made, hour(3), f"point {hour(1)} is of snapshot 00000000-0000-4000-8000-000000000000: it is another one")
    again()  # the images of two points are swapped
    first, second = made.image(hour(1)), made.image(hour(2))
    first.rename(t.path("x"))
    second.rename(first)
    t.path("x").rename(second)
    refused(t, made, hour(3), f"{second} is damaged: its backing file is '../{hour(0)}/vda.qcow2', not "
                              f"'../{hour(1)}/vda.qcow2'")
    t.fleece("restore", f"{made.path}@{hour(0)}", "--disk", "vda", "--to", t.path("y"))
    again()
    t.run("qemu-img", "resize", "-q", made.image(hour(2)), 7 * MIB)
    refused(t, made, hour(3), f"{made.image(hour(2))} is damaged: it says that the disk has {7 * MIB} bytes")
    again()
    t.run("qemu-img", "rebase", "-u", "-b", f"../{hour(1)}/vda.qcow2", "-F", "raw", made.image(hour(2)))
    refused(t, made, hour(3), "the format of its backing file is 'raw', not 'qcow2'")
    again()
    made.image(hour(0)).unlink()
    refused(t, made, hour(3), f"{hour(0)}/vda.qcow2 of disk vda can't be read: No such file")


def test_what_an_overlay_holds(t):
    """C25: a captured block that the image lacks, and one that nobody captured."""
    made = Set(t, t.path("set"))
    made.add(hour(0), {"vda": bytes(2 * MIB)})
    made.add(hour(1), {"vda": ({7: None, 8: None, 300: b"x" * 4096}, 2 * MIB)}, parent=hour(0))
    t.fleece("verify", made.path)
    image = made.image(hour(1))
    image.unlink()  # the same without its zeroes: right today, for the parent is zero there, too
    t.run("qemu-img", "create", "-q", "-f", "qcow2", "-o", "cluster_size=4k", "-b", f"../{hour(0)}/vda.qcow2", "-F",
          "qcow2", image, 2 * MIB)
    t.run("qemu-io", "-f", "qcow2", "-c", "write -P 120 1228800 4096", image)
    said = t.fleece("verify", made.path, status=1).stderr
    assert f"bytes 28672 to 36863 of {image}: captured, but the image has no such block" in said, said
    t.run("qemu-io", "-f", "qcow2", "-c", "write -z 28672 8192", "-c", "write -z 40960 4096", image)
    said = t.fleece("verify", made.path, status=1).stderr
    assert f"bytes 40960 to 45055 of {image}: the image has a block that was not captured" in said, said
    assert "has other tables than at the time of the backup" in said and said.count("\n") == 2, said


def test_damage_that_a_restore_does_not_meet(t):
    made = Set(t, t.path("set"))
    made.add(hour(0), {"vda.raw": content_of(1, 3 * MIB)})
    made.add(hour(1), {"vda": ({b: b"y" * 4096 for b in range(256, 512)}, 3 * MIB)}, parent=hour(0))
    with open(made.image(hour(0)), "r+b") as f:
        f.seek(MIB + 5)
        f.write(b"damage")
    restore(t, made, hour(1))
    refused(t, made, hour(0), "extent 1 (bytes 1048576 to 2097151)")
    said = t.fleece("verify", f"{made.path}@{hour(1)}", status=1).stderr
    assert f"point {hour(0)}, disk vda is damaged: extent 1 " in said, said


def test_samples(t):
    made = Set(t, t.path("set"))
    made.add(hour(0), {"vda.raw": harness.pattern(10 * MIB, 5)})
    made.add(hour(1), {"vda": ({b * 256: b"z" * 4096 for b in range(10)}, 10 * MIB)}, parent=hour(0))
    lines = [json.loads(line) for line in
             t.fleece("--json", "verify", made.path, "--sample", "15%", "--seed", "7").stdout.splitlines()]
    disks = [line for line in lines if line["event"] == "disk"]
    assert [(d["extents"], d["verified"], d["ok"], d["kind"]) for d in disks] == \
        [(10, 2, True, "full"), (10, 2, True, "incremental")], disks
    assert lines[-1] == {"event": "sample", "percent": 15.0, "seed": 7, "extents": 20, "verified": 4}, lines[-1]
    assert "4 of 20 MiB were looked at (--seed 7)" in t.fleece("verify", made.path, "--sample", "15", "--seed", "7").stdout
    with open(made.image(hour(0)), "r+b") as f:
        for extent in range(0, 10, 2):
            f.seek(extent * MIB + 77)
            f.write(b"damage")
    found = set()
    for seed in range(4):
        said = t.fleece("verify", made.path, "--sample", "20%", "--seed", str(seed), status=None)
        again = t.fleece("verify", made.path, "--sample", "20%", "--seed", str(seed), status=None)
        assert said.stdout == again.stdout and said.stderr == again.stderr
        found |= set(said.stderr.splitlines())
    assert len(found) > 1, found  # different places
    damage = [json.loads(line) for line in t.fleece("--json", "verify", made.path, status=1).stdout.splitlines()]
    damage = [line for line in damage if line["event"] == "damage"]
    assert damage[0]["start"] == 0 and damage[0]["length"] == MIB and damage[0]["file"] == str(made.image(hour(0))), damage
    for wrong in ("0", "101", "x", "-5", "5%%"):
        assert "--sample is" in t.fleece("verify", made.path, "--sample", wrong, status=2).stderr


def test_newer_versions(t):
    """A point that a later version has made is not called damaged, and nothing is done to the set."""
    made = Set(t, t.path("set"))
    made.add(hour(0), {"vda": content_of(1, MIB)})
    made.add(hour(1), {"vda": (some_blocks(1, MIB, 3), MIB)}, parent=hour(0))
    made.manifests[hour(1)]["version"] = 3
    made.write_manifest(hour(1))
    before = look(made.path)
    words = f"{made.path / hour(1)}/manifest.json: it has version 3; this fleece reads versions 1 to 2"
    said = t.fleece("verify", made.path, status=1)
    assert said.stderr == f"fleece: point {hour(1)} can't be verified: {words}\n" and "intact" in said.stdout, said
    said = t.fleece("list", made.path, status=1)
    assert said.stderr == f"fleece: {words}\n" and f"{hour(1)}     newer" in said.stdout, said
    assert json.loads(t.fleece("--json", "list", f"{made.path}@latest", status=1).stdout)["newer"] is True
    assert words in t.fleece("prune", made.path, "--keep-last", "1", status=1).stderr
    assert words in t.fleece("restore", made.path, "--disk", "vda", "--to", t.path("out"), status=1).stderr
    t.fleece("restore", f"{made.path}@{hour(0)}", "--disk", "vda", "--to", t.path("out"))
    assert look(made.path) == before


def test_nothing_is_restored_into_the_set(t):
    made = Set(t, t.path("set"))
    made.add(hour(0), {"vda": content_of(1, MIB)})
    before = look(made.path)
    for where in (made.path / "new.raw", made.path / hour(0) / "new.raw", made.path / hour(0) / "vda.raw"):
        said = t.fleece("restore", made.path, "--disk", "vda", "--to", where, status=1).stderr
        assert said == f"fleece: '{where}' would lie in the backup set itself\n", said
    t.fleece("restore", made.path, "--all", "--to-dir", made.path, status=1)
    assert look(made.path) == before
    said = t.fleece("restore", made.path, "--all", "--to-dir", t.path("new"), "--format", "qcow2").stdout
    assert t.path("new/vda.qcow2").exists(), said
    (made.path / hour(0) / "vda.qcow2").unlink()
    t.fleece("restore", made.path, "--all", "--to-dir", t.path("other"), status=1)
    assert not t.path("other").exists(), "a folder without anything in it was left"


harness.main()
