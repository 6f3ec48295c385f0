#!/usr/bin/python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""Disks in qcow2 images grow while they are served; qemu-img is the judge of the images."""
import json
import random
import threading
import time

import harness
from tracking_kit import nbd_client, refused

MIB = 1 << 20


def create(t, name, size, *options, backing=None):
    base = ("-b", backing, "-F", "raw") if backing else ()
    t.run("qemu-img", "create", "-q", "-f", "qcow2", *base, *(("-o", ",".join(options)) if options else ()), t.path(name),
          str(size))
    return t.path(name)


def judge(t, image, size, killed=False):
    """No error, and no leak but of a daemon that was killed."""
    for _ in range(300):
        done = t.run("qemu-img", "check", "-f", "qcow2", image, status=None)
        if not killed or "lock" not in done.stderr:  # until what the kernel has of it has landed
            break
        time.sleep(0.1)
    assert done.returncode == 0 or (killed and done.returncode == 3), done
    info = json.loads(t.run("qemu-img", "info", "--output=json", image).stdout)
    assert info["virtual-size"] == size, info


def check_backup(t, d, image, where):
    """One point more; what is restored from it is what the disk's image holds."""
    line = json.loads(d.fleece("--json", "backup", where).stdout.splitlines()[-1])
    t.fleece("restore", where, "--disk", "vda", "--to", t.path("restored.raw"), "--force")
    t.run("qemu-img", "compare", "-U", "-f", "qcow2", "-F", "raw", image, t.path("restored.raw"))
    return line["disks"][0]["kind"]


def size_of(d):
    return d.status()["disks"][0]["size"]


def grow(t, d, image, sizes):
    """Written before and after, over each old end and at each new one; what was added is zero."""
    where, model = t.path("set"), bytearray(size_of(d))
    h = nbd_client(d.uri("vda"))
    model[:] = h.pread(len(model), 0)
    check_backup(t, d, image, where)
    d.fleece("snapshot", "create", "old")
    was = bytes(model)
    for number, size in enumerate(sizes):
        old = len(model)
        h.pwrite(b"o" * 700, old - 700)
        model[old - 700:] = b"o" * 700
        d.fleece("resize", "vda", str(size))
        assert size_of(d) == size
        h.shutdown()
        h = nbd_client(d.uri("vda"))
        assert h.get_size() == size
        model.extend(bytes(size - old))
        assert h.pread(min(size - old, 8 * MIB), old) == bytes(min(size - old, 8 * MIB)), f"{size}: old data has appeared"
        for at in old - 300, size - 5000:
            length = min(5000, size - at)
            h.pwrite(bytes([number + 1]) * length, at)
            model[at:at + length] = bytes([number + 1]) * length
        kind = check_backup(t, d, image, where)
        assert kind == "incremental", kind
        assert t.path("restored.raw").read_bytes() == model
    assert nbd_client(d.uri("vda@old")).pread(len(was), 0) == was
    h.shutdown()
    d.fleece("snapshot", "delete", "old")


def grow_image(t, image, sizes):
    d = t.daemon({"vda": f"{image},format=qcow2"})
    grow(t, d, image, sizes)
    d.stop()
    judge(t, image, sizes[-1])
    t.run("qemu-img", "compare", "-f", "qcow2", "-F", "raw", image, t.path("restored.raw"))


def test_an_image_grows(t):
    """Clusters of 4 KiB: an entry of the L1 table maps 2 MiB."""
    harness.need("qemu-img")
    grow_image(t, create(t, "a.qcow2", 3 * MIB, "cluster_size=4k"), (3 * MIB + 512, 7 * MIB, 11 * MIB + 1024))


def test_an_old_image_grows(t):
    """Of version 2, over a longer base: what was behind the end is not seen, though version 2 has no zero clusters."""
    harness.need("qemu-img")
    base = t.disk("base.raw", 5 * MIB + 3000, fill=4)
    image = create(t, "a.qcow2", 3 * MIB + 512, "cluster_size=4k,compat=0.10", backing=base)
    grow_image(t, image, (4 * MIB, 9 * MIB))


def test_an_overlay_grows(t):
    """Subclusters, over a longer base."""
    harness.need("qemu-img")
    base = t.disk("base.raw", 5 * MIB + 3000, fill=4)
    image = create(t, "a.qcow2", 3 * MIB + 512, "extended_l2=on,cluster_size=16k", backing=base)
    grow_image(t, image, (4 * MIB, 9 * MIB))


