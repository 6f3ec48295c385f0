#!/usr/bin/python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""The fleecing cache as its operator sees it: fill, forecast, thresholds, growth while snapshots live, and the estimate."""
import json

import harness

MIB = 1 << 20


def write(t, d, *commands):
    t.run("qemu-io", "-f", "raw", *[part for c in commands for part in ("-c", f"write -P 7 {c}")], d.uri("vda"))


def reached(q, percent):
    """Waits for the event; lower ones may come first, when the daemon looks in between."""
    last = 0
    while last != percent:
        event = q.event("FLEECE_CACHE_THRESHOLD")["data"]
        assert last < event["percent"] <= percent, event
        last = event["percent"]


def test_thresholds_and_growth(t):
    harness.need("qemu-io", "nbdcopy")
    size = 64 * MIB
    path = t.disk("a.raw", size, 1)
    before = path.read_bytes()
    d = t.daemon({"vda": path}, "--fleece", "ram=16M")
    idle = d.status()["cache"]
    assert idle["fill-bytes"] == idle["fill-rate"] == 0 and "seconds-to-full" not in idle, idle
    with d.qmp() as q:
        q.execute("fleece-snapshot-create", name="s")
        write(t, d, "0 9M")
        event = q.event("FLEECE_CACHE_THRESHOLD")["data"]
        assert event["percent"] == 50 and event["fill-bytes"] >= 9 * MIB and event["fill-bytes-max"] == 16 * MIB, event
        assert event["fill-rate"] > 0 and event["seconds-to-full"] >= 0, event
        cache = d.status()["cache"]
        assert cache["fill-rate"] > MIB / 10 and cache["seconds-to-full"] < 1000, cache
        assert "the cache fills at" in d.fleece("status").stdout
        write(t, d, "9M 6M")
        reached(q, 90)
        assert "fleecing cache is 90 % full" in d.log()
        d.fleece("cache", "resize", "--ram", "128M")  # 8 times as much is what it had reserved
        assert d.status()["cache"]["bytes-max"] == 128 * MIB
        write(t, d, "15M 45M")
        assert d.status()["snapshots"][0]["state"] == "live"
        in_use = d.status()["cache"]["bytes"]
        assert in_use > 60 * MIB, in_use
        assert "are in use" in d.fleece("cache", "resize", "--ram", "60M", status=1).stderr
        assert "can't grow to 1 GiB of RAM while snapshots live, but to 128 MiB" in \
            d.fleece("cache", "resize", "--ram", "1G", status=1).stderr
        q.events.clear()
        d.fleece("cache", "resize", "--ram", "64M")
        reached(q, 90)
        t.run("nbdcopy", d.uri("vda@s"), t.path("copy"))
        assert t.path("copy").read_bytes() == before
        q.execute("fleece-snapshot-delete", name="s")
        d.fleece("cache", "resize", "--ram", "1G")
        d.fleece("cache", "resize", "--ram", "16M")
        assert d.status()["cache"]["bytes-max"] == 16 * MIB
        q.events.clear()
        q.execute("fleece-snapshot-create", name="again")
        write(t, d, "0 9M")
        assert q.event("FLEECE_CACHE_THRESHOLD")["data"]["percent"] == 50  # told anew for the next one


def test_cache_files_grow(t):
    harness.need("qemu-io", "nbdcopy")
    size = 64 * MIB
    path = t.disk("a.raw", size, 2)
    before = path.read_bytes()
    folder = t.path("cache")
    folder.mkdir()
    d = t.daemon({"vda": path}, "--fleece", f"ram=8M,dir={folder},max=24M")
    with d.qmp() as q:
        q.execute("fleece-snapshot-create", name="s")
        write(t, d, "0 16M")
        assert "while snapshots live" in d.fleece("cache", "resize", "--max", "1G", status=1).stderr
        d.fleece("cache", "resize", "--max", "80M")
        for start in range(16, 64, 8):
            write(t, d, f"{start}M 8M")
        status = d.status()
        assert status["snapshots"][0]["state"] == "live", status["snapshots"]
        assert 24 * MIB < status["cache"]["file-bytes"] <= status["cache"]["file-bytes-max"] == 80 * MIB, status["cache"]
        assert status["cache"]["fill-bytes"] == status["cache"]["bytes"] + status["cache"]["file-bytes"]
        assert "are in use" in d.fleece("cache", "resize", "--ram", "32M", "--max", "32M", status=1).stderr
        assert d.status()["cache"]["bytes-max"] == 8 * MIB  # both or none
        t.run("nbdcopy", d.uri("vda@s"), t.path("copy"))
        assert t.path("copy").read_bytes() == before
        q.execute("fleece-snapshot-delete", name="s")
        d.fleece("cache", "resize", "--max", "512M")
        q.execute("fleece-snapshot-create", name="next")  # its file may be as large as the new budget
        assert sum(f.stat().st_size for f in folder.iterdir()) >= 512 * MIB


