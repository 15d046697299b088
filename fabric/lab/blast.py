# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
# ruff: noqa: F821 - C names come from blast.pxd
"""Bounded traffic loops that run without the GIL: what the lab and the benchmarks load the fabric with.

Every loop ends at a deadline, also when nothing arrives, and works on sockets that the caller made and bound.
`fabric.lab.traffic` wraps them as commands. Sizes are bytes, times are seconds in the Python calls and
nanoseconds of CLOCK_MONOTONIC inside.

* TCP: one thread, poll, plain send() and recv() of `size` bytes on every ready stream, as iperf3 does. No zero-copy.
* UDP: `burst` datagrams of one flow per sendmmsg(), then the next flow; or one send() per datagram with the flow
  changing every time, which no batching on the way can hide.
* Request and response: one datagram in flight; a lost one costs the socket's receive timeout and gives no sample.
"""

import cython
from cython.cimports.libc.stdint import int64_t, uint8_t, uint32_t
from cython.cimports.libc.stdlib import calloc, free
from cython.cimports.libc.string import memcpy, memset

NANOSECONDS = 1_000_000_000
RECEIVE_BATCH = 64
RECEIVE_SIZE = 2048


def now():
    """CLOCK_MONOTONIC in nanoseconds."""
    at: timespec
    clock_gettime(CLOCK_MONOTONIC, cython.address(at))
    return cython.cast(int64_t, at.tv_sec) * 1000000000 + at.tv_nsec


def sleep_until(at):
    """Sleep to an absolute time, so that a late wake-up does not shift the ones after it."""
    target: timespec
    target.tv_sec = at // 1000000000
    target.tv_nsec = at % 1000000000
    clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, cython.address(target), cython.NULL)


def send_streams(fds, count, data, size, deadline):
    """Send on whatever stream is writable until the deadline; bytes taken by the kernel."""
    total: int64_t = 0
    i: uint32_t
    done: cython.Py_ssize_t
    open_count: uint32_t = count
    while open_count > 0 and now() < deadline:
        if poll(fds, count, 100) <= 0:
            continue
        for i in range(count):
            if fds[i].fd < 0 or fds[i].revents == 0:
                continue
            done = send(fds[i].fd, data, size, MSG_DONTWAIT)
            if done > 0:
                total += done
            elif done < 0 and errno != EAGAIN and errno != EINTR:
                fds[i].fd = -1
                open_count -= 1
    return total


def drain_streams(fds, count, data, size, deadline):
    """Receive from every readable stream until the deadline or all have ended (their fd becomes -1); bytes."""
    total: int64_t = 0
    i: uint32_t
    done: cython.Py_ssize_t
    open_count: uint32_t = 0
    for i in range(count):
        if fds[i].fd >= 0:
            open_count += 1
    while open_count > 0 and now() < deadline:
        if poll(fds, count, 50) <= 0:
            continue
        for i in range(count):
            if fds[i].fd < 0 or fds[i].revents == 0:
                continue
            done = recv(fds[i].fd, data, size, MSG_DONTWAIT)
            if done > 0:
                total += done
            elif done == 0 or (errno != EAGAIN and errno != EINTR):
                fds[i].fd = -1
                open_count -= 1
    return total


def blast_bursts(fds, count, messages, burst, batches, deadline):
    """`burst` datagrams per sendmmsg(), flows in turn; `messages` holds `batches` bursts one after the other."""
    total: int64_t = 0
    flow: uint32_t = 0
    batch: uint32_t = 0
    done: cython.int
    while now() < deadline:
        done = sendmmsg(fds[flow], cython.address(messages[batch * burst]), burst, 0)
        if done > 0:
            total += done
        flow = flow + 1 if flow + 1 < count else 0
        if flow == 0:
            batch = batch + 1 if batch + 1 < batches else 0
    return total


