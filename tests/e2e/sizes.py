#!/usr/bin/python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""Sizes: every granularity against sources, caches and targets with other block sizes, disks of any exact size, sparse and
read-only sources, loop devices. The snapshot is right, and what a client releases comes back."""
import random

import nbd

import harness
from loop_kit import loop_device
from slow_kit import KIB, MIB, Guest, content, target

GRANULARITIES = ["4K", "16K", "64K", "256K", "1M", "4M"]
SIZE = 12 * MIB


def size_of(text):
    return int(text[:-1]) * {"K": KIB, "M": MIB}[text[-1]]


def scribble(guest, count):
    """Writes of all lengths and places; some of them discards and zeroes."""
    size = len(guest.model)
    for _ in range(count):
        length = guest.chance.choice([1, 512, 4 * KIB, 4 * KIB, 64 * KIB, guest.chance.randint(1, 200 * KIB)])
        at = guest.chance.randrange(size)
        length = min(length, size - at)
        kind = guest.chance.random()
        if kind < 0.8:
            guest.write(at, length)
        else:
            guest.handle.zero(length, at, nbd.CMD_FLAG_NO_HOLE if kind < 0.9 else 0)
            guest.model[at:at + length] = bytes(length)
    guest.write(size - 1, 1)


def release_all(d, size, piece):
    """As a client does that has stored it: piece by piece."""
    handle = nbd.NBD()
    handle.connect_uri(d.uri("vda@s"))
    for at in range(0, size, piece):
        handle.trim(min(piece, size - at), at)
    handle.shutdown()


def scribble_around_a_cut(d, image, seed):
    """The guest, and what the disk was at the cut, which is what the snapshot shows."""
    guest = Guest(d, image, seed=seed)
    scribble(guest, 20)
    was = bytes(guest.model)
    d.fleece("snapshot", "create", "s")
    scribble(guest, 60)
    assert content(d.uri("vda@s"), 700 * KIB + 1) == was, "the snapshot is wrong"
    return guest, was


def check(t, where, size, granularity, *, image, cache, target_block):
    """One cell of the matrix."""
    d = t.daemon({"vda": f"{where},granularity={granularity}"}, "--fleece", cache)
    guest, was = scribble_around_a_cut(d, image, granularity)
    info = nbd.NBD()
    info.connect_uri(d.uri("vda@s"))
    assert info.get_size() == size
    assert info.get_block_size(nbd.SIZE_PREFERRED) == size_of(granularity)  # P16
    info.shutdown()
    # A target that takes whole blocks of its own only; what the tail lacks of one is the target's to fill.
    full = -(-size // target_block) * target_block
    server, uri = target(t, f"target-{len(t.daemons)}", full, "blocksize-policy", blocksize_minimum=target_block,
                         blocksize_preferred=target_block, blocksize_maximum="32M", blocksize_error_policy="error")
    if full == size:
        t.run("nbdcopy", f"--request-size={max(target_block, 64 * KIB)}", d.uri("vda@s"), uri)
        assert content(uri) == was, "the copy is wrong"
    server.kill()
    server.wait()
    release_all(d, size, max(target_block, size_of(granularity)))
    harness.wait_for("the cache is empty", lambda: d.status()["disks"][0]["cache-blocks"] == 0)
    assert d.status()["snapshots"][0]["state"] == "live"
    scribble(guest, 10)
    assert d.status()["disks"][0]["cache-blocks"] == 0, "released blocks are preserved"
    d.fleece("snapshot", "delete", "s")
    guest.end()
    d.stop()
    assert image.read_bytes()[:size] == guest.model


def fill_sparsely(path, seed):
    chance = random.Random(seed)
    with open(path, "r+b") as f:
        for at in range(0, SIZE, 512 * KIB):
            if chance.random() < 0.7:
                f.seek(at + chance.randrange(100 * KIB))
                f.write(chance.randbytes(300 * KIB))


def test_granularities_and_files(t):
    """P15, P9: sparse files of odd sizes; a target of 512, 4096 or 65536."""
    harness.need("nbdkit", "nbdcopy")
    for i, granularity in enumerate(GRANULARITIES):
        size = SIZE + [512, 65536, 4096 * 3, 512 * 77, 0, 1][i]
        image = t.disk(f"{granularity}.raw", size)
        fill_sparsely(image, granularity)
        tiers = "ram=64M" if i % 2 else f"ram={'4M' if size_of(granularity) < MIB else '16M'},max=64M,dir={t.dir}"
        check(t, image, size, granularity, image=image, cache=tiers, target_block=[512, 4096, 65536][i % 3])


def test_granularities_and_devices(t):
    """P10, P15: loop devices with sectors of 512 and 4096 bytes."""
    harness.need("nbdkit", "nbdcopy", "losetup")
    for i, granularity in enumerate(GRANULARITIES):
        image = t.disk(f"{granularity}.raw", SIZE + 4096, fill=i)
        with loop_device(t, image, f"--sector-size={4096 if i % 2 else 512}") as device:
            check(t, device, SIZE + 4096, granularity, image=image, target_block=[4096, 512][i % 2],
                  cache=f"ram={'4M' if size_of(granularity) < MIB else '16M'},max=64M,dir={t.dir}")


def qcow2(t, name, options, source=None, size=SIZE):
    """An image with those options, of the source's content, or empty."""
    path = t.path(name)
    if source:
        t.run("qemu-img", "convert", "-f", "raw", "-O", "qcow2", "-o", options, source, path)
    else:
        t.run("qemu-img", "create", "-q", "-f", "qcow2", "-o", options, path, size)
    return path


