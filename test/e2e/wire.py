"""Counts what goes over the wire, to tell which way a body went."""
import ctypes
import socket
import struct

ETH_P_ALL = 3
PACKET_OUTGOING = 4
SO_ATTACH_FILTER = 26
SO_RCVBUFFORCE = 33
SNAP = 80  # bytes of a packet that are looked at


def _filter(port):
    """Packets of TCP from this port, by IPv4 without options or by IPv6."""
    steps = (
        (0x28, 0, 0, 12),      # 0  ldh [12]: the protocol
        (0x15, 0, 4, 0x0800),  # 1  IPv4, or to 6
        (0x30, 0, 0, 23),      # 2  ldb [23]
        (0x15, 0, 8, 6),       # 3  TCP, or to 12
        (0x28, 0, 0, 34),      # 4  ldh [34]: the source port
        (0x15, 5, 6, port),    # 5  to 11, or to 12
        (0x15, 0, 5, 0x86dd),  # 6  IPv6, or to 12
        (0x30, 0, 0, 20),      # 7  ldb [20]
        (0x15, 0, 3, 6),       # 8  TCP, or to 12
        (0x28, 0, 0, 54),      # 9  ldh [54]: the source port
        (0x15, 0, 1, port),    # 10 to 11, or to 12
        (0x06, 0, 0, SNAP),    # 11 the packet's beginning
        (0x06, 0, 0, 0),       # 12 nothing
    )
    return b"".join(struct.pack("HBBI", *step) for step in steps), len(steps)


def _payload(packet):
    if packet[12:14] == b"\x08\x00":
        length = struct.unpack("!H", packet[16:18])[0] - 20
        tcp = packet[34:]
    else:
        length = struct.unpack("!H", packet[18:20])[0]
        tcp = packet[54:]
    return max(0, length - (tcp[12] >> 4) * 4)


class Wire:
    """The payload of all TCP packets that the server has sent from its HTTP
    port; retransmissions count again."""

    def __init__(self, port):
        program, steps = _filter(port)
        self._program = ctypes.create_string_buffer(program)
        self._socket = socket.socket(socket.AF_PACKET, socket.SOCK_RAW,
                                     socket.htons(ETH_P_ALL))
        # The whole packet counts against it.
        self._socket.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, 64 << 20)
        self._socket.setsockopt(
            socket.SOL_SOCKET, SO_ATTACH_FILTER,
            struct.pack("HP", steps, ctypes.addressof(self._program)))
        self._socket.setblocking(False)
        # What came before the filter was there.
        for _ in self._packets():
            pass

    def _packets(self):
        while True:
            try:
                packet, address = self._socket.recvfrom(SNAP)
            except BlockingIOError:
                return
            if address[2] == PACKET_OUTGOING:
                yield packet

    def take(self):
        """Bytes since the last call."""
        return sum(_payload(packet) for packet in self._packets())

    def close(self):
        self._socket.close()
