#!/usr/bin/python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""Full backups, and what is restored from them."""
import json
import os
import pty
import re

import harness
from backup_kit import MIB, RAW, forge, look, points, snapshots, two_disks
from loop_kit import loop_device

STAMP = "tests/tools/stamp"


def test_what_is_restored_is_what_was_there(t):
    disks = two_disks(t)
    d = t.daemon(disks)
    said = d.fleece("backup", t.path("set"), *RAW).stdout
    assert re.search(r"@20\d\d-.*Z: 2 disks of VM .*, 56\.\d MiB with 32\.\d MiB of data", said), said
    assert snapshots(d) == []
    assert t.fleece("verify", t.path("set")).stdout.count("intact") == 2
    for name, path in disks.items():
        restored = t.path(f"{name}.restored")
        t.fleece("restore", t.path("set"), "--disk", name, "--to", restored)
        assert restored.read_bytes() == path.read_bytes()
        assert harness.data_of(restored) <= harness.data_of(path)  # as sparse as it was
    d.stop()
    # Our images are anybody's images.
    harness.need("qemu-img")
    point, = points(t, t.path("set"))
    t.run("qemu-img", "compare", "-f", "raw", "-F", "raw", disks["vda"], t.path("set") / point / "vda.raw")
    listed = t.fleece("list", t.path("set")).stdout
    assert f"backup set of VM {t.vm}" in listed and point in listed and "vda vdb" in listed, listed


def test_backup_while_it_is_written_to(t):
    """Both disks show one instant: all that was acknowledged before, nothing that was issued after the snapshot."""
    disks = two_disks(t)
    d = t.daemon(disks)
    writer = t.spawn(t.program(STAMP), "write", d.uri("vda"), d.uri("vdb"), "--log", t.path("log"), "--writers", "2",
                     "--region", "1M:6M", stdout=open(t.path("said"), "wb"), stderr=-2)
    harness.wait_for("the writers write", lambda: d.status()["disks"][1]["writes"] > 200)
    for number in range(3):
        before = t.run(t.program(STAMP), "now").stdout.strip()
        d.fleece("backup", t.path("set"), *RAW)
        after = t.run(t.program(STAMP), "now").stdout.strip()
        for name in disks:
            t.fleece("restore", f"{t.path('set')}@latest", "--disk", name, "--to", t.path(f"{name}.{number}"))
        t.run(t.program(STAMP), "check", t.path(f"vda.{number}"), t.path(f"vdb.{number}"), "--log", t.path("log"),
              "--before", before, "--after", after)
    writer.terminate()
    assert writer.wait(harness.SOON) == 0, t.path("said").read_text()
    assert len(points(t, t.path("set"))) == 3
    t.fleece("verify", t.path("set"))
    d.stop()


def test_two_points_of_one_second(t):
    d = t.daemon({"vda": t.disk("a.raw", MIB, fill=1)})
    for _ in range(4):
        d.fleece("backup", t.path("set"), *RAW)
    names = list(points(t, t.path("set")))
    assert len(names) == 4 and names == sorted(names, key=lambda n: (n[:20], int(n[21:] or 1))), names
    # Each one can be named, and latest is the last.
    d.stop()
    with open(t.path("a.raw"), "r+b") as f:
        f.write(b"new")
    d = t.daemon({"vda": t.path("a.raw")})
    d.fleece("backup", t.path("set"), *RAW)
    t.fleece("restore", f"{t.path('set')}@{names[1]}", "--disk", "vda", "--to", t.path("old"))
    t.fleece("restore", f"{t.path('set')}@latest", "--disk", "vda", "--to", t.path("new"))
    assert t.path("new").read_bytes()[:3] == b"new" and t.path("old").read_bytes()[:3] != b"new"
    d.stop()


def test_the_clock_was_set_back(t):
    d = t.daemon({"vda": t.disk("a.raw", MIB, fill=1)})
    d.fleece("backup", t.path("set"), *RAW)
    name, = points(t, t.path("set"))
    forge(t.path("set") / name, "2099-01-01T00:00:00Z")
    said = d.fleece("backup", t.path("set"), *RAW, status=3).stderr
    assert "is not the latest" in said and "2099-01-01T00:00:00Z is there already" in said and said.count("\n") == 1, said
    assert len(points(t, t.path("set"))) == 3
    t.fleece("verify", t.path("set"))
    d.stop()


