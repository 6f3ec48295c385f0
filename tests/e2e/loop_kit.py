# SPDX-License-Identifier: GPL-2.0-or-later
"""Loop devices, for disks that are block devices, and the kernel's exact account of what is asked of one."""
import contextlib
import os
import pathlib
import shutil

import harness


def settle(t):
    """Whoever looks at devices that are new, or that somebody has closed, has looked."""
    if shutil.which("udevadm"):
        t.run("udevadm", "settle", status=None)


@contextlib.contextmanager
def loop_device(t, path, *options):
    harness.need("losetup")
    if os.geteuid() != 0:
        raise harness.Skip("only root can make a loop device")
    made = t.run("losetup", "--find", "--show", *options, path, status=None)
    if made.returncode != 0:
        raise harness.Skip(f"no loop device: {made.stderr.strip()}")
    settle(t)
    try:
        yield made.stdout.strip()
    finally:
        t.run("losetup", "--detach", made.stdout.strip())


def asked_of(device):
    """Bytes read and written so far. Unlike a process's account in /proc this has the device's requests and nothing else:
    no page of a program that comes from its file, no block of a file system's own."""
    fields = (pathlib.Path("/sys/class/block") / pathlib.Path(device).name / "stat").read_text(encoding="ascii").split()
    return int(fields[2]) * 512, int(fields[6]) * 512
