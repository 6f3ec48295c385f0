#!/usr/bin/python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""Dirty bitmaps: QEMU's commands and what they answer, the same bits that QEMU's own bitmaps have, and the CLI."""
import json

import harness

MIB = 1 << 20
KIB = 1 << 10


def refused(q, kind, text, command, **arguments):
    try:
        q.execute(command, **arguments)
    except harness.QmpError as error:
        assert error.kind == kind and text in error.text, f"{error} does not say: {text}"
        return
    raise AssertionError(f"{command} {arguments} was not refused")


def bitmaps(d, disk=0):
    return {b["name"]: b for b in d.status()["disks"][disk]["dirty-bitmaps"]}


def ranges(q, name, node="vda"):
    found, offset, size = [], 0, None
    while offset != size:
        answer = q.execute("fleece-query-dirty-ranges", node=node, name=name, offset=offset)
        found += [(r["offset"], r["length"]) for r in answer["ranges"]]
        assert answer["next"] > offset, answer
        offset, size = answer["next"], q.execute("fleece-query-status")["disks"][0]["size"]
    return found


def io(t, d, *commands, disk="vda"):
    t.run("qemu-io", "-f", "raw", *[part for c in commands for part in ("-c", c)], d.uri(disk))


def test_commands(t):
    harness.need("qemu-io")
    d = t.daemon({"vda": t.disk("a.raw", 4 * MIB + 512), "vdb": t.disk("b.raw", 2 * MIB)})
    with d.qmp() as q:
        assert bitmaps(d) == {}
        assert q.execute("block-dirty-bitmap-add", node="vda", name="b0") == {}
        assert q.execute("block-dirty-bitmap-add", node="vda", name="coarse", granularity=65536) == {}
        assert q.execute("block-dirty-bitmap-add", node="vda", name="off", disabled=True, persistent=False) == {}
        io(t, d, "write 100k 1k", "write -z 1M 64k", "discard 2M 4k", f"write {4 * MIB} 512", "read 0 64k", "flush")
        assert bitmaps(d) == {
            "b0": {"name": "b0", "count": 4096 + 65536 + 4096 + 512, "granularity": 4096, "recording": True, "busy": False,
                   "persistent": False, "inconsistent": False, "memory-bytes": bitmaps(d)["b0"]["memory-bytes"]},
            "coarse": dict(bitmaps(d)["coarse"], count=3 * 65536 + 512, granularity=65536),
            "off": dict(bitmaps(d)["off"], count=0, recording=False)}
        assert ranges(q, "b0") == [(100 * KIB, 4096), (MIB, 65536), (2 * MIB, 4096), (4 * MIB, 512)]
        q.execute("block-dirty-bitmap-disable", node="vda", name="b0")
        io(t, d, "write 3M 4k")
        q.execute("block-dirty-bitmap-enable", node="vda", name="b0")
        assert bitmaps(d)["b0"]["count"] == 4096 + 65536 + 4096 + 512
        q.execute("block-dirty-bitmap-clear", node="vda", name="b0")
        assert bitmaps(d)["b0"]["count"] == 0 and ranges(q, "b0") == []
        io(t, d, "write 0 4k")
        q.execute("block-dirty-bitmap-merge", node="vda", target="off", bitmaps=["b0", {"node": "vda", "name": "coarse"}])
        assert ranges(q, "off") == [(0, 2 * 65536), (MIB, 65536), (2 * MIB, 65536), (3 * MIB, 65536),
                                    (4 * MIB, 512)], ranges(q, "off")  # 'coarse' has heard of all writes
        q.execute("block-dirty-bitmap-merge", node="vda", target="off", bitmaps=[])
        q.execute("block-dirty-bitmap-remove", node="vda", name="b0")
        assert set(bitmaps(d)) == {"coarse", "off"}


