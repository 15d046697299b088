# Kernel socket declarations that Cython does not ship. Constants are of the x86-64 and arm64 ABI (uapi/linux/udp.h,
# asm-generic/socket.h): installed headers may be older than the running kernel.
from libc.stdint cimport uint8_t, uint16_t, uint32_t
from posix.uio cimport iovec

cdef extern from "<sys/socket.h>" nogil:
    struct sockaddr:
        pass
    struct msghdr:
        void* msg_name
        uint32_t msg_namelen
        iovec* msg_iov
        size_t msg_iovlen
        void* msg_control
        size_t msg_controllen
        int msg_flags
    struct mmsghdr:
        msghdr msg_hdr
        unsigned int msg_len
    struct cmsghdr:
        size_t cmsg_len
        int cmsg_level
        int cmsg_type
    ssize_t sendmsg(int, const msghdr*, int)
    int sendmmsg(int, mmsghdr*, unsigned int, int)
    int recvmmsg(int, mmsghdr*, unsigned int, int, void*)
    enum:
        MSG_DONTWAIT
        MSG_TRUNC
        SOL_SOCKET

cdef enum:
    SOL_IP = 0
    SOL_IPV6 = 41
    SOL_UDP = 17
    UDP_SEGMENT = 103
    UDP_GRO = 104
    IP_TOS = 1
    IPV6_TCLASS = 67
    SO_RXQ_OVFL = 40

cdef extern from "<poll.h>" nogil:
    struct pollfd:
        int fd
        short events
        short revents
    int poll(pollfd*, unsigned long, int)
    enum:
        POLLIN
        POLLOUT
