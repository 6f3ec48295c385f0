# SPDX-License-Identifier: GPL-2.0-or-later
"""Loop devices, for disks that are block devices."""
import contextlib

import harness


@contextlib.contextmanager
def loop_device(t, path):
    harness.need("losetup")
    made = t.run("losetup", "--show", "-f", path, status=None)
    if made.returncode != 0:
        raise harness.Skip(f"no loop device: {made.stderr.strip()}")
    try:
        yield made.stdout.strip()
    finally:
        t.run("losetup", "-d", made.stdout.strip())
