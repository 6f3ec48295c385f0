#!/usr/bin/python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""fleece audit: what tracking calls unchanged is compared with the latest point; a set that holds something else there
stands for a write that tracking has missed."""
import json
import random

import harness
from set_kit import MIB, Set, hour

SIZE = {"vda": 12 * MIB + 512, "vdb": 3 * MIB}


class Audited:
    """A VM and a set with one point of it, with its checkpoint; `change` may change what the point holds of a disk."""

    def __init__(self, t, change=lambda disk, content: content, commit=True):
        self.t, self.rng = t, random.Random(1)
        self.d = t.daemon({disk: t.disk(f"{disk}.raw", size, fill=ord(disk[-1])) for disk, size in SIZE.items()})
        with self.d.qmp() as q:
            snapshot = q.execute("fleece-snapshot-create", name="base", checkpoint="c1")
            content = {}
            for disk in SIZE:
                t.run("nbdcopy", self.d.uri(f"{disk}@base"), t.path("copy"))
                content[disk] = change(disk, t.path("copy").read_bytes())
            if commit:
                q.execute("fleece-checkpoint-commit", uuid=snapshot["checkpoint"]["uuid"])
            q.execute("fleece-snapshot-delete", name="base")
        self.set = Set(t, t.path("set"), vm=t.vm)
        self.set.add(hour(0), content)
        self.checkpoint = {k: snapshot["checkpoint"][k] for k in ("name", "uuid")}
        self.set.manifests[hour(0)]["checkpoint"] = self.checkpoint
        self.set.write_manifest(hour(0))

    def write(self, disk, offset, length=4096):
        command = f"write -P {self.rng.randrange(1, 256)} {offset} {length}"
        self.t.run("qemu-io", "-f", "raw", "-c", command, self.d.uri(disk))

    def audit(self, *options, status=0):
        done = self.d.fleece("audit", self.set.path, *options, status=status)
        assert not self.d.status()["snapshots"], "the snapshot is still there"
        return done

    def lines(self, *options, status=0):
        done = self.t.fleece("--json", "--control", self.d.control, "audit", self.set.path, *options, status=status)
        return [json.loads(line) for line in done.stdout.splitlines()]


def test_all_is_well(t):
    harness.need("nbdcopy", "qemu-io")
    a = Audited(t)
    said = a.audit("--sample", "100").stdout
    assert "vda: 13 of 13 MiB looked at" in said and said.count("as it was") == 2 and "NOT" not in said, said
    for offset in (0, 4096 * 700, 5 * MIB - 4096, 12 * MIB):
        a.write("vda", offset, 512 if offset == 12 * MIB else 8192)
    disks = {line["disk"]: line for line in a.lines("--sample", "100") if line["event"] == "disk"}
    assert disks["vda"]["compared"] == SIZE["vda"] - 3 * 8192 - 512 and disks["vda"]["ok"], disks
    assert disks["vdb"]["compared"] == SIZE["vdb"], disks
    some = [line for line in a.lines("--seed", "3") if line["event"] == "disk"]
    assert [(d["extents"], d["audited"]) for d in some] == [(13, 1), (3, 1)], some
    # Neither the checkpoint nor what has changed since is touched.
    checkpoint, = a.d.qmp().execute("fleece-query-checkpoints")
    assert checkpoint["state"] == "committed" and checkpoint["disks"][0]["changed"] == 3 * 8192 + 4096, checkpoint
    a.d.stop()


def test_a_missed_write_is_found(t):
    def change(disk, content):
        if disk == "vdb":
            return content
        content = bytearray(content)
        for at in (3 * MIB + 5, 3 * MIB + 4096 + 5, 9 * MIB, SIZE[disk] - 1):
            content[at] ^= 1
        return bytes(content)
    a = Audited(t, change)
    a.write("vda", 9 * MIB)  # this one is known to have changed
    said = a.audit("--sample", "100%", status=1)
    for start, end in ((3 * MIB, 3 * MIB + 8191), (12 * MIB, 12 * MIB + 511)):
        assert f"disk vda: bytes {start} to {end} have changed since point {hour(0)}, and checkpoint c1 does not know it" \
            in said.stderr, said.stderr
    assert said.stderr.count("\n") == 3 and "make a full one (fleece backup" in said.stderr, said.stderr
    assert "vda: 13 of 13" in said.stdout and "NOT AS IT WAS" in said.stdout and "vdb: 3 of 3" in said.stdout, said.stdout
    found = [(line["start"], line["length"]) for line in a.lines("--sample", "100", status=1)
             if line["event"] == "difference"]
    assert found == [(3 * MIB, 8192), (12 * MIB, 512)], found
    a.d.stop()


def test_what_can_not_be_audited(t):
    a = Audited(t)
    image = a.set.image(hour(0), "vdb")
    content = image.read_bytes()
    image.write_bytes(content[:-70000] + b"damage" + content[-69994:])
    said = a.audit("--sample", "100", status=1).stderr
    assert f"disk vdb could not be audited: {image} is damaged: extent " in said and "missed" not in said, said
    image.write_bytes(content)
    other = Set(t, t.path("other"), vm="other")
    other.add(hour(0), {"vda": bytes(MIB)})
    said = a.d.fleece("audit", other.path, status=1).stderr
    assert "was made without a checkpoint: there is nothing to audit" in said, said
    other.manifests[hour(0)]["checkpoint"] = a.checkpoint
    other.write_manifest(hour(0))
    assert f"is of VM 'other', not of '{t.vm}'" in a.d.fleece("audit", other.path, status=1).stderr
    a.d.qmp().execute("fleece-checkpoint-delete", name="c1")
    said = a.audit(status=1).stderr
    assert a.checkpoint["uuid"] in said and said.count("\n") == 1, said
    assert "audit wants the folder" in a.d.fleece("audit", status=2).stderr
    assert "--sample is '0'" in a.d.fleece("audit", a.set.path, "--sample", "0", status=2).stderr
    a.d.stop()


harness.main()