def judge(t, path, model):
    t.run("qemu-img", "check", "-q", path)
    t.run("qemu-img", "compare", "-q", "-f", "qcow2", "-F", "raw", path, model)


# Clusters from the smallest to the largest of the format, subclusters, narrow and wide counts.
QCOW2 = ["cluster_size=512", "cluster_size=4K,refcount_bits=1", "cluster_size=64K,extended_l2=on", "cluster_size=2M",
         "cluster_size=64K", "cluster_size=16K,extended_l2=on,refcount_bits=64"]


def test_granularities_and_qcow2_clusters(t):
    """P15: each granularity over qcow2 sources of other clusters, copied to qcow2 targets of others again."""
    harness.need("qemu-img", "nbdcopy")
    for i, granularity in enumerate(GRANULARITIES):
        image = t.disk(f"{granularity}.raw", SIZE)
        fill_sparsely(image, granularity)
        source = qcow2(t, f"{granularity}-source.qcow2", QCOW2[i], image)
        target_image = qcow2(t, f"{granularity}-target.qcow2", QCOW2[(i + 2 + i // 3) % len(QCOW2)])
        tiers = f"ram={'4M' if size_of(granularity) < MIB else '16M'},max=64M,dir={t.dir}" if i % 2 else "ram=64M"
        d = t.daemon({"vda": f"{source},format=qcow2,granularity={granularity}", "vdt": f"{target_image},format=qcow2"},
                     "--fleece", tiers)
        guest, was = scribble_around_a_cut(d, image, granularity)
        t.run("nbdcopy", d.uri("vda@s"), d.uri("vdt"))
        release_all(d, SIZE, max(64 * KIB, size_of(granularity)))
        harness.wait_for("the cache is empty", lambda: d.status()["disks"][0]["cache-blocks"] == 0)
        scribble(guest, 10)
        assert d.status()["disks"][0]["cache-blocks"] == 0, "released blocks are preserved"
        d.fleece("snapshot", "delete", "s")
        guest.end()
        d.stop()
        for path, right in ((source, guest.model), (target_image, was)):
            t.path("model").write_bytes(right)
            judge(t, path, t.path("model"))


def test_tiny_disks(t):
    """P9: sizes around a sector, a block and a page."""
    for size in (1, 511, 512, 513, 4095, 4096, 4097, 65537):
        image = t.disk(f"{size}.raw", size, fill=size)
        d = t.daemon({"vda": image}, "--fleece", f"ram=4M,max=16M,dir={t.dir}")
        guest = Guest(d, image)
        was = bytes(guest.model)
        d.fleece("snapshot", "create", "s")
        guest.write(0, size)
        guest.write(size - 1, 1)
        assert content(d.uri("vda@s")) == was, size
        guest.end()
        d.stop()
        assert image.read_bytes() == guest.model, size


def test_read_only_source(t):
    """P14: a snapshot of a disk that nobody may write to, an unwritable file among them, beside one that is written to."""
    still, moving = t.disk("still.raw", 3 * MIB + 512, fill=1), t.disk("moving.raw", 3 * MIB, fill=2)
    still.chmod(0o444)
    d = t.daemon({"vda": moving, "vdb": f"{still},read-only=on"}, "--fleece", "ram=16M")
    guest = Guest(d, moving)
    was = bytes(guest.model)
    d.fleece("snapshot", "create", "s")
    guest.write(MIB, MIB)
    assert content(d.uri("vda@s")) == was
    assert content(d.uri("vdb@s")) == still.read_bytes()
    d.fleece("backup", t.path("set"))
    t.fleece("verify", t.path("set"))
    guest.end()
    d.stop()


def test_sparse_sources_stay_sparse(t):
    """P12: holes of the disk at the cut are holes of the snapshot, and preserving them takes marks, not data."""
    harness.need("nbdcopy", "nbdinfo")
    image = t.disk("a.raw", 64 * MIB)
    with open(image, "r+b") as f:
        f.seek(16 * MIB)
        f.write(harness.pattern(4 * MIB))
    d = t.daemon({"vda": image}, "--fleece", "ram=16M")
    guest = Guest(d, image)
    was = bytes(guest.model)
    d.fleece("snapshot", "create", "s")
    guest.write(40 * MIB, 8 * MIB)             # holes become data: nothing but marks is kept
    guest.handle.zero(4 * MIB, 16 * MIB)       # data becomes a hole
    guest.model[16 * MIB:20 * MIB] = bytes(4 * MIB)
    copy = t.path("copy.raw")
    t.run("nbdcopy", d.uri("vda@s"), copy)
    assert copy.read_bytes() == was
    assert harness.data_of(copy) <= 5 * MIB, "holes were copied as data"
    status = d.status()
    assert status["cache"]["bytes"] <= 6 * MIB, status["cache"]
    guest.end()
    d.stop()
    assert image.read_bytes() == guest.model


harness.main()