def blast_interleaved(fds, count, messages, total, deadline):
    """One send() per datagram, the flow changes with each; `messages` gives `total` sizes in order."""
    sent: int64_t = 0
    flow: uint32_t = 0
    i: uint32_t = 0
    _turn: uint32_t
    while now() < deadline:
        for _turn in range(64):
            if send(fds[flow], messages[i].msg_hdr.msg_iov.iov_base, messages[i].msg_hdr.msg_iov.iov_len, 0) >= 0:
                sent += 1
            flow = flow + 1 if flow + 1 < count else 0
            if flow == 0:
                i = i + 1 if i + 1 < total else 0
    return sent


def drain_datagrams(fd, messages, count, deadline):
    """Receive and count datagrams until the deadline."""
    total: int64_t = 0
    done: cython.int
    ready: pollfd
    ready.fd = fd
    ready.events = POLLIN
    while now() < deadline:
        done = recvmmsg(fd, messages, count, MSG_DONTWAIT, cython.NULL)
        if done > 0:
            total += done
        else:
            poll(cython.address(ready), 1, 20)
    return total


def exchange(fd, data, size, samples, limit, interval, deadline):
    """Round trips in nanoseconds into `samples`; the first 8 bytes number the request, late answers are skipped."""
    count: uint32_t = 0
    number: int64_t = 0
    echoed: int64_t = 0
    start: int64_t
    next_at: int64_t = now()
    done: cython.Py_ssize_t
    while count < limit and now() < deadline:
        if interval > 0:
            next_at += interval
            sleep_until(next_at)
        number += 1
        memcpy(data, cython.address(number), 8)
        start = now()
        if send(fd, data, size, 0) < 0:
            continue
        while True:
            done = recv(fd, data, size, 0)
            if done < 8:
                break
            memcpy(cython.address(echoed), data, 8)
            if echoed == number:
                samples[count] = now() - start
                count += 1
                break
    return count


def echo(fd, data, size, deadline):
    """Send every datagram back to where it came from until the deadline; the number answered."""
    total: int64_t = 0
    source: sockaddr_storage
    length: socklen_t
    done: cython.Py_ssize_t
    while now() < deadline:
        length = cython.sizeof(sockaddr_storage)
        done = recvfrom(
            fd, data, size, 0, cython.cast(cython.pointer(sockaddr), cython.address(source)), cython.address(length)
        )
        if done >= 0:
            sendto(fd, data, done, 0, cython.cast(cython.pointer(sockaddr), cython.address(source)), length)
            total += 1
    return total


@cython.cclass
class Streams:
    """TCP streams driven together by one thread; `size` is the length of one send() or recv()."""

    fds: cython.pointer(pollfd)
    data: cython.pointer(uint8_t)
    count: uint32_t
    size: cython.size_t

    def __cinit__(self, fds: list, size: int = 131072) -> None:
        self.count = len(fds)
        self.size = size
        self.fds = cython.cast(cython.pointer(pollfd), calloc(len(fds) + 1, cython.sizeof(pollfd)))
        self.data = cython.cast(cython.pointer(uint8_t), calloc(1, size))
        if self.fds == cython.NULL or self.data == cython.NULL:
            raise MemoryError
        for i in range(len(fds)):
            self.fds[i].fd = fds[i]

    def __dealloc__(self):
        free(self.fds)
        free(self.data)

    def open_count(self) -> int:
        """Streams that have not ended."""
        return sum(1 for i in range(self.count) if self.fds[i].fd >= 0)

    def transmit(self, seconds: float) -> int:
        """Send for `seconds`; returns the bytes the kernel took."""
        deadline: int64_t = now() + int(seconds * NANOSECONDS)
        total: int64_t
        for i in range(self.count):
            self.fds[i].events = POLLOUT
        with cython.nogil:
            total = send_streams(self.fds, self.count, self.data, self.size, deadline)
        return total

    def drain(self, seconds: float) -> int:
        """Receive for at most `seconds`, less when every stream ends; returns bytes."""
        deadline: int64_t = now() + int(seconds * NANOSECONDS)
        total: int64_t
        for i in range(self.count):
            self.fds[i].events = POLLIN
        with cython.nogil:
            total = drain_streams(self.fds, self.count, self.data, self.size, deadline)
        return total