def test_what_is_wrong_is_named(t):
    d = t.daemon({"vda": t.disk("a.raw", 4 * MIB), "vdb": t.disk("b.raw", 2 * MIB)})
    with d.qmp() as q:
        q.execute("block-dirty-bitmap-add", node="vda", name="b0")
        q.execute("block-dirty-bitmap-add", node="vdb", name="b0")
        for kind, text, command, arguments in (
                ("DeviceNotFound", "has no disk 'vdz'", "add", {"node": "vdz", "name": "x"}),
                ("DeviceNotFound", "has no disk 'vdz'", "remove", {"node": "vdz", "name": "x"}),
                ("GenericError", "disk vda has a dirty bitmap 'b0' already", "add", {"node": "vda", "name": "b0"}),
                ("GenericError", "1 to 64", "add", {"node": "vda", "name": ""}),
                ("GenericError", "'a b'", "add", {"node": "vda", "name": "a b"}),
                ("GenericError", "power of 2 from 512 to 2147483648 bytes, not 1000", "add",
                 {"node": "vda", "name": "x", "granularity": 1000}),
                ("GenericError", "'granularity' is 0, but must be from 512", "add",
                 {"node": "vda", "name": "x", "granularity": 0}),
                ("GenericError", "'x' can't be persistent", "add", {"node": "vda", "name": "x", "persistent": True}),
                ("GenericError", "Parameter 'name' is missing", "add", {"node": "vda"}),
                ("GenericError", "disk vda has no dirty bitmap 'x'", "remove", {"node": "vda", "name": "x"}),
                ("GenericError", "disk vda has no dirty bitmap 'x'", "clear", {"node": "vda", "name": "x"}),
                ("GenericError", "disk vda has no dirty bitmap 'x'", "enable", {"node": "vda", "name": "x"}),
                ("GenericError", "disk vda has no dirty bitmap 'x'", "disable", {"node": "vda", "name": "x"}),
                ("GenericError", "disk vda has no dirty bitmap 'x'", "merge",
                 {"node": "vda", "target": "x", "bitmaps": ["b0"]}),
                ("GenericError", "disk vda has no dirty bitmap 'x'", "merge",
                 {"node": "vda", "target": "b0", "bitmaps": ["b0", "x"]}),
                ("GenericError", "4194304", "merge",
                 {"node": "vda", "target": "b0", "bitmaps": [{"node": "vdb", "name": "b0"}]}),
                ("DeviceNotFound", "'vdz'", "merge",
                 {"node": "vda", "target": "b0", "bitmaps": [{"node": "vdz", "name": "b0"}]}),
                ("GenericError", "'bitmaps', expected: array", "merge", {"node": "vda", "target": "b0", "bitmaps": "b0"}),
                ("GenericError", "member 1 must be a name", "merge", {"node": "vda", "target": "b0", "bitmaps": ["b0", 7]}),
                ("GenericError", "member 0 must be a name", "merge",
                 {"node": "vda", "target": "b0", "bitmaps": [{"name": "b0"}]}),
                ("GenericError", "has 33 members", "merge", {"node": "vda", "target": "b0", "bitmaps": ["b0"] * 33})):
            refused(q, kind, text, f"block-dirty-bitmap-{command}", **arguments)
        for i in range(31):
            q.execute("block-dirty-bitmap-add", node="vda", name=f"n{i}")
        refused(q, "GenericError", "at most 32", "block-dirty-bitmap-add", node="vda", name="more")
        assert len(bitmaps(d)) == 32 and len(bitmaps(d, 1)) == 1


