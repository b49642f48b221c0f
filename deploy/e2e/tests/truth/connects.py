"""Connects of every kind that needs no other machine; the ports are listened on by the test."""

import ctypes
import os
import socket
import struct
import sys

port4, port6, stream, datagram, abstract = sys.argv[1:]


def connect(family, kind, address):
    with socket.socket(family, kind) as one:
        print(family.name, kind.name, one.connect_ex(address))


connect(socket.AF_INET, socket.SOCK_STREAM, ("127.0.0.1", int(port4)))
connect(socket.AF_INET6, socket.SOCK_STREAM, ("::1", int(port6)))
connect(socket.AF_INET6, socket.SOCK_STREAM, ("::ffff:127.0.0.1", int(port4)))
connect(socket.AF_INET, socket.SOCK_STREAM, ("127.0.0.1", 9))
connect(socket.AF_INET6, socket.SOCK_STREAM, ("::1", 9))
connect(socket.AF_INET, socket.SOCK_DGRAM, ("127.0.0.1", 53))
connect(socket.AF_INET6, socket.SOCK_DGRAM, ("::1", 53))
connect(socket.AF_INET, socket.SOCK_STREAM, ("255.255.255.255", 80))
connect(socket.AF_UNIX, socket.SOCK_STREAM, stream)
connect(socket.AF_UNIX, socket.SOCK_DGRAM, datagram)
connect(socket.AF_UNIX, socket.SOCK_STREAM, datagram)
connect(socket.AF_UNIX, socket.SOCK_STREAM, "\0" + abstract)
connect(socket.AF_UNIX, socket.SOCK_STREAM, "\0" + abstract + "-missing")
connect(socket.AF_UNIX, socket.SOCK_STREAM, "missing.sock")
os.mkdir("sub")
os.chdir("sub")
connect(socket.AF_UNIX, socket.SOCK_STREAM, "../missing.sock")

# Twice on the same socket, and one that is not listening yet.
with socket.socket() as twice:
    print(twice.connect_ex(("127.0.0.1", int(port4))), twice.connect_ex(("127.0.0.1", int(port4))))
with socket.create_connection(("127.0.0.1", int(port4))):
    pass


def raw(descriptor, address, length):
    libc = ctypes.CDLL(None, use_errno=True)
    print(libc.connect(descriptor, address, length), ctypes.get_errno())


# What Python would not do: taking an association back, an address cut short, no socket, no descriptor.
ipv4 = struct.pack("=H", socket.AF_INET) + struct.pack(">H4s8x", 9, bytes([127, 0, 0, 3]))
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as one:
    one.connect(("127.0.0.1", 54))
    raw(one.fileno(), struct.pack("=H14x", socket.AF_UNSPEC), 16)
    raw(one.fileno(), ipv4, 8)
with open("/dev/null", "rb") as file:
    raw(file.fileno(), ipv4, 16)
raw(999, ipv4, 16)
if os.fork() == 0:
    connect(socket.AF_INET, socket.SOCK_STREAM, ("127.0.0.2", 9))
    os._exit(0)
os.wait()