def test_restore_over_what_is_there(t):
    disks = two_disks(t, data_mib=2)
    d = t.daemon(disks)
    d.fleece("backup", t.path("set"), *RAW)
    there = t.disk("there.raw", 100 * MIB, fill=3)
    restore = ["restore", t.path("set"), "--disk", "vda", "--to"]
    refused = t.fleece(*restore, there, status=1).stderr
    assert "exists; it is overwritten only with --force" in refused, refused
    assert os.stat(there).st_size == 100 * MIB
    t.fleece(*restore, there, "--force")
    assert there.read_bytes() == disks["vda"].read_bytes()
    assert harness.data_of(there) < 3 * MIB
    empty = t.path("empty")
    empty.touch()
    t.fleece(*restore, empty, "--force")
    assert empty.read_bytes() == disks["vda"].read_bytes()
    # A disk that is being served, and the image itself, are safe from --force.
    refused = t.fleece(*restore, disks["vdb"], "--force", status=1).stderr
    assert "vdb.raw" in refused and "lock" in refused or "in use" in refused, refused
    point, = points(t, t.path("set"))
    before = look(t.path("set"))
    refused = t.fleece(*restore, t.path("set") / point / "vda.raw", "--force", status=1).stderr
    assert "is a file of the backup set itself" in refused, refused
    for other in ("vdb.raw", "manifest.json", "../fleece.json"):
        refused = t.fleece(*restore, t.path("set") / point / other, "--force", status=1).stderr
        assert "is a file of the backup set itself" in refused, refused
    for wrong, words in ((t.dir, "neither a file nor a block device"), (t.dir / "none" / "x", "there is no such folder")):
        said = t.fleece(*restore, wrong, "--force", status=1).stderr
        assert words.lower() in said.lower() and said.count("\n") == 1, said
    assert look(t.path("set")) == before
    d.stop()


def test_restore_to_a_block_device(t):
    disks = two_disks(t, data_mib=2)
    d = t.daemon(disks)
    d.fleece("backup", t.path("set"), *RAW)
    d.stop()
    size = os.stat(disks["vda"]).st_size
    for extra, status in ((-512, 1), (0, 0), (8 * MIB, 0)):
        backing = t.disk("backing", size + extra)
        with open(backing, "r+b") as f:
            f.write(b"\xaa" * (size + extra))
        with loop_device(t, backing) as device:
            restore = ["restore", t.path("set"), "--disk", "vda", "--to", device]
            assert "only with --force" in t.fleece(*restore, status=1).stderr
            said = t.fleece(*restore, "--force", status=status).stderr
            assert status == 0 or f"'{device}' has {size + extra} bytes; disk vda needs {size}" in said, said
        if status == 0:
            content = backing.read_bytes()
            assert content[:size] == disks["vda"].read_bytes()
            assert content[size:] == b"\xaa" * extra


def test_output_for_programs(t):
    d = t.daemon(two_disks(t))
    lines = [json.loads(line) for line in d.fleece("--json", "backup", t.path("set"), *RAW).stdout.splitlines()]
    assert lines[0]["event"] == "snapshot" and lines[0]["hold-ns"] > 0, lines[0]
    progress = [line for line in lines if line["event"] == "progress"]
    for disk, total in (("vda", 48 * MIB + 512), ("vdb", 8 * MIB)):
        done = [line["done"] for line in progress if line["disk"] == disk]
        assert done and done == sorted(done) and done[-1] == total, done
    assert lines[-1]["event"] == "done" and lines[-1]["point"] in points(t, t.path("set"))
    assert lines[-1]["disks"][0] == {"name": "vda", "size": 48 * MIB + 512, "data": 32 * MIB, "format": "raw",
                                     "kind": "full", "captured": 48 * MIB + 512}, lines[-1]
    verified = [json.loads(line) for line in t.fleece("--json", "verify", t.path("set")).stdout.splitlines()]
    assert [line["ok"] for line in verified if line["event"] == "disk"] == [True, True]
    restored = t.fleece("--json", "restore", t.path("set"), "--disk", "vda", "--to", t.path("x")).stdout.splitlines()
    assert json.loads(restored[-1])["event"] == "done"
    d.stop()


def test_a_bar_for_people(t):
    d = t.daemon({"vda": t.disk("a.raw", 128 * MIB, fill=1)})
    ours, theirs = pty.openpty()
    process = t.spawn(t.program("fleece"), "--control", d.control, "backup", t.path("set"), stdout=-3, stderr=theirs)
    os.close(theirs)
    shown = b""
    try:
        while piece := os.read(ours, 4096):
            shown += piece
    except OSError:
        pass  # the other end is closed
    os.close(ours)
    assert process.wait() == 0, shown
    assert re.search(rb"\rvda .*%.*\[#* *\] .* of 128 MiB, .*iB/s", shown), shown
    assert shown.endswith(b"\r\x1b[K"), shown[-80:]
    d.stop()