def test_merge_between_disks(t):
    harness.need("qemu-io")
    d = t.daemon({"vda": t.disk("a.raw", 8 * MIB), "vdb": t.disk("b.raw", 8 * MIB)}, "--io-threads", "2")
    with d.qmp() as q:
        q.execute("block-dirty-bitmap-add", node="vda", name="x", granularity=512)
        q.execute("block-dirty-bitmap-add", node="vdb", name="y", granularity=MIB)
        io(t, d, "write 512 512", "write 5000 1")
        io(t, d, "write 7M 1", disk="vdb")
        q.execute("block-dirty-bitmap-merge", node="vda", target="x", bitmaps=[{"node": "vdb", "name": "y"}])
        assert ranges(q, "x") == [(512, 512), (4608, 512), (7 * MIB, MIB)], ranges(q, "x")
        q.execute("block-dirty-bitmap-merge", node="vdb", target="y", bitmaps=[{"node": "vda", "name": "x"}])
        assert ranges(q, "y", "vdb") == [(0, MIB), (7 * MIB, MIB)]


def test_a_limited_snapshot(t):
    """Nothing but what is dirty is preserved and can be read; what is dirty is as it was."""
    harness.need("qemu-io", "nbdsh")
    size = 8 * MIB
    fill = harness.pattern(size, 5)
    d = t.daemon({"vda": t.disk("a.raw", size, fill), "vdb": t.disk("b.raw", 2 * MIB)})
    d.fleece("bitmap", "add", "day")
    io(t, d, "write -P 17 1M 64k", "write -P 18 4M 4k")
    io(t, d, "write -P 19 0 4k", disk="vdb")
    made = json.loads(d.fleece("--json", "snapshot", "create", "inc", "--bitmap", "day").stdout)
    assert made["bitmap"] == "day", made
    with d.qmp() as q:
        q.execute("block-dirty-bitmap-remove", node="vda", name="day")  # the snapshot does not mind
        before = d.status()["disks"]
        io(t, d, "write -P 33 0 1M", "write -P 34 2M 1M", "discard 6M 1M", "write -z 7M 64k")  # all of it is clean
        after = d.status()["disks"]
        assert [x["blocks-preserved"] for x in after] == [x["blocks-preserved"] for x in before], after
        io(t, d, "write -P 35 1M 32k", "write -P 36 4M 4k")
        assert d.status()["disks"][0]["blocks-preserved"] == before[0]["blocks-preserved"] + 9
    read = t.run("nbdsh", "-u", d.uri("vda@inc"), "-c", f"""
good = h.pread(65536, {MIB}) + h.pread(4096, {4 * MIB})
print(good == b"\\x11" * 65536 + b"\\x12" * 4096)
for offset, length in ((0, 4096), ({MIB} - 512, 1024), ({4 * MIB} + 4096, 1), (0, {MIB}), ({7 * MIB}, 4096)):
    try:
        h.pread(length, offset)
        print("read", offset)
    except nbd.Error as error:
        print(error.errno, error.string)
""").stdout.splitlines()
    assert read[0] == "True" and len(read) == 6 and all(line.startswith("EINVAL") for line in read[1:]), read
    assert "limited to what is dirty: disk vda has no dirty bitmap 'day'" in \
        d.fleece("snapshot", "create", "more", "--bitmap", "day", status=1).stderr
    assert "usage" in d.fleece("snapshot", "create", "--bitmap", "a b", status=2).stderr
    assert [s["name"] for s in d.status()["snapshots"]] == ["inc"]
    d.fleece("snapshot", "delete", "inc")
    assert not any(x["copy-before-write"] for x in d.status()["disks"])


