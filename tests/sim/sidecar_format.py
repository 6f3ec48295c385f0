#!/usr/bin/python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""The reader that docs/formats/sidecar.md shows, on sidecars that the tracker has written.

sidecar_format.py ROOT SIM_TRACKER: that writes sidecars as they are after a close and after a power loss, with torn writes,
and beside each what the tracker reports when it is opened on it."""
import pathlib
import subprocess
import sys
import tempfile

MARK = "<!-- tests/sim/sidecar_format.py runs this -->\n\n```python\n"


def main():
    text = (pathlib.Path(sys.argv[1]) / "docs/formats/sidecar.md").read_text()
    assert text.count(MARK) == 1, "one reader is expected"
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        reader = folder / "reader.py"
        reader.write_text(text.split(MARK)[1].split("```")[0])

        def read(*arguments):
            return subprocess.run([sys.executable, reader, *arguments], capture_output=True, text=True)

        subprocess.run([sys.argv[2], "--write", folder], check=True)
        sidecars = sorted(folder.glob("*.fleece"))
        assert len(sidecars) >= 6, sidecars
        for sidecar in sidecars:
            listed = read(sidecar).stdout.splitlines()
            assert listed, sidecar
            for line in listed:
                uuid = line.split()[0]
                expected = sidecar.with_suffix("." + uuid).read_text()
                assert expected and read(sidecar, uuid).stdout == expected, (sidecar, line)
        whole = sidecars[0].read_bytes()
        for offset in 100, 5000, 4096 * 9 + 77, 4096 * 17 + 500:
            sidecars[0].write_bytes(whole[:offset] + bytes([whole[offset] ^ 4]) + whole[offset + 1:])
            result = read(sidecars[0], "x")
            if offset < 4096 * 17:
                assert result.returncode and "damaged" in result.stderr, (offset, result)
        print("sidecars:", len(sidecars))


main()
