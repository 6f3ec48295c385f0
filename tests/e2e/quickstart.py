#!/usr/bin/python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""./quickstart, the first of README.md's two commands (the other one runs this): what it proves, how much of a processor it
takes, and that nothing is left however it ends."""
import os
import resource
import signal
import subprocess
import time

import harness


def start(t):
    t.program("fleeced"), t.program("fleece")
    environment = dict(t.environment, TMPDIR=str(t.dir), FLEECE_BUILD=str(harness.BUILD), FLEECE_NO_INSTALL="1")
    return t.spawn(harness.ROOT / "quickstart", env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                   text=True, start_new_session=True)


def check_nothing_left(t):
    left = [p.name for p in t.dir.iterdir() if p.name not in ("run", "state")]
    assert not left, f"left behind: {left}"
    assert not t.strays(), t.strays()


def test_it_proves_what_it_says(t):
    def used():
        usage = resource.getrusage(resource.RUSAGE_CHILDREN)
        return usage.ru_utime + usage.ru_stime
    before = used()
    said = start(t).communicate(timeout=900 * harness.FACTOR)[0]
    print(said)
    assert said.count("proved:") == 3 and "Done in" in said, said
    assert used() - before < 60, f"it took {used() - before:.1f} s of a processor"
    check_nothing_left(t)


def test_it_is_interrupted(t):
    """Ctrl-C at different moments: the signal goes to the whole group, as a terminal sends it."""
    for moment in ("Two disks", "Serving", "backup meanwhile"):
        process = start(t)
        said = ""
        while moment not in said:
            line = process.stdout.readline()
            assert line, f"it ended before {moment!r}:\n{said}"
            said += line
        time.sleep(0.7)
        os.killpg(process.pid, signal.SIGINT)
        process.stdout.read()
        code = process.wait(240 * harness.FACTOR)
        assert code in (130, -signal.SIGINT), f"it ended with {code} after {moment!r}"
        check_nothing_left(t)


harness.main()