def test_a_chain_of_limited_snapshots(t):
    """The way of incrementals: what each of them holds, laid over the one before, is the disk at its instant."""
    harness.need("qemu-io", "nbdsh")
    size = 4 * MIB
    path = t.disk("a.raw", size, harness.pattern(size, 6))
    d = t.daemon({"vda": path})
    image = bytearray()
    for step in range(4):
        name = f"p{step}"
        d.fleece("bitmap", "add", name)  # before the snapshot: so it holds at least all that comes after
        limit = ["--bitmap", f"p{step - 1}"] if step else []
        d.fleece("snapshot", "create", name, *limit)
        then = path.read_bytes()
        io(t, d, f"write -P {step + 1} {step * 300}k 100k", f"write -P {step + 9} 3M 4k", f"discard {step}M 64k")
        held = held_at(t, d, name, size)
        script = "".join(f"out.write(h.pread({length}, {offset}))\n" for offset, length in held)
        t.run("nbdsh", "-u", d.uri(f"vda@{name}"), "-c", f"out = open('{t.path(name)}', 'wb')\n{script}out.close()\n")
        stored, at = t.path(name).read_bytes(), 0
        image = image or bytearray(size)
        for offset, length in held:
            image[offset:offset + length] = stored[at:at + length]
            at += length
        assert (sum(length for _, length in held) == size) == (step == 0), held
        assert bytes(image) == then, f"the image of step {step} is wrong"
        d.fleece("snapshot", "delete", name)
        if step:
            d.fleece("bitmap", "remove", f"p{step - 1}")


def held_at(t, d, name, size):
    """Ranges of a snapshot that can be read: where fleece:residence does not say released."""
    extents = json.loads(t.run("nbdinfo", "--json", "--map=fleece:residence", d.uri(f"vda@{name}")).stdout)
    assert sum(e["length"] for e in extents) == size
    return [(e["offset"], e["length"]) for e in extents if not e["type"] & 16]


