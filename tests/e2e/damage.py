#!/usr/bin/python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""Any byte of any file of a set may be wrong: verify finds it and names the file, and nothing is restored wrongly."""
import json
import random
import shutil
import struct

from set_kit import MIB, Set, content_of, hour, sealed, some_blocks, tables_of

import harness

SIZE = 2 * MIB + 65536


def make(t):
    """Two points: a full image that fleece has written (by pruning), and an overlay of it that is qemu-img's."""
    made = Set(t, t.path("set"))
    made.add(hour(0), {"vda": content_of(3, SIZE)})
    made.add(hour(1), {"vda": (some_blocks(1, SIZE, 30), SIZE)}, parent=hour(0))
    made.add(hour(2), {"vda": (some_blocks(2, SIZE, 30), SIZE)}, parent=hour(1))
    t.fleece("prune", made.path, "--keep-last", "2")
    t.fleece("verify", made.path)
    return made


def tables(image):
    """The parts of a qcow2 image: {name: [(offset, length)...]}."""
    content = image.read_bytes()
    places, cluster = tables_of(content)
    word = struct.Struct(">Q").unpack_from
    used = {at for part in places.values() for at in part}
    data = [word(content, at)[0] & 0x00fffffffffffe00 for table in places["L2"]
            for at in range(table, min(len(content), table + cluster), 8)]
    data = [at for at in data if at]
    parts = {name: [(at, cluster) for at in part] for name, part in places.items()}
    assert used.isdisjoint(data) and used | set(data) >= set(range(0, len(content), cluster)), "there are other clusters"
    return {**parts, "header": [(0, 104)], "header padding": [(112, cluster - 112)], "data": [(at, cluster) for at in data],
            "refcount table": [(at, 64) for at in places["refcount table"][:1]],
            "refcount table padding": [(at + 8, cluster - 8) for at in places["refcount table"]]}, len(content)


def flip(path, offset, bit):
    with open(path, "r+b") as f:
        f.seek(offset)
        byte = f.read(1)[0]
        f.seek(offset)
        f.write(bytes([byte ^ 1 << bit]))


def restores_right(t, made, point):
    t.path("out").unlink(missing_ok=True)
    done = t.fleece("restore", f"{made.path}@{point}", "--disk", "vda", "--to", t.path("out"), status=None)
    assert done.returncode in (0, 1), done
    assert t.path("out").exists() == (done.returncode == 0), done
    if done.returncode == 0:
        assert t.path("out").read_bytes() == made.model[point]["vda"], "restored wrongly, and nothing was said"
    return done.returncode == 0


def flips_are_found(t, made, point, per_class):
    rng = random.Random(point)
    image = made.image(point)
    parts, length = tables(image)
    assert all(parts.values()), parts
    for name, places in parts.items():
        for number in range(13 if name == "header" else per_class):
            start, size = rng.choice(places)
            offset = start + (8 * number + rng.randrange(8) if name == "header" else rng.randrange(size))
            bit = rng.randrange(8)
            if offset >= length:
                continue
            flip(image, offset, bit)
            # Tables are looked at as a whole, however small the sample is.
            sample = () if name == "data" or number % 2 else ("--sample", "0.001")
            done = t.fleece("verify", made.path, *sample, status=1)
            assert str(image) in done.stderr and point in done.stderr, (name, offset, bit, done)
            assert all(len(line) < 700 and line.startswith("fleece: ") for line in done.stderr.splitlines()), done
            if number % 5 == 0:
                restores_right(t, made, hour(2))
            flip(image, offset, bit)
    t.fleece("verify", made.path)


def test_an_image_of_ours(t):
    flips_are_found(t, make(t), hour(1), 3)


def test_an_overlay(t):
    flips_are_found(t, make(t), hour(2), 3)


