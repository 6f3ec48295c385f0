# SPDX-License-Identifier: GPL-2.0-or-later
"""A server on a unix socket with one client at a time, on a thread of its own."""
import contextlib
import socket
import threading


class Listener:
    def __init__(self, path):
        self.path, self.over = path, False
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind(str(path))
        self.listener.listen(4)
        self.listener.settimeout(0.1)
        self.thread = threading.Thread(target=self.accept, daemon=True)
        self.thread.start()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.over = True
        self.thread.join(20)
        self.listener.close()

    def accept(self):
        while not self.over:
            with contextlib.suppress(TimeoutError):
                client = self.listener.accept()[0]
                with client, contextlib.suppress(OSError):
                    self.serve(client)

    def serve(self, client):
        """Until it has gone, or self.over."""
        raise NotImplementedError
