"""A file system in user space whose files take their time: a FUSE server on /dev/fuse itself, for one file.

`mount(folder)` returns a server; while its `delay_s` is above 0, opening `data.bin`, reading it and syncing it each
take that long. The server runs in a process of its own. The protocol is that of include/uapi/linux/fuse.h, 7.31.
"""

import ctypes
import errno
import os
import stat
import struct
import sys
import time

LIBC = ctypes.CDLL(None, use_errno=True)
NAME = b"data.bin"
SIZE = 64 * 1024 * 1024

LOOKUP, FORGET, GETATTR, SETATTR, OPEN, READ, WRITE, STATFS, RELEASE, FSYNC = 1, 2, 3, 4, 14, 15, 16, 17, 18, 20
FLUSH, INIT, OPENDIR, READDIR, RELEASEDIR, INTERRUPT, DESTROY, BATCH_FORGET = 25, 26, 27, 28, 29, 36, 38, 42
SLOW = {OPEN, READ, FSYNC}
SILENT = {FORGET, BATCH_FORGET, INTERRUPT}

# Reads and writes go to the server as they come, without the page cache.
FOPEN_DIRECT_IO = 1
# Of pages, several requests at a time: whoever reads then waits for the page.
ASYNC_READ = 1

IN_HEADER = struct.Struct("<IIQQIIIHH")
OUT_HEADER = struct.Struct("<IiQ")
ATTRIBUTES = struct.Struct("<QQQQQQIIIIIIIIII")


def attributes(node):
    mode = stat.S_IFDIR | 0o755 if node == 1 else stat.S_IFREG | 0o644
    size = 0 if node == 1 else SIZE
    return ATTRIBUTES.pack(node, size, size // 512, 0, 0, 0, 0, 0, 0, mode, 1, 0, 0, 0, 4096, 0)


class Server:
    def __init__(self, device, control, cached):
        self.device = device
        self.control = control
        self.cached = cached
        self.delay_s = 0.0
        self.written = {}

    def serve(self):
        os.set_blocking(self.control, False)
        while True:
            try:
                request = os.read(self.device, 1024 * 1024 + 4096)
            except OSError as error:
                if error.errno in (errno.EINTR, errno.EAGAIN, errno.ENOENT):
                    continue
                return
            self.obey()
            _, code, unique, node, *_ = IN_HEADER.unpack_from(request)
            body = request[IN_HEADER.size :]
            if code in SLOW and self.delay_s > 0 and node != 1:
                time.sleep(self.delay_s)
            if code in SILENT:
                continue
            try:
                reply, failed = self.answer(code, node, body), 0
            except OSError as error:
                reply, failed = b"", -error.errno
            os.write(self.device, OUT_HEADER.pack(OUT_HEADER.size + len(reply), failed, unique) + reply)
            if code == DESTROY:
                return

    def obey(self):
        try:
            orders = os.read(self.control, 4096)
        except BlockingIOError:
            return
        if orders:
            self.delay_s = float(orders.split()[-1])

    def answer(self, code, node, body):
        if code == INIT:
            major, minor, ahead, _ = struct.unpack_from("<IIII", body)
            return struct.pack("<IIIIHHIIHHIIIIIII", 7, min(minor, 31), ahead, ASYNC_READ if self.cached else 0, 12, 9, 131072, 1, 0, 0, *[0] * 7)
        if code == LOOKUP:
            if node != 1 or body.rstrip(b"\0") != NAME:
                raise OSError(errno.ENOENT, "")
            return struct.pack("<QQQQII", 2, 0, 0, 0, 0, 0) + attributes(2)
        if code in (GETATTR, SETATTR):
            return struct.pack("<QII", 0, 0, 0) + attributes(node)
        if code in (OPEN, OPENDIR):
            return struct.pack("<QII", 1, 0 if self.cached else FOPEN_DIRECT_IO, 0)
        if code == READ:
            _, offset, size = struct.unpack_from("<QQI", body)
            size = max(0, min(size, SIZE - offset))
            blocks = range(offset - offset % 512, offset + size, 512)
            data = b"".join(self.written.get(block, bytes(512)) for block in blocks)
            return data[offset % 512 :][:size]
        if code == WRITE:
            _, offset, size = struct.unpack_from("<QQI", body)
            data = body[40 : 40 + size]
            for at in range(0, size, 512):
                self.written[offset + at] = data[at : at + 512].ljust(512, b"\0")
            return struct.pack("<II", size, 0)
        if code == STATFS:
            return struct.pack("<QQQQQIIII24x", 1 << 20, 1 << 20, 1 << 20, 100, 100, 4096, 255, 4096, 0)
        if code in (RELEASE, RELEASEDIR, FLUSH, FSYNC, DESTROY):
            return b""
        if code == READDIR:
            return b""
        raise OSError(errno.ENOSYS, "")


class Slow:
    """The mounted file system, as whoever uses it has it."""

    def __init__(self, folder, cached=False):
        self.folder = str(folder)
        self.path = os.path.join(self.folder, NAME.decode())
        device = os.open("/dev/fuse", os.O_RDWR)
        orders, self.orders = os.pipe()
        options = f"fd={device},rootmode=40000,user_id=0,group_id=0,allow_other"
        if LIBC.mount(b"slow", self.folder.encode(), b"fuse.slow", 0, options.encode()) < 0:
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
        self.pid = os.fork()
        if self.pid == 0:
            try:
                os.close(self.orders)
                Server(device, orders, cached).serve()
            finally:
                os._exit(0)
        os.close(device)
        os.close(orders)

    def takes(self, seconds):
        os.write(self.orders, f"{seconds}\n".encode())

    def ends(self):
        os.write(self.orders, b"0\n")
        LIBC.umount2(self.folder.encode(), 2)
        os.close(self.orders)
        os.waitpid(self.pid, 0)


if __name__ == "__main__":
    slow = Slow(sys.argv[1])
    slow.takes(0.3)
    start = time.monotonic()
    with open(slow.path, "rb", buffering=0) as file:
        print("open", time.monotonic() - start)
        file.read(100)
        print("read", time.monotonic() - start)
    slow.ends()