def test_the_hashes_of_an_incremental(t):
    made = make(t)
    rng = random.Random(1)
    for point in (hour(1), hour(2)):
        file = made.path / point / "vda.sha256"
        for _ in range(9):
            offset, bit = rng.randrange(file.stat().st_size), rng.randrange(8)
            flip(file, offset, bit)
            said = t.fleece("verify", made.path, status=1).stderr
            assert str(file) in said and point in said, said
            flip(file, offset, bit)
    t.fleece("verify", made.path)


def test_cut_and_swapped_files(t):
    made = make(t)
    keep = t.path("keep")
    shutil.copytree(made.path, keep)
    image = made.image(hour(2))
    size = image.stat().st_size
    rng = random.Random(2)
    for length in [0, 1, 71, 72, 104, 511, 4096, 8192] + [rng.randrange(size) for _ in range(6)]:
        with open(image, "r+b") as f:
            f.truncate(length)
        said = t.fleece("verify", made.path, status=1).stderr
        assert str(image) in said, (length, said)
        restores_right(t, made, hour(2))
        shutil.copy(keep / hour(2) / "vda.qcow2", image)
    for other in (made.image(hour(1)), t.disk("zero", size), t.disk("random", size, fill=4)):
        shutil.copy(other, image)
        said = t.fleece("verify", made.path, status=1).stderr
        assert str(image) in said, said
        assert not restores_right(t, made, hour(2))
    shutil.copy(keep / hour(2) / "vda.qcow2", image)
    shutil.copy(keep / hour(1) / "vda.sha256", image.parent / "vda.sha256")
    assert "vda.sha256" in t.fleece("verify", made.path, status=1).stderr


def test_what_no_hash_of_an_extent_covers(t):
    """Bytes behind the end of the file, of the disk, of what the tables need; and what may be there."""
    made = make(t)
    made.add(hour(3), {"vda": (some_blocks(3, SIZE + 100, 30) | {(SIZE + 100) // 4096: bytes([7]) * 4096}, SIZE + 100)},
             parent=hour(2))
    t.fleece("verify", made.path)
    for point in (hour(1), hour(3)):
        image = made.image(point)
        whole = image.read_bytes()
        for wrong in (whole + b"x", whole + bytes(65536), whole[:-1], whole[:-4096]):
            image.write_bytes(wrong)
            said = t.fleece("verify", made.path, "--sample", "0.001", status=1).stderr
            assert f"the file {image} has {len(wrong)} bytes, not {len(whole)}" in said and point in said, said
            if len(wrong) > len(whole):
                assert restores_right(t, made, hour(3)), "more bytes than there should be keep nobody from restoring"
        image.write_bytes(whole)
    # The last sector of a disk that ends within it: readers of the image see it.
    parts, _ = tables(image)
    last = whole.index(bytes([7]) * 100)
    assert any(at <= last < at + length for at, length in parts["data"])
    flip(image, last + 100, 3)
    said = t.fleece("verify", made.path, status=1).stderr
    assert f"the file {image} is not zero behind the end of the disk, at byte {SIZE + 100}" in said, said
    flip(image, last + 100, 3)
    flip(image, last + 600, 3)  # behind the last sector there is no disk, in any reader's eyes
    t.fleece("verify", made.path)
    t.run("qemu-img", "convert", "-f", "qcow2", "-O", "raw", image, t.path("by-qemu"))
    assert t.path("by-qemu").read_bytes()[:SIZE + 100] == made.model[hour(3)]["vda"]
    flip(image, last + 600, 3)


def test_older_manifests(t):
    """Without length and hash of the tables everything is as it was."""
    made = make(t)
    for point in (hour(1), hour(2)):
        manifest = json.loads((made.path / point / "manifest.json").read_text())
        for disk in manifest["disks"]:
            del disk["image-length"], disk["tables-sha256"]
        del manifest["sha256"]
        (made.path / point / "manifest.json").write_text(sealed(manifest))
    t.fleece("verify", made.path)
    parts, _ = tables(made.image(hour(2)))
    flip(made.image(hour(2)), parts["refcounts"][0][0] + 4095, 0)
    assert "the count of 1 cluster" in t.fleece("verify", made.path, status=1).stderr


harness.main()
