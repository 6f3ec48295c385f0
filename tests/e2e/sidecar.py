#!/usr/bin/python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""Where sidecars lie: beside the image, or in the state directory; and a file system without room for one."""
import contextlib
import stat

import harness
from loop_kit import loop_device
from tracking_kit import nbd_client

MIB = 1 << 20


def checkpoints(d):
    with d.qmp() as q:
        return q.execute("fleece-query-checkpoints")


def make(d, name):
    with d.qmp() as q:
        q.execute("fleece-checkpoint-create", name=name)


@contextlib.contextmanager
def small_file_system(t, name, size):
    """An ext4 of its own."""
    harness.need("mkfs.ext4", "losetup")
    backing, folder = t.disk(f"{name}.img", size), t.path(name)
    t.run("mkfs.ext4", "-q", "-F", "-m", "0", backing)
    folder.mkdir()
    if t.run("mount", "-o", "loop", backing, folder, status=None).returncode != 0:
        raise harness.Skip("no file system can be mounted here")
    try:
        yield folder
    finally:
        t.run("umount", folder)


def write(d, offset, data):
    h = nbd_client(d.uri("vda"))
    h.pwrite(data, offset)
    h.shutdown()


def test_beside_the_image(t):
    """Made with the first checkpoint and not before, private, and the image's own name leads to it, not a link's."""
    image = t.disk("a.raw", 64 * MIB)
    link = t.path("link.raw")
    link.symlink_to(image)
    sidecar = t.path("a.raw.fleece")
    d = t.daemon({"vda": link})
    d.fleece("snapshot", "create", "s")
    d.fleece("snapshot", "delete", "s")
    assert not sidecar.exists()
    make(d, "one")
    assert stat.S_IMODE(sidecar.stat().st_mode) == 0o600
    assert not t.path("link.raw.fleece").exists()
    write(d, 5 * MIB, b"x" * 4096)
    d.stop()
    d = t.daemon({"vda": image})
    assert checkpoints(d)[0]["disks"][0]["changed"] == 4096
    d.stop()


def test_block_devices(t):
    """In the state directory, by VM and disk; found again, and known to be another device's when it is."""
    state = t.path("far")
    state.mkdir()
    with loop_device(t, t.disk("a.raw", 64 * MIB)) as device:
        d = t.daemon({"vda": device}, "--state-dir", state)
        make(d, "one")
        write(d, 0, b"x" * 8192)
        assert (state / f"{t.vm}@vda.fleece").exists()
        d.kill()
        d = t.daemon({"vda": device}, "--state-dir", state)
        assert checkpoints(d)[0]["disks"][0]["changed"] == 8192
        assert d.status()["disks"][0]["tracking"]["recovery"] == "adopted"
        d.stop()


def test_two_vms_in_one_state_dir(t):
    """Disk b.c of VM x, and disk c of VM x.b: each has a sidecar of its own."""
    state, vm = t.path("shared"), t.vm
    state.mkdir()
    with loop_device(t, t.disk("a.raw", 16 * MIB)) as a, loop_device(t, t.disk("b.raw", 16 * MIB)) as b:
        daemons = [t.daemon({"b.c": a}, "--state-dir", state)]
        t.vm = f"{vm}.b"
        daemons.append(t.daemon({"c": b}, "--state-dir", state))
        t.vm = vm
        for d in daemons:
            make(d, "one")
            assert d.status()["disks"][0]["tracking"]["state"] == "on"
        assert {p.name for p in state.iterdir()} == {f"{vm}@b.c.fleece", f"{vm}.b@c.fleece"}
        for d in daemons:
            d.stop()


def test_a_folder_that_cannot_be_written(t):
    """The image's folder is read-only: the state directory has the sidecar."""
    state = t.path("far")
    state.mkdir()
    with small_file_system(t, "inner", 64 * MIB) as folder:
        with open(folder / "a.raw", "wb") as f:
            f.truncate(16 * MIB)
        t.run("chattr", "+i", folder)
        try:
            d = t.daemon({"vda": folder / "a.raw"}, "--state-dir", state)
            make(d, "one")
            assert (state / f"{t.vm}@vda.fleece").exists() and not (folder / "a.raw.fleece").exists()
            write(d, 0, b"x" * 4096)
            d.stop()
            d = t.daemon({"vda": folder / "a.raw"}, "--state-dir", state)
            assert checkpoints(d)[0]["disks"][0]["changed"] == 4096
            d.stop()
        finally:
            t.run("chattr", "-i", folder)


def test_its_file_system_is_full(t):
    """The guest's writes go on without an error; tracking is void, says why, and can begin anew when there is room."""
    image = t.disk("a.raw", 4096 * MIB)
    with small_file_system(t, "inner", 8 * MIB) as state, loop_device(t, image) as device:
        d = t.daemon({"vda": device}, "--state-dir", state)
        make(d, "one")
        with open(state / "filler", "wb", buffering=0) as f, contextlib.suppress(OSError):
            while True:
                f.write(bytes(65536))
        written = 0
        for offset in range(0, 4096 * MIB, 4 * MIB):
            write_more = 4096 if offset % (64 * MIB) else 8192
            written += write_more
            write(d, offset, b"x" * write_more)
        assert d.status()["disks"][0]["errors"] == 0
        try:
            make(d, "two")
        except harness.QmpError as error:
            assert "No space left" in error.text, error
        else:
            raise AssertionError("there was room for a second bitmap")
        assert checkpoints(d)[0]["disks"][0]["changed"] == written
        (state / "filler").unlink()
        make(d, "two")
        write(d, 0, b"y" * 4096)
        assert checkpoints(d)[1]["disks"][0]["changed"] == 4096
        d.fleece("checkpoint", "reset", "vda")
        assert checkpoints(d) == []
        make(d, "three")
        assert [c["name"] for c in checkpoints(d)] == ["three"]
        d.stop()


harness.main()
