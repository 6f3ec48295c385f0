#!/usr/bin/python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""The qcow2 driver, with qemu-img as the judge: images of every shape that qemu-img makes are read and written, and those
that we make are checked, compared, mapped and converted by it. tests/tools/imagetool.c is the driver as a program."""
import json
import random
import struct

import harness

KIB, MIB = 1024, 1024 * 1024
TOOL = harness.BUILD / "tests/tools/imagetool"


def pattern(start, length, seed):
    """As imagetool's: each sector is its number and the seed, over and over."""
    first, last = start // 512, (start + length - 1) // 512
    text = b"".join(struct.pack("<QQ", sector, seed) * 32 for sector in range(first, last + 1))
    return text[start - first * 512:][:length]


class Guest:
    """Seeded requests on an image, and what it must hold afterwards."""

    def __init__(self, t, path, size, cluster, seed, content=b"", discards=True):
        self.t, self.path, self.size, self.cluster = t, path, size, cluster
        self.chance, self.seed, self.discards = random.Random(seed), seed * 1000, discards
        self.model = bytearray(content[:size].ljust(size, b"\0"))

    def command(self, start, length):
        kind = self.chance.choice("wwwwzd" if self.discards else "wwwwz")
        if kind == "w":
            self.seed += 1
            self.model[start:start + length] = pattern(start, length, self.seed)
            return f"w {start} {length} {self.seed}"
        end = start + length
        if kind == "d":  # whole clusters only; the last one ends with the disk
            start = -(-start // self.cluster) * self.cluster
            end = end if end == self.size else end // self.cluster * self.cluster
        if start < end:
            self.model[start:end] = bytes(end - start)
            return f"{kind} {start} {end - start}"
        return None

    def batch(self, count):
        """Requests side by side, none over another."""
        lines, at = [], 0
        for _ in range(count):
            at += self.chance.choice([0, 0, 512, 4 * KIB, self.chance.randrange(2 * self.size // count)])
            unit = self.chance.choice([1, 512, 4 * KIB, 4 * KIB, self.cluster])
            start = -(-at // unit) * unit
            length = self.chance.choice([unit, 4 * KIB, 64 * KIB, self.chance.randrange(1, 3 * self.size // count + 2)])
            length = min(-(-length // unit) * unit, self.size - start, MIB)
            if length <= 0:
                break
            lines.append(self.command(start, length))
            at = start + length
        lines = [line for line in lines if line]
        self.chance.shuffle(lines)
        return lines + ["f"]

    def run(self, batches, count, *arguments):
        lines = [line for _ in range(batches) for line in self.batch(count)]
        self.t.run(TOOL, "run", self.path, *arguments, input="\n".join(lines) + "\n", cwd=self.t.dir)

    def check(self):
        """Our reader, qemu-img's, and qemu-img's check all agree with the model."""
        raw, model = self.t.path("out.raw"), self.t.path("model.raw")
        model.write_bytes(self.model)
        self.t.run("qemu-img", "check", "-f", "qcow2", self.path, cwd=self.t.dir)
        self.t.run(TOOL, "read", self.path, raw, cwd=self.t.dir)
        assert raw.read_bytes() == self.model, f"{self.path.name}: our reader sees something else"
        self.t.run("qemu-img", "compare", "-f", "qcow2", "-F", "raw", self.path, model, cwd=self.t.dir)


def create(t, name, size, *options, backing=None):
    path = t.path(name)
    words = ["-o", ",".join(options)] if options else []
    words += ["-b", backing.name, "-F", "qcow2" if backing.suffix == ".qcow2" else "raw"] if backing else []
    t.run("qemu-img", "create", "-q", "-f", "qcow2", *words, path, *([] if size is None else [size]), cwd=t.dir)
    return path


SHAPES = [  # cluster size, other options
    (512, []), (4 * KIB, []), (64 * KIB, []), (2 * MIB, []),
    (64 * KIB, ["compat=0.10"]), (4 * KIB, ["refcount_bits=1"]), (64 * KIB, ["refcount_bits=2"]),
    (64 * KIB, ["refcount_bits=8"]), (512, ["refcount_bits=32"]), (64 * KIB, ["refcount_bits=64"]),
    (16 * KIB, ["extended_l2=on"]), (128 * KIB, ["extended_l2=on"]), (2 * MIB, ["extended_l2=on"]),
    (64 * KIB, ["lazy_refcounts=on"]), (64 * KIB, ["preallocation=metadata"]), (4 * KIB, ["preallocation=falloc"]),
    (64 * KIB, ["extended_l2=on", "preallocation=metadata"]),
]


def test_images_of_every_shape(t):
    harness.need("qemu-img")
    for number, (cluster, options) in enumerate(SHAPES):
        size = 5 * MIB + 7 * 512 if cluster > 512 else 2 * MIB + 512
        path = create(t, f"shape{number}.qcow2", size, f"cluster_size={cluster}", *options)
        guest = Guest(t, path, size, cluster, number)
        for _ in range(1 + (number % 3 == 0)):
            guest.run(2, 30)
            guest.check()
        path.unlink()


def test_overlays_of_every_shape(t):
    harness.need("qemu-img")
    size, below = 4 * MIB + 512, 3 * MIB + 5 * 512  # the overlay is larger than what is behind it
    base = t.disk("base.raw", below, fill=7)
    for number, (cluster, options) in enumerate(SHAPES):
        prealloc = any(option.startswith("preallocation") for option in options)
        if prealloc and "extended_l2=on" not in options:
            continue  # qemu-img doesn't make those
        path = create(t, f"over{number}.qcow2", size, f"cluster_size={cluster}", *options, backing=base)
        guest = Guest(t, path, size, cluster, 100 + number, base.read_bytes(), "compat=0.10" not in options)
        guest.run(3, 30)
        guest.check()
        path.unlink()


def test_compressed_clusters(t):
    harness.need("qemu-img")
    size = 4 * MIB + 512
    guest = Guest(t, t.path("text.raw"), size, 4 * KIB, 3)
    for _ in range(2):
        guest.batch(200)
    guest.path.write_bytes(guest.model)
    for number, (cluster, kind, *more) in enumerate([
            (4 * KIB, "zlib"), (64 * KIB, "zlib"), (64 * KIB, "zstd"), (2 * MIB, "zstd"), (512, "zlib"),
            (64 * KIB, "zstd", "extended_l2=on")]):
        path = t.path(f"packed{number}.qcow2")
        t.run("qemu-img", "convert", "-c", "-O", "qcow2", "-f", "raw", "-o",
              ",".join([f"cluster_size={cluster}", f"compression_type={kind}", *more]), guest.path, path)
        packed = Guest(t, path, size, cluster, 200 + number, guest.model)
        packed.check()
        packed.run(3, 20)  # over compressed clusters, which are unpacked for that
        packed.check()


def make(t, name, size, *arguments):
    t.run(TOOL, "create", t.path(name), size, *arguments)
    return t.path(name)


def test_our_images(t):
    harness.need("qemu-img")
    size = 6 * MIB + 3 * 512
    guest = Guest(t, make(t, "full.qcow2", size), size, 64 * KIB, 1)
    guest.check()
    for _ in range(3):
        guest.run(3, 40)
        guest.check()
    info = json.loads(t.run("qemu-img", "info", "--output=json", guest.path).stdout)
    assert info["cluster-size"] == 64 * KIB and info["virtual-size"] == size, info
    # There and back again, through qemu-img.
    t.run("qemu-img", "convert", "-O", "qcow2", "-o", "cluster_size=16384", guest.path, t.path("theirs.qcow2"))
    guest.path = t.path("theirs.qcow2")
    guest.check()


def test_our_compressed_images(t):
    harness.need("qemu-img")
    size = 8 * MIB + 512
    guest = Guest(t, make(t, "packed.qcow2", size, "zstd"), size, 64 * KIB, 2)
    for _ in range(4):
        guest.run(2, 25, "zstd")
        guest.check()
    check = json.loads(t.run("qemu-img", "check", "--output=json", guest.path).stdout)
    assert check["compressed-clusters"] > 0, check
    # What compresses badly stays as it is, among what compresses well.
    noise = t.disk("noise.raw", size, fill=5)
    with open(noise, "r+b") as file:
        for start in range(0, size - 64 * KIB, 192 * KIB):
            file.seek(start)
            file.write(b"fleece" * (64 * KIB // 6))
    full = make(t, "mixed.qcow2", size, "zstd")
    t.run(TOOL, "load", full, noise, "zstd")
    mixed = Guest(t, full, size, 64 * KIB, 3, noise.read_bytes())
    mixed.check()
    check = json.loads(t.run("qemu-img", "check", "--output=json", full).stdout)
    assert 0 < check["compressed-clusters"] < check["allocated-clusters"], check


def test_our_chain(t):
    """A chain of overlays; the disk grows on the way. qemu-img reads each point of it."""
    harness.need("qemu-img")
    size, content, below = 3 * MIB, b"", None
    for number in range(6):
        arguments = [below.name, "qcow2"] if below else []
        path = make(t, f"point{number}.qcow2", size, *arguments)
        guest = Guest(t, path, size, 4 * KIB if below else 64 * KIB, 300 + number, content)
        guest.check()
        guest.run(2, 20)
        guest.check()
        below, content, size = path, bytes(guest.model), size + 200 * KIB
    t.run("qemu-img", "convert", "-O", "raw", below, t.path("flat.raw"), cwd=t.dir)
    assert t.path("flat.raw").read_bytes() == content


def extents(t, path, *arguments):
    lines = t.run(TOOL, "map", path, *arguments, cwd=t.dir).stdout.split("\n")[:-1]
    return [tuple(int(word) for word in line.split()) for line in lines]


def test_block_status(t):
    harness.need("qemu-img")
    make(t, "below.qcow2", 2 * MIB)
    make(t, "top.qcow2", 4 * MIB, "below.qcow2", "qcow2")
    t.run(TOOL, "run", t.path("below.qcow2"), input="w 0 1048576 1\n", cwd=t.dir)
    t.run(TOOL, "run", t.path("top.qcow2"), input="w 65536 4096 2\nz 131072 8192\nz 3145728 4096\n", cwd=t.dir)
    data, hole, backing = 0, 3, 256
    assert extents(t, t.path("top.qcow2"), "top") == [
        (0, 65536, backing), (65536, 4096, data), (69632, 61440, backing), (131072, 8192, hole),
        (139264, 3145728 - 139264, backing), (3145728, 4096, hole), (3149824, 4 * MIB - 3149824, backing)]
    assert extents(t, t.path("top.qcow2")) == [
        (0, 131072, data), (131072, 8192, hole), (139264, MIB - 139264, data), (MIB, 3 * MIB, hole)]
    theirs = json.loads(t.run("qemu-img", "map", "--output=json", t.path("top.qcow2"), cwd=t.dir).stdout)
    ours = [(e["start"], e["length"], e["depth"]) for e in theirs if e["data"]]
    assert ours == [(0, 65536, 1), (65536, 4096, 0), (69632, 61440, 1), (139264, MIB - 139264, 1)], ours


def refused(t, path, sentence, verb="map"):
    ended = t.run(TOOL, verb, path, status=1, cwd=t.dir, input="")
    assert sentence in ended.stderr, ended.stderr


def patch(path, at, text):
    with open(path, "r+b") as file:
        file.seek(at)
        file.write(text)


def test_what_is_refused(t):
    harness.need("qemu-img")
    for what, at, text, sentence in [
            ("magic", 0, b"QFX\xfb", "is no qcow2 image"), ("version", 4, b"\0\0\0\4", "version 4"),
            ("clusters", 20, b"\0\0\0\x40", "2^64 bytes"), ("encrypted", 32, b"\0\0\0\1", "encrypted"),
            ("dirty", 72, bytes(7) + b"\1", "dirty"), ("corrupt", 72, bytes(7) + b"\2", "corrupt"),
            ("elsewhere", 72, bytes(7) + b"\4", "in another file"), ("unknown", 72, b"\0\0\1\0\0\0\0\0", "\"bit 40\""),
            ("tables", 40, bytes(5) + b"\1\0\0", "overlap"), ("far", 40, bytes(3) + b"\1" + bytes(4), "beyond the end"),
            ("crooked", 48, bytes(6) + b"\1\1", "not a cluster")]:
        path = create(t, f"{what}.qcow2", MIB)
        patch(path, at, text)
        refused(t, path, sentence)
    path = create(t, "snapshots.qcow2", MIB)
    t.run("qemu-img", "snapshot", "-c", "one", path)
    extents(t, path)
    refused(t, path, "snapshots inside", "run")
    # A feature is called what the image calls it.
    path = create(t, "named.qcow2", MIB)
    text = path.read_bytes()[:65536]
    table = text.index(struct.pack(">I", 0x6803f857)) + 8
    patch(path, table, b"\0\x2aquantum clusters".ljust(48, b"\0"))
    patch(path, 72, struct.pack(">Q", 1 << 42))
    refused(t, path, "\"quantum clusters\"")


def test_names_of_backing_files(t):
    harness.need("qemu-img")
    base = create(t, "base.qcow2", MIB)
    outside = t.dir.parent / f"{t.dir.name}-outside.raw"
    for name, kind, sentence in [
            (str(base), "qcow2", "not named relative"), (f"../{outside.name}", "raw", "outside of the folder"),
            ("json:{}", "raw", "not named relative"), ("nothing.qcow2", "qcow2", "No such file"), (".", "raw", ""),
            ("base.qcow2", "vmdk", "qcow2 and raw are right"), ("self.qcow2", "qcow2", "behind itself")]:
        path = t.path("self.qcow2")
        path.unlink(missing_ok=True)
        outside.write_bytes(bytes(512))
        make(t, "self.qcow2", MIB, name, kind)
        refused(t, path, sentence)
    outside.unlink()
    path = create(t, "silent.qcow2", None, backing=base)
    patch(path, path.read_bytes()[:4096].index(struct.pack(">I", 0xe2792aca)), struct.pack(">I", 0x12345678))
    refused(t, path, "the format of its backing file is \"\"")


def test_autoclear_features(t):
    """Somebody's bitmaps are marked as stale before the first write."""
    harness.need("qemu-img")
    path = create(t, "bitmaps.qcow2", MIB)
    t.run("qemu-img", "bitmap", "--add", path, "b0")
    assert path.read_bytes()[88:96] == bytes(7) + b"\1"
    extents(t, path)
    assert path.read_bytes()[88:96] == bytes(7) + b"\1"
    t.run(TOOL, "run", path, input="w 0 4096 1\n")
    assert path.read_bytes()[88:96] == bytes(8)
    assert t.run("qemu-img", "check", path, status=None).returncode in (0, 3)  # its bitmap's clusters may count as leaks


harness.main()