def test_wrong_command_lines(t):
    for arguments, words in (
            (["backup", "x"], "say which VM is meant"),
            (["--control", t.path("c"), "backup"], "backup wants the folder of one backup set"),
            (["list"], "list wants"), (["verify", "a", "b"], "verify wants"), (["restore"], "restore wants"),
            (["restore", "x"], "say which disk"), (["restore", "x", "--disk", "vda"], "say where to"),
            (["restore", "x", "--disk"], "--disk wants a value"), (["restore", "x", "--what"], "unknown option --what")):
        said = t.fleece(*arguments, status=2).stderr
        assert words in said and "usage: fleece" in said, said


def test_refusals(t):
    """Each with one sentence, and nothing changed."""
    d = t.daemon({"vda": t.disk("a.raw", MIB, fill=1)})
    full = t.path("full")
    full.mkdir()
    (full / "notes.txt").write_text("mine")
    other = t.path("other")
    other.mkdir()
    (other / "fleece.json").write_text('{"format": "fleece-backup-set", "version": 1, "vm": "another"}')
    newer = t.path("newer")
    newer.mkdir()
    (newer / "fleece.json").write_text(f'{{"format": "fleece-backup-set", "version": 3, "vm": "{t.vm}"}}')
    file = t.path("file")
    file.write_text("x")
    d.fleece("backup", t.path("set"))
    before = look(t.dir / "set"), look(full), look(other), look(newer)
    restore = ["restore", "--disk", "vda", "--to", t.path("out")]
    for arguments, words in (
            (["backup", full], "is neither a backup set nor empty: it has no fleece.json, but 'notes.txt'"),
            (["backup", other], f"is of VM 'another', not of '{t.vm}'"),
            (["backup", newer], "it has version 3; this fleece reads versions 1 to 2"),
            (["backup", file], "it is not a folder"),
            (["backup", t.path("no") / "such"], "can't make the folder"),
            (["list", full], "is not a backup set: it has no fleece.json"),
            (["verify", t.path("none")], "there is no backup set at"),
            (["verify", other], "has no point yet"),
            (["verify", f"{t.path('set')}@2020-01-01T00:00:00Z"], "has no point '2020-01-01T00:00:00Z'"),
            (["verify", f"{t.path('set')}@yesterday"], "'yesterday' is not the name of a point"),
            ([*restore[:2], "vdz", *restore[3:], t.path("set")], "has no disk 'vdz'; it has vda"),
            ([*restore, f"{t.path('set')}@2020-01-01T00:00:00Z"], "has no point")):
        said = d.fleece(*arguments, status=1).stderr
        assert words in said and said.count("\n") == 1, said
    assert (look(t.dir / "set"), look(full), look(other), look(newer)) == before
    assert not t.path("out").exists() and snapshots(d) == []
    d.stop()
    said = d.fleece("backup", t.path("set"), status=1).stderr
    assert str(d.control) in said, said


def test_over_tcp(t):
    d = t.daemon({"vda": t.disk("a.raw", 5 * MIB + 512, fill=1)}, nbd=f"tcp:127.0.0.1:{harness.free_port()}")
    d.fleece("backup", t.path("a@b"), *RAW)  # an '@' in the name of the folder
    t.fleece("restore", t.path("a@b"), "--disk", "vda", "--to", t.path("out"))
    assert t.path("out").read_bytes() == t.path("a.raw").read_bytes()
    d.stop()


def test_nothing_to_print_to(t):
    """A reader that goes away does not take the backup with it."""
    d = t.daemon({"vda": t.disk("a.raw", 64 * MIB, fill=1)})
    process = t.spawn(t.program("fleece"), "--json", "--control", d.control, "backup", t.path("set"), *RAW, stdout=-1,
                      stderr=-1)
    process.stdout.readline()
    process.stdout.close()
    assert process.wait(harness.SOON) in (0, 1), process.stderr.read()  # the output did not get out: that may be said
    harness.wait_for("its snapshot is gone", lambda: snapshots(d) == [])
    assert len(points(t, t.path("set"))) == 1
    t.fleece("verify", t.path("set"))
    d.stop()


harness.main()
