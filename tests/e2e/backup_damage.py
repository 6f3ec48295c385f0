#!/usr/bin/python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""Damaged backup sets: whatever byte or file it is, verify finds it and says where; restore refuses and leaves nothing."""
import json
import os
import shutil

import harness
from backup_kit import MIB, RAW, forge, points


def make(t):
    """A set with one point; disks of the same size, so that their images can be swapped."""
    vda = t.disk("vda.raw", 6 * MIB + 100)
    with open(vda, "r+b") as f:
        f.write(harness.pattern(3 * MIB, 1))
        f.seek(6 * MIB)
        f.write(b"tail")
    d = t.daemon({"vda": vda, "vdb": t.disk("vdb.raw", 6 * MIB + 100, fill=2)})
    d.fleece("backup", t.path("set"), *RAW)
    d.stop()
    point, = points(t, t.path("set"))
    shutil.copytree(t.path("set"), t.path("good"))
    return t.path("set") / point


def again(t, point):
    shutil.rmtree(t.path("set"))
    shutil.copytree(t.path("good"), t.path("set"))
    return point


def expect(t, *words, disk="vda", restores=False):
    """verify and restore fail with these words; the other disk is not accused."""
    said = t.fleece("verify", t.path("set"), status=1)
    for word in words:
        assert word in said.stderr, f"'{word}' is not said: {said.stderr}"
    for line in said.stderr.splitlines():
        assert line.startswith("fleece: ") and len(line) < 600, line
    done = t.fleece("restore", t.path("set"), "--disk", disk, "--to", t.path("out"), status=None)
    assert done.returncode == (0 if restores else 1), done.stderr
    assert t.path("out").exists() == restores, "a failed restore has left its file"
    t.path("out").unlink(missing_ok=True)
    return said


def flip(path, offset):
    with open(path, "r+b") as f:
        f.seek(offset)
        byte = f.read(1)[0]
        f.seek(offset)
        f.write(bytes([byte ^ 1]))


def test_bytes_of_an_image(t):
    point = make(t)
    for offset, extent, end in ((0, 0, MIB - 1), (MIB - 1, 0, MIB - 1), (2 * MIB + 17, 2, 3 * MIB - 1),
                                (4 * MIB, 4, 5 * MIB - 1), (6 * MIB + 99, 6, 6 * MIB + 99)):
        again(t, point)
        flip(point / "vda.raw", offset)
        # What is recorded as zeroes is restored as zeroes, whatever the image holds.
        said = expect(t, f"point {point.name}, disk vda is damaged: extent {extent} (bytes {extent * MIB} to {end}) of "
                         f"{point}/vda.raw", restores=offset == 4 * MIB)
        assert "vda: 6.0 MiB, DAMAGED" in said.stdout and "vdb: 6.0 MiB, intact" in said.stdout, said.stdout
        assert said.stderr.count("\n") == 1, said.stderr


def test_several_places(t):
    point = make(t)
    for offset in (5, MIB + 5, 3 * MIB, 6 * MIB):
        flip(point / "vda.raw", offset)
    flip(point / "vdb.raw", 2 * MIB)
    said = expect(t, f"disk vda is damaged: extents 0 to 1 (bytes 0 to {2 * MIB - 1})", "extent 3 (", "extent 6 (",
                  "disk vdb is damaged: extent 2 (")
    assert said.stderr.count("\n") == 4, said.stderr
    lines = [json.loads(line) for line in t.fleece("--json", "verify", t.path("set"), status=1).stdout.splitlines()]
    found = {line["disk"]: line["damaged"] for line in lines if line["event"] == "disk"}
    assert found == {"vda": 4, "vdb": 1}, found


def test_whole_images(t):
    point = make(t)
    size = 6 * MIB + 100

    def change(action):
        again(t, point)
        action(point / "vda.raw")

    change(lambda image: os.truncate(image, size - 1))
    expect(t, f"vda.raw of disk vda is damaged: it has {size - 1} bytes, not {size}")
    change(lambda image: os.truncate(image, size + 1))
    expect(t, f"it has {size + 1} bytes, not {size}")
    change(lambda image: os.truncate(image, 0))
    expect(t, f"it has 0 bytes, not {size}")
    change(lambda image: image.unlink())
    expect(t, "vda.raw of disk vda can't be read: No such file")
    change(lambda image: (image.rename(point / "x"), (point / "vdb.raw").rename(image),
                          (point / "x").rename(point / "vdb.raw")))
    expect(t, "disk vda is damaged: extents 0 to 6 ", "disk vdb is damaged: extents 0 to 6 ")
    change(lambda image: (image.unlink(), image.symlink_to(t.path("vda.raw"))))
    expect(t, "vda.raw of disk vda is not a regular file")
    change(lambda image: (image.unlink(), image.mkdir()))
    expect(t, "vda.raw of disk vda is not a regular file")
    change(lambda image: image.write_bytes(bytes(size)))  # all zero, as after a lost write
    expect(t, "disk vda is damaged: extents 0 to 2 ", "extent 6 ")


