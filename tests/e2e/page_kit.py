# SPDX-License-Identifier: GPL-2.0-or-later
"""The commands and files that a page of docs/ shows, for the tests that run them."""
import re
import shlex
import textwrap

import harness


class Page:
    """The fenced blocks of a page, in their order, as (language, text); those of a list are indented."""

    def __init__(self, name):
        self.name = name
        text = (harness.ROOT / name).read_text()
        self.blocks = [(kind, textwrap.dedent(block)) for _, kind, block in
                       re.findall(r"^( *)```(\w*)\n(.*?)^\1```$", text, re.M | re.S)]

    def only(self, language):
        return [text for kind, text in self.blocks if kind == language]

    def commands(self):
        """The shell commands, one each, continued lines joined."""
        lines = "".join(self.only("sh")).replace("\\\n", " ").splitlines()
        return [" ".join(line.split()) for line in lines if line.strip() and not line.lstrip().startswith("#")]

    def pick(self, word):
        """All commands that begin with that word, without the `&` at their end."""
        found = [c.removesuffix("&").strip() for c in self.commands() if c.split()[0] == word]
        assert found, f"{self.name}: no command begins with {word}"
        return found


def start_daemon(t, command, log="fleeced.log", program=None):
    """Starts `fleeced …` of a page in the case's folder, or another program in its place, and waits until it is ready. Its
    control socket is web1.sock."""
    words = shlex.split(command)
    assert words.pop(0) == "fleeced", command
    nbd = words[words.index("--nbd") + 1]
    assert nbd.startswith("unix:") and words[words.index("--control") + 1] == "web1.sock", command
    daemon = harness.Daemon(t, [program or t.program("fleeced"), *words], t.path("web1.sock"), f"unix:{t.path(nbd[5:])}",
                            t.environment, log, cwd=t.dir)
    t.daemons.append(daemon)
    daemon.wait_ready()
    return daemon


def run(t, command):
    """Runs `fleece …` of a page."""
    words = shlex.split(command)
    assert words.pop(0) == "fleece", command
    return t.fleece(*words, cwd=t.dir, timeout=120).stdout
