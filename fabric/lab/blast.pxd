from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t

cdef extern from "<sys/socket.h>" nogil:
    ctypedef uint32_t socklen_t
    cdef struct sockaddr:
        pass
    cdef struct sockaddr_storage:
        pass
    cdef struct iovec:
        void* iov_base
        size_t iov_len
    cdef struct msghdr:
        void* msg_name
        socklen_t msg_namelen
        iovec* msg_iov
        size_t msg_iovlen
    cdef struct mmsghdr:
        msghdr msg_hdr
        unsigned int msg_len
    cdef struct timespec:
        long tv_sec
        long tv_nsec
    ssize_t send(int fd, const void* data, size_t length, int flags)
    ssize_t recv(int fd, void* data, size_t length, int flags)
    ssize_t sendto(int fd, const void* data, size_t length, int flags, const sockaddr* to, socklen_t size)
    ssize_t recvfrom(int fd, void* data, size_t length, int flags, sockaddr* source, socklen_t* size)
    int sendmmsg(int fd, mmsghdr* messages, unsigned int count, int flags)
    int recvmmsg(int fd, mmsghdr* messages, unsigned int count, int flags, timespec* timeout)
    int MSG_DONTWAIT

cdef extern from "<poll.h>" nogil:
    cdef struct pollfd:
        int fd
        short events
        short revents
    int poll(pollfd* fds, unsigned long count, int timeout)
    short POLLIN
    short POLLOUT

cdef extern from "<time.h>" nogil:
    int clock_gettime(int clock, timespec* at)
    int clock_nanosleep(int clock, int flags, const timespec* at, timespec* left)
    int CLOCK_MONOTONIC
    int TIMER_ABSTIME

cdef extern from "<errno.h>" nogil:
    int errno
    int EAGAIN
    int EINTR

cdef int64_t now() noexcept nogil
cdef void sleep_until(int64_t at) noexcept nogil
cdef int64_t send_streams(pollfd* fds, uint32_t count, const uint8_t* data, size_t size, int64_t deadline) noexcept nogil
cdef int64_t drain_streams(pollfd* fds, uint32_t count, uint8_t* data, size_t size, int64_t deadline) noexcept nogil
cdef int64_t blast_bursts(const int* fds, uint32_t count, mmsghdr* messages, uint32_t burst, uint32_t batches, int64_t deadline) noexcept nogil
cdef int64_t blast_interleaved(const int* fds, uint32_t count, const mmsghdr* messages, uint32_t total, int64_t deadline) noexcept nogil
cdef int64_t drain_datagrams(int fd, mmsghdr* messages, uint32_t count, int64_t deadline) noexcept nogil
cdef uint32_t exchange(int fd, uint8_t* data, size_t size, int64_t* samples, uint32_t limit, int64_t interval, int64_t deadline) noexcept nogil
cdef int64_t echo(int fd, uint8_t* data, size_t size, int64_t deadline) noexcept nogil