def test_hashes(t):
    point = make(t)
    hashes = point / "vda.sha256"
    size = hashes.stat().st_size
    for offset in (0, 63, size - 2):
        again(t, point)
        flip(hashes, offset)
        expect(t, f"disk vda: {hashes}", "damaged" if offset != size - 2 else "")
    again(t, point)
    os.truncate(hashes, size - 65)
    expect(t, f"{hashes} is damaged: it has not the {size} bytes")
    again(t, point)
    hashes.unlink()
    expect(t, f"{hashes} can't be opened: No such file")


def test_manifests(t):
    point = make(t)
    manifest = point / "manifest.json"
    text = manifest.read_text()
    for change, words in (
            (lambda m: m[:-10], "it is not JSON: line"),
            (lambda m: "", "it is not JSON"),
            (lambda m: m.replace('"vda.raw"', '"../vda.raw"'), "'disks[0].image' is '../vda.raw', not the name of a file"),
            (lambda m: m.replace('"vda.raw"', '"vdb.raw"'), "'disks[0]' and 'disks[1]' name the same file"),
            (lambda m: m.replace('"version": 2', '"version": 7'), "it has version 7; this fleece reads versions 1 to 2"),
            (lambda m: m.replace('"complete"', '"unfinished"'), "'state' is 'unfinished', not 'complete'"),
            (lambda m: m.replace(t.vm, "other"), f"'vm' is 'other', but the set is of VM '{t.vm}'"),
            (lambda m: m.replace('"size"', '"sise"', 1), "'disks[0].size' is missing"),
            (lambda m: "[" * 100000, "it is not JSON"),
            (lambda m: m + " " * (1 << 20), "at most 262144 are read")):
        again(t, point)
        manifest.write_text(change(text))
        said = expect(t, f"point {point.name} is damaged: {manifest}: ", words)
        assert said.stderr.count("\n") == 1, said.stderr
        listed = t.fleece("list", t.path("set"), status=1)
        assert words in listed.stderr and f"{point.name}     damaged" in listed.stdout, listed
        said = t.fleece("--json", "list", t.path("set"), status=1).stdout
        assert json.loads(said)["damaged"] is True, said
    again(t, point)
    manifest.unlink()
    expect(t, f"{manifest}: it can't be opened: No such file")
    # A folder that was renamed, to look like another day.
    again(t, point)
    point.rename(t.path("set") / "2020-01-01T00:00:00Z")
    expect(t, f"the field 'created' is '{point.name[:20]}', but the point is called '2020-01-01T00:00:00Z'")
    # A good point of the same set is not hidden by a bad one.
    again(t, point)
    forge(point, "2020-01-01T00:00:00Z")
    manifest.unlink()
    listed = t.fleece("list", t.path("set"), status=1).stdout
    assert "2020-01-01T00:00:00Z" in listed and "vda vdb" in listed, listed
    t.fleece("verify", f"{t.path('set')}@2020-01-01T00:00:00Z")


def test_every_byte_of_the_small_files(t):
    """Any byte of the JSON files may change, also into one that still looks right: it is found, and nothing crashes."""
    point = make(t)
    for file in (t.path("set") / "fleece.json", point / "manifest.json"):
        good = file.read_bytes()
        for offset in range(0, len(good), max(1, len(good) // 60)):
            byte = good[offset:offset + 1]
            for wrong in (b"\x00", b"0" if byte != b"0" else b"1", b"a" if byte != b"a" else b"b"):
                file.write_bytes(good[:offset] + wrong + good[offset + 1:])
                done = t.fleece("list", t.path("set"), status=None)
                assert done.returncode == 1 and done.stderr.startswith("fleece: "), (offset, wrong, done)
        file.write_bytes(good)
    t.fleece("verify", t.path("set"))


harness.main()
