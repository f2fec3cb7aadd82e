"""HTTP/1.1 as bytes on a socket: for requests that no client would send."""
import base64
import os
import socket
from collections import namedtuple

from httpd import PORT

Answer = namedtuple("Answer", "status fields body complete")


def get_all(answer, name):
    return [value for key, value in answer.fields if key == name.lower()]


def rdma_field(answer):
    """The RDMA field as a dictionary of strings; None when there is none.
    Checks that it is nominated."""
    lines = get_all(answer, "RDMA")
    if not lines:
        return None
    options = ",".join(get_all(answer, "Connection")).lower()
    assert "rdma" in [word.strip() for word in options.split(",")], \
        f"RDMA is not nominated: {answer.fields}"
    members = {}
    for member in ", ".join(lines).split(", "):
        name, _, value = member.partition("=")
        members[name.partition(";")[0]] = value
    return members


def declined(answer):
    """The reason, or None without a field."""
    members = rdma_field(answer)
    return members and members.get("declined")


def field(number=1, port=1024, token=None, offers=("write", "read"),
          window=1 << 20, addr=None):
    """A request field that is right in every way, for an endpoint that need
    not be there."""
    token = base64.b64encode(token or os.urandom(16)).decode()
    parts = [f"v=1, port={port}"]
    if addr:
        parts.append(f'addr="{addr}"')
    parts.append(f"token=:{token}:, id={number}")
    for offer in offers:
        if offer == "write":
            offer += f';stag="00000100";to="00007f0000000000";len={window}'
        parts.append(offer)
    return ", ".join(parts)


class Connection:
    """One HTTP connection from the client's host."""

    def __init__(self, lab, family=4, server=None, port=PORT, seconds=30):
        where = socket.AF_INET if family == 4 else socket.AF_INET6

        def connect():
            sock = socket.socket(where)
            sock.settimeout(seconds)
            sock.bind((lab.client(family), 0))
            sock.connect((server or lab.server(family), port))
            return sock
        self.socket = lab.in_client(connect)
        self._stream = self.socket.makefile("rb")

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def close(self):
        self._stream.close()
        self.socket.close()

    def send(self, path, rdma=None, method="GET", version="1.1",
             connection="RDMA", fields=(), host="server"):
        """One request; connection is the Connection field or None."""
        lines = [f"{method} {path} HTTP/{version}", f"Host: {host}"]
        if connection is not None:
            lines.append(f"Connection: {connection}")
        if rdma is not None:
            values = [rdma] if isinstance(rdma, (str, bytes)) else rdma
            lines += [b"RDMA: " + v if isinstance(v, bytes) else f"RDMA: {v}"
                      for v in values]
        lines += fields
        raw = b"\r\n".join(line if isinstance(line, bytes) else line.encode()
                           for line in lines)
        self.socket.sendall(raw + b"\r\n\r\n")

    def answer(self, method="GET"):
        status = self._stream.readline().decode()
        if not status:
            raise AssertionError("the server has closed the connection")
        code = int(status.split()[1])
        fields = []
        while True:
            line = self._stream.readline().decode("latin-1").rstrip("\r\n")
            if not line:
                break
            name, _, value = line.partition(":")
            fields.append((name.lower(), value.strip()))
        body, complete = self._body(dict(fields), code, method)
        return Answer(code, fields, body, complete)

    def _body(self, fields, code, method):
        if method == "HEAD" or code in (204, 304) or code < 200:
            return b"", True
        if "chunked" in fields.get("transfer-encoding", ""):
            body = b""
            while True:
                line = self._stream.readline()
                if not line:
                    return body, False
                size = int(line.split(b";")[0], 16)
                chunk = self._stream.read(size + 2)
                body += chunk[:size]
                if size == 0:
                    return body, True
        if "content-length" in fields:
            length = int(fields["content-length"])
            body = self._stream.read(length)
            return body, len(body) == length
        return self._stream.read(), True

    def get(self, path, rdma=None, **options):
        self.send(path, rdma, **options)
        return self.answer(options.get("method", "GET"))