def test_old_data_in_the_last_subcluster(t):
    """Its zero bit hides what the cluster has there, until the guest writes to it; which it does while the disk grows."""
    harness.need("qemu-img", "qemu-io")
    unit, size = 64 << 10, 4 * MIB - (64 << 10) + 512  # subclusters of 64 KiB, of which the last one begins
    image = create(t, "a.qcow2", 4 * MIB, "extended_l2=on,cluster_size=2M")
    t.run("qemu-io", "-f", "qcow2", "-c", f"write -q -P 0xaa 0 {4 * MIB}", image)
    t.run("qemu-io", "-f", "qcow2", "-c", f"write -q -z {4 * MIB - unit} {unit}", image)
    t.run("qemu-img", "resize", "-q", "--shrink", "-f", "qcow2", image, str(size))
    d = t.daemon({"vda": f"{image},format=qcow2"})
    for size in range(size, size + 40 * 512, 512):
        start = 4 * MIB - unit
        h, growing = nbd_client(d.uri("vda")), threading.Thread(target=d.fleece, args=("resize", "vda", str(size + 512)))
        h.zero(size - start, start)
        growing.start()
        while growing.is_alive():
            h.pwrite(b"n" * 100, start)
            h.zero(size - start, start)
        h.pwrite(b"n" * 100, start)
        growing.join()
        h.shutdown()
        h = nbd_client(d.uri("vda"))
        assert h.pread(512, size) == bytes(512), f"{size}: old data has appeared"
        h.shutdown()
    d.stop()
    judge(t, image, size + 512)


def test_a_compressed_image_grows(t):
    """Its last cluster is compressed, and cut short by the end; and qemu-img has made it smaller before."""
    harness.need("qemu-img")
    raw = t.disk("a.raw", 6 * MIB + 1536, fill=5)
    t.run("qemu-img", "convert", "-c", "-f", "raw", "-O", "qcow2", raw, t.path("a.qcow2"))
    t.run("qemu-img", "resize", "-q", "--shrink", "-f", "qcow2", t.path("a.qcow2"), str(4 * MIB + 512))
    grow_image(t, t.path("a.qcow2"), (4 * MIB + 8192, 8 * MIB))


def test_far(t):
    """From 1 GiB to 300 GiB: the L1 table gets several clusters. Not more than the format's bounds allow."""
    harness.need("qemu-img")
    image = create(t, "a.qcow2", 1 << 30, "cluster_size=4k")
    d = t.daemon({"vda": f"{image},format=qcow2"})
    with d.qmp() as q:
        refused(q, "GenericError", "has clusters of 4096 bytes, and would need an L1 table of", "block_resize", device="vda",
                size=100 << 40)
        refused(q, "GenericError", "the size must be a multiple of 512", "block_resize", device="vda", size=(1 << 30) + 100)
        refused(q, "GenericError", "can't be made smaller", "block_resize", device="vda", size=1 << 29)
        assert q.execute("block_resize", device="vda", size=300 << 30) == {"size": 300 << 30}
    h = nbd_client(d.uri("vda"))
    for at in 0, (1 << 30) - 4096, 1 << 30, (300 << 30) - 8192:
        h.pwrite(b"x" * 8192, at)
    h.flush()
    h.shutdown()
    assert json.loads(d.fleece("--json", "resize", "vda").stdout)["size"] == 300 << 30
    d.stop()
    judge(t, image, 300 << 30)


def test_killed_while_it_grows(t):
    """kill -9 at any moment: the image has the old size or the new one, and all that was answered."""
    harness.need("qemu-img")
    size, grown = 3 * MIB, 0
    image = create(t, "a.qcow2", size, "cluster_size=4k")
    model = bytearray(size)
    d = t.daemon({"vda": f"{image},format=qcow2"})
    check_backup(t, d, image, t.path("set"))
    for round_ in range(10):
        h = nbd_client(d.uri("vda"))
        h.pwrite(bytes([round_ + 1]) * 4096, size - 4096)
        model[size - 4096:] = bytes([round_ + 1]) * 4096
        wanted = size + 512 * random.randrange(1, 8000)
        q = d.qmp()
        q.send("block_resize", device="vda", size=wanted)
        time.sleep(random.choice((0, 0.001, 0.002, 0.005, 0.01, 0.03)))
        d.kill()
        q.close()
        t.daemons.clear()
        info = json.loads(t.run("qemu-img", "info", "-U", "--output=json", image).stdout)
        judge(t, image, info["virtual-size"], killed=True)
        d = t.daemon({"vda": f"{image},format=qcow2"})
        now = size_of(d)
        assert now in (size, wanted) and now == info["virtual-size"], (now, size, wanted, info)
        grown += now == wanted
        model.extend(bytes(now - size))
        size = now
        assert check_backup(t, d, image, t.path("set")) == "incremental"
        assert t.path("restored.raw").read_bytes() == model
    d.stop()
    print(f"{grown} of 10 times it had grown")


if __name__ == "__main__":
    harness.main()