def test_bitmaps_outlive_backups(t):
    """P11: whatever becomes of a backup (success, failure, cancel, a broken snapshot), bitmaps hold what was written."""
    harness.need("qemu-io")
    size = 32 * MIB
    d = t.daemon({"vda": t.disk("a.raw", size, 3)}, "--fleece", "ram=4M")
    written = set()

    def write(start, length):
        io(t, d, f"write {start} {length}")
        written.update(range(start // 4096, (start + length - 1) // 4096 + 1))

    def check(q, what):
        blocks = {b for offset, length in ranges(q, "day") for b in range(offset // 4096, (offset + length) // 4096)}
        assert blocks == written, f"after {what}: {len(blocks - written)} too many, {len(written - blocks)} missed"

    with d.qmp() as q:
        q.execute("block-dirty-bitmap-add", node="vda", name="day")
        write(MIB, 8192)
        d.fleece("backup", t.path("set"))
        write(2 * MIB, 512)
        check(q, "a backup")
        d.fleece("backup", t.path("missing") / "set", status=1)
        write(3 * MIB, 4096)
        check(q, "a backup that failed")
        with d.qmp() as client:
            client.execute("fleece-snapshot-create", name="leased", bitmap="day", lease=True)
            write(3 * MIB, 65536)
        harness.wait_for("the lease has ended", lambda: q.execute("fleece-query-snapshots") == [])
        check(q, "a client that vanished")
        q.execute("fleece-snapshot-create", name="tight")
        write(8 * MIB, 16 * MIB)
        assert q.event("FLEECE_SNAPSHOT_BROKEN")["data"]["name"] == "tight"
        write(30 * MIB + 100, 5000)
        check(q, "a snapshot that broke")
        q.execute("fleece-snapshot-delete", name="tight")
        check(q, "its end")


def test_the_bits_of_qemu(t):
    """The same requests to qemu-storage-daemon: its bitmap has the same ranges dirty."""
    harness.need("qemu-storage-daemon", "qemu-io", "nbdinfo")
    size, requests = 16 * MIB, ["write 4k 8k", "write 70000 1", "write -z 1M 128k", "discard 3M 1M", "write 16777000 216"]
    peer = t.disk("peer.raw", size)
    control, nbd = t.path("qsd.sock"), t.path("qsd-nbd.sock")
    storage = t.spawn_server("qemu-storage-daemon", "--blockdev",
                             f"driver=file,node-name=vda,filename={peer},discard=unmap", "--chardev",
                             f"socket,id=c,path={control},server=on,wait=off", "--monitor", "chardev=c",
                             "--nbd-server", f"addr.type=unix,addr.path={nbd}")
    d = t.daemon({"vda": f"{t.disk('a.raw', size)}"})
    for granularity in (512, 65536):
        name = f"g{granularity}"
        with harness.Qmp(control) as q, d.qmp() as own:
            for side in (q, own):
                side.execute("block-dirty-bitmap-add", node="vda", name=name, granularity=granularity)
            q.execute("block-export-add", id=name, type="nbd", node_name="vda", writable=True, bitmaps=[])
            uri = f"nbd+unix:///vda?socket={nbd}"
            for target in (uri, d.uri("vda")):
                t.run("qemu-io", "-f", "raw", "-d", "unmap", *[p for r in requests for p in ("-c", r)], target)
            q.execute("block-export-del", id=name, mode="hard")
            harness.wait_for("the export has gone", lambda: q.execute("query-block-exports") == [])
            q.execute("block-dirty-bitmap-disable", node="vda", name=name)
            q.execute("block-export-add", id="read", type="nbd", node_name="vda", bitmaps=[name])
            listed = json.loads(t.run("nbdinfo", "--json", f"--map=qemu:dirty-bitmap:{name}", uri).stdout)
            theirs = [(e["offset"], e["length"]) for e in listed if e["type"] & 1]
            assert ranges(own, name) == theirs, (granularity, ranges(own, name), theirs)
            q.execute("block-export-del", id="read", mode="hard")
            harness.wait_for("the export has gone", lambda: q.execute("query-block-exports") == [])
            q.execute("block-dirty-bitmap-remove", node="vda", name=name)
    with harness.Qmp(control) as q:
        q.execute("quit")
    storage.wait(harness.SOON)


def test_command_line(t):
    harness.need("qemu-io")
    d = t.daemon({"vda": t.disk("a.raw", 4 * MIB), "vdb": t.disk("b.raw", 2 * MIB)})
    assert "added on 2 disks" in d.fleece("bitmap", "add", "day").stdout
    assert "added on 1 disk" in d.fleece("bitmap", "add", "--granularity", "64K", "--disabled", "night", "vdb").stdout
    io(t, d, "write 1M 8k")
    shown = d.fleece("bitmap", "list").stdout.splitlines()
    assert [line.split() for line in shown[1:]] == [
        ["day", "vda", "8", "KiB", "4", "KiB", "recording"], ["day", "vdb", "0", "B", "4", "KiB", "recording"],
        ["night", "vdb", "0", "B", "64", "KiB", "disabled"]], shown
    listed = [json.loads(line) for line in d.fleece("--json", "bitmap", "list").stdout.splitlines()]
    assert [(b["node"], b["name"], b["count"]) for b in listed] == [("vda", "day", 8192), ("vdb", "day", 0),
                                                                    ("vdb", "night", 0)], listed
    d.fleece("bitmap", "enable", "night", "vdb")
    d.fleece("bitmap", "add", "week")
    assert "1 dirty bitmap merged into week on 2 disks" in d.fleece("bitmap", "merge", "week", "day").stdout
    assert bitmaps(d)["week"]["count"] == 8192 and bitmaps(d, 1)["night"]["recording"]
    d.fleece("bitmap", "clear", "day")
    d.fleece("bitmap", "disable", "day", "vda")
    assert not bitmaps(d)["day"]["recording"] and bitmaps(d, 1)["day"]["recording"]
    assert "removed on 2 disks" in d.fleece("bitmap", "remove", "day").stdout
    assert "disk vda has no dirty bitmap 'night'" in d.fleece("bitmap", "remove", "night", status=1).stderr
    for wrong in ([], ["add"], ["add", "a b"], ["add", "--granularity", "x", "n"], ["add", "--size"], ["list", "x"],
                  ["merge", "week"], ["merge", "week", "a b"], ["grow", "week"]):
        assert "usage: fleece" in d.fleece("bitmap", *wrong, status=2).stderr, wrong


harness.main()