def test_a_small_file_system_bounds_the_forecast(t):
    """The budget says 1 GiB, the file system of the cache files has 24 MiB."""
    harness.need("qemu-io", "mount")
    folder = t.path("small")
    folder.mkdir()
    if t.run("mount", "-t", "tmpfs", "-o", "size=24M", "none", folder, status=None).returncode != 0:
        raise harness.Skip("nothing can be mounted here")
    try:
        d = t.daemon({"vda": t.disk("a.raw", 64 * MIB, 4)}, "--fleece", f"ram=8M,dir={folder},max=1G")
        assert 24 * MIB < d.status()["cache"]["fill-bytes-max"] <= 32 * MIB, d.status()["cache"]
        with d.qmp() as q:
            assert q.execute("fleece-estimate-backup")["bytes-free"] <= 32 * MIB
            q.execute("fleece-snapshot-create", name="s")
            for start in range(0, 18, 2):
                write(t, d, f"{start}M 2M")
            reached(q, 50)
            harness.wait_for("the space is looked at",
                             lambda: 24 * MIB < d.status()["cache"]["fill-bytes-max"] <= 32 * MIB)
            q.execute("fleece-snapshot-delete", name="s")
        d.stop()
    finally:
        t.run("umount", "-l", folder)


def test_estimate(t):
    harness.need("qemu-io")
    d = t.daemon({"vda": t.disk("a.raw", 256 * MIB), "vdb": t.disk("b.raw", 256 * MIB)}, "--fleece", "ram=16M")
    quiet = json.loads(d.fleece("--json", "cache", "estimate").stdout)
    assert quiet["size"] == 512 * MIB and quiet["bytes"] == quiet["write-rate"] == 0 and quiet["fits"], quiet
    write(t, d, "0 32M", "0 32M", "8M 8M")  # the same blocks again cost nothing
    with d.qmp() as q:
        fast = q.execute("fleece-estimate-backup", speed=1 << 40)
        assert fast["seconds"] == 0 and fast["fits"], fast
        slow = q.execute("fleece-estimate-backup", speed=MIB)
        assert slow["seconds"] == 512 and not slow["fits"] and not slow["fits-unreleased"], slow
        seen = slow["write-rate"] * slow["observed-ms"] / 1000
        assert 28 * MIB < seen < 36 * MIB, slow
        assert slow["bytes"] <= slow["bytes-unreleased"] <= 260 * MIB, slow
        assert slow["bytes-free"] == 16 * MIB
    shown = d.fleece("cache", "estimate", "--speed", "1M", status=3)
    assert "a backup of 512 MiB at 1 MiB/s takes about 512 s" in shown.stdout and "NOT fit" in shown.stdout, shown.stdout
    assert "too small for a backup" in shown.stderr


def test_what_is_wrong_is_named(t):
    d = t.daemon({"vda": t.disk("a.raw", 4 * MIB)}, "--fleece", "ram=8M")
    with d.qmp() as q:
        for text, command, arguments in (
                ("say what to resize: 'ram', 'max' or both", "fleece-cache-resize", {}),
                ("Parameter 'ram' is 0, but must be from 1", "fleece-cache-resize", {"ram": 0}),
                ("1 MiB of RAM for the fleecing cache is not right: from", "fleece-cache-resize", {"ram": MIB}),
                ("in RAM only", "fleece-cache-resize", {"max": 64 * MIB}),
                ("in RAM only", "fleece-cache-resize", {"ram": 64 * MIB, "max": 64 * MIB}),
                ("'speed' is 0", "fleece-estimate-backup", {"speed": 0})):
            try:
                q.execute(command, **arguments)
                raise AssertionError(f"{command} {arguments} was not refused")
            except harness.QmpError as error:
                assert error.kind == "GenericError" and text in error.text, f"{error} does not say: {text}"
    assert d.status()["cache"]["bytes-max"] == 8 * MIB
    for wrong in ([], ["grow"], ["resize"], ["resize", "8M"], ["resize", "--ram", "x"], ["estimate", "--fast"]):
        assert "usage: fleece" in d.fleece("cache", *wrong, status=2).stderr, wrong


harness.main()
