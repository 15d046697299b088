from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from posix.uio cimport iovec
from encap.net cimport mmsghdr

cdef enum:
    RECEIVE_BUFFERS = 64
    RECEIVE_BUFFER_SIZE = 65536
    RECEIVE_CONTROL = 128

# What the kernel says about one received message.
cdef struct Message:
    uint8_t* data
    uint32_t length
    uint32_t gso_size        # 0: one datagram; else datagrams of this size, the last may be shorter
    uint8_t tos              # outer
    uint8_t family
    uint8_t truncated
    uint64_t high            # outer source, as in Vtep
    uint64_t low

cdef struct Receiver:
    uint8_t* buffers
    uint32_t batch           # messages per recvmmsg at most
    uint32_t dirty           # messages from here on are as the next recvmmsg needs them
    uint64_t overflows       # datagrams the socket queue lost (SO_RXQ_OVFL), summed over sockets
    mmsghdr messages[RECEIVE_BUFFERS]
    iovec iov[RECEIVE_BUFFERS]
    uint8_t names[RECEIVE_BUFFERS][32]
    uint8_t control[RECEIVE_BUFFERS][RECEIVE_CONTROL]

cdef int receiver_open(Receiver* r) noexcept nogil
cdef void receiver_close(Receiver* r) noexcept nogil
# Receives into buffers from `first` on, at most `batch`; number of messages, 0 when there is none, -1 on error.
cdef int receive_batch(Receiver* r, int fd, uint32_t first) noexcept nogil
# Decodes message i of the batch. `drops` is the socket's running SO_RXQ_OVFL count, updated.
cdef void read_message(Receiver* r, uint32_t i, Message* message, uint32_t* drops) noexcept nogil