@cython.cclass
class Messages:
    """An mmsghdr array over one buffer per message; `sizes` is repeated to fill `count` messages."""

    headers: cython.pointer(mmsghdr)
    vectors: cython.pointer(iovec)
    data: cython.pointer(uint8_t)
    count: uint32_t

    def __cinit__(self, sizes: list, count: int) -> None:
        largest: cython.size_t = max(sizes)
        i: uint32_t
        self.count = count
        self.headers = cython.cast(cython.pointer(mmsghdr), calloc(count, cython.sizeof(mmsghdr)))
        self.vectors = cython.cast(cython.pointer(iovec), calloc(count, cython.sizeof(iovec)))
        self.data = cython.cast(cython.pointer(uint8_t), calloc(count, largest))
        if self.headers == cython.NULL or self.vectors == cython.NULL or self.data == cython.NULL:
            raise MemoryError
        memset(self.data, 0x5A, count * largest)
        for i in range(self.count):
            self.vectors[i].iov_base = self.data + i * largest
            self.vectors[i].iov_len = sizes[i % len(sizes)]
            self.headers[i].msg_hdr.msg_iov = cython.address(self.vectors[i])
            self.headers[i].msg_hdr.msg_iovlen = 1

    def __dealloc__(self):
        free(self.headers)
        free(self.vectors)
        free(self.data)


def udp_blast(fds: list, sizes: list, burst: int, seconds: float) -> int:
    """Send datagrams on the connected sockets `fds`, one flow each, as fast as the kernel takes them.

    `burst` above 1: that many datagrams of one flow per sendmmsg(); `burst` 1: one send() each, flows interleaved.
    The sizes repeat in order. Returns the datagrams the kernel took.
    """
    count: uint32_t = len(fds)
    batch: uint32_t = burst
    batches: uint32_t = len(sizes)
    deadline: int64_t = now() + int(seconds * NANOSECONDS)
    total: int64_t
    messages: Messages = Messages(sizes, max(1, burst) * len(sizes))
    flows = cython.cast(cython.p_int, calloc(len(fds), cython.sizeof(cython.int)))
    if flows == cython.NULL:
        raise MemoryError
    try:
        for i in range(len(fds)):
            flows[i] = fds[i]
        with cython.nogil:
            if batch > 1:
                total = blast_bursts(flows, count, messages.headers, batch, batches, deadline)
            else:
                total = blast_interleaved(flows, count, messages.headers, batches, deadline)
    finally:
        free(flows)
    return total


def udp_drain(fd: cython.int, seconds: float) -> int:
    """Receive and count datagrams (recvmmsg, 64 at a time) for `seconds`."""
    deadline: int64_t = now() + int(seconds * NANOSECONDS)
    total: int64_t
    messages: Messages = Messages([RECEIVE_SIZE], RECEIVE_BATCH)
    with cython.nogil:
        total = drain_datagrams(fd, messages.headers, messages.count, deadline)
    return total


def rr_exchange(fd: cython.int, samples: cython.longlong[::1], size: int, interval: float, seconds: float) -> int:
    """Request and response on a connected socket with a receive timeout; fills `samples` (nanoseconds).

    `interval` 0 is back to back, else one request per `interval` seconds. Returns the number of samples.
    """
    data = cython.declare(cython.uchar[65536])
    length: cython.size_t = min(max(8, size), 65536)
    gap: int64_t = int(interval * NANOSECONDS)
    deadline: int64_t = now() + int(seconds * NANOSECONDS)
    limit: uint32_t = samples.shape[0]
    count: uint32_t
    if limit == 0:
        return 0
    memset(data, 0x5A, 65536)
    target = cython.cast(cython.pointer(int64_t), cython.address(samples[0]))
    with cython.nogil:
        count = exchange(fd, data, length, target, limit, gap, deadline)
    return count


def rr_echo(fd: cython.int, seconds: float) -> int:
    """Answer every datagram with itself for `seconds` (the socket needs a receive timeout); returns the count."""
    data = cython.declare(cython.uchar[65536])
    deadline: int64_t = now() + int(seconds * NANOSECONDS)
    total: int64_t
    with cython.nogil:
        total = echo(fd, data, 65536, deadline)
    return total
