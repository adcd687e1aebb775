"""A Tap stands in front of a member, which advertises it, and records what is sent there: for each connection, all bytes."""
import socket
import struct
import threading
import time

from cluster import free_port


class Tap:
    """rate: bytes a second that each connection passes on; None: all. While `through` is cleared, nothing gets to the member."""

    def __init__(self, target, rate=None):
        self.target = target
        self.rate = rate
        self.port = free_port()
        self.address = "127.0.0.1:%d" % self.port
        self.recorded = []
        self.through = threading.Event()
        self.through.set()
        self.server = socket.create_server(("127.0.0.1", self.port))
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self):
        while True:
            try:
                near, _ = self.server.accept()
            except OSError:
                return
            try:
                far = socket.create_connection(("127.0.0.1", self.target))
            except OSError:
                near.close()
                continue
            tape = bytearray()
            self.recorded.append(tape)
            threading.Thread(target=self._pass, args=(near, far, tape), daemon=True).start()
            threading.Thread(target=self._pass, args=(far, near, None), daemon=True).start()

    def _pass(self, a, b, tape):
        try:
            while True:
                data = a.recv(65536)
                if not data:
                    break
                if tape is not None:
                    self.through.wait()
                    tape += data
                    if self.rate:
                        time.sleep(len(data) / self.rate)
                b.sendall(data)
        except OSError:
            pass
        for s in (a, b):
            try:
                s.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass

    def close(self):
        self.through.set()
        self.server.close()


def messages(tape):
    """nanomsg's framing: 8 bytes, then messages with their length in front, big-endian."""
    at, out = 8, []
    while at + 8 <= len(tape):
        n, = struct.unpack_from(">Q", tape, at)
        if at + 8 + n > len(tape):
            break
        out.append(bytes(tape[at + 8:at + 8 + n]))
        at += 8 + n
    return out
