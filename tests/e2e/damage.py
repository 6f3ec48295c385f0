#!/usr/bin/python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""Any byte of any file of a set may be wrong: verify finds it and names the file, and nothing is restored wrongly."""
import random
import shutil
import struct

from set_kit import MIB, Set, content_of, hour, some_blocks

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
    with open(image, "rb") as f:
        content = f.read()
    word = struct.Struct(">Q").unpack_from
    half = struct.Struct(">I").unpack_from
    cluster = 1 << half(content, 20)[0]
    l1_at, l1_entries = word(content, 40)[0], half(content, 36)[0]
    table_at, table_clusters = word(content, 48)[0], half(content, 56)[0]
    mask = 0x00fffffffffffe00
    l2 = [word(content, l1_at + 8 * i)[0] & mask for i in range(l1_entries)]
    blocks = [word(content, at)[0] for at in range(table_at, min(len(content), table_at + table_clusters * cluster), 8)]
    data = [word(content, at)[0] & mask for table in l2 if table
            for at in range(table, min(len(content), table + cluster), 8)]
    return {"header": [(0, 104)], "header padding": [(112, cluster - 112)], "L1": [(l1_at, 8 * l1_entries)],
            "L2": [(at, cluster) for at in l2 if at], "refcount table": [(table_at, 64)],
            "refcounts": [(at, cluster) for at in blocks if at], "data": [(at, cluster) for at in data if at]}, len(content)


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
    missed = []
    for name, places in parts.items():
        for number in range(13 if name == "header" else per_class):
            start, size = rng.choice(places)
            offset = start + (8 * number + rng.randrange(8) if name == "header" else rng.randrange(size))
            bit = rng.randrange(8)
            if offset >= length:
                continue
            flip(image, offset, bit)
            done = t.fleece("verify", made.path, status=None)
            where = f"{name}, byte {offset}, bit {bit}"
            if done.returncode == 0:  # nobody reads this bit
                missed.append(where)
                assert restores_right(t, made, hour(2)), where
            else:
                assert done.returncode == 1 and str(image) in done.stderr and point in done.stderr, (where, done)
                assert all(len(line) < 700 and line.startswith("fleece: ") for line in done.stderr.splitlines()), done
                if number % 5 == 0:
                    restores_right(t, made, hour(2))
            flip(image, offset, bit)
    # How many entries the L1 table has beyond those that are needed: nothing is wrong with more of them.
    assert all(m.startswith(("header, byte 38", "header, byte 39")) for m in missed), missed
    t.fleece("verify", made.path)


def test_an_image_of_ours(t):
    flips_are_found(t, make(t), hour(1), 4)


def test_an_overlay(t):
    flips_are_found(t, make(t), hour(2), 4)


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


harness.main()
