from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from posix.uio cimport iovec
from encap.net cimport mmsghdr
from encap.vtep cimport Carried, Vtep

cdef enum:
    MAX_PAYLOAD = 65487          # UDP payload of one send that fits IPv4 and IPv6
    MAX_SEGMENTS = 64            # UDP_MAX_SEGMENTS before Linux 6.9
    QUEUE_MESSAGES = 64
    QUEUE_IOVECS = 512
    CONTROL_SIZE = 48
    MAX_QUEUES = 16              # source ports per family

# Datagrams waiting for one transmit socket, in order. A message is a train: datagrams of one size, the last may be
# shorter, to one VTEP.
cdef struct SendQueue:
    int fd
    uint8_t family
    uint16_t source_port
    uint32_t count               # messages
    uint32_t iovecs
    mmsghdr messages[QUEUE_MESSAGES]
    uint8_t control[QUEUE_MESSAGES][CONTROL_SIZE]
    const Vtep* vtep[QUEUE_MESSAGES]
    uint32_t segment_size[QUEUE_MESSAGES]
    uint32_t segments[QUEUE_MESSAGES]
    uint32_t bytes[QUEUE_MESSAGES]
    uint8_t ecn[QUEUE_MESSAGES]
    uint8_t closed[QUEUE_MESSAGES]
    iovec iov[QUEUE_IOVECS]

cdef struct Transmitter:
    uint32_t sockets4
    uint32_t sockets6
    uint64_t dirty               # bit per queue; IPv6 queues start at MAX_QUEUES
    uint8_t segmentation         # UDP_SEGMENT works
    uint32_t batch               # messages per sendmmsg at most
    SendQueue* queues            # 2 * MAX_QUEUES
    uint64_t* drops              # DropReason counters of the owner
    uint64_t datagrams
    uint64_t bytes
    uint64_t sends               # messages handed to the kernel
    uint64_t calls               # system calls
    uint64_t resent              # messages sent again datagram by datagram
    Carried* carried             # by the VTEP's slot: what the kernel took

cdef int transmitter_open(Transmitter* t, uint64_t* drops) noexcept nogil
cdef void transmitter_close(Transmitter* t) noexcept nogil
# Queue for a flow: one flow always has the same source port. NULL when the family has no socket.
cdef SendQueue* queue_for(Transmitter* t, uint8_t family, uint32_t hash) noexcept nogil
# Appends one datagram made of up to two pieces (the second may be empty); the memory must stay until flush.
cdef void add_datagram(Transmitter* t, SendQueue* q, const Vtep* vtep, uint8_t ecn, uint8_t* head, uint32_t head_length,
                       uint8_t* body, uint32_t body_length) noexcept nogil
cdef void flush(Transmitter* t) noexcept nogil
cdef void flush_queue(Transmitter* t, SendQueue* q) noexcept nogil
cdef void start_message(Transmitter* t, SendQueue* q, const Vtep* vtep, uint8_t ecn, uint32_t size) noexcept nogil
cdef void append_iovec(SendQueue* q, uint32_t m, uint8_t* data, uint32_t length) noexcept nogil
cdef void finish_message(Transmitter* t, SendQueue* q, uint32_t m) noexcept nogil
cdef void count_sent(Transmitter* t, const Vtep* vtep, uint32_t segments, uint32_t size) noexcept nogil
cdef void send_singly(Transmitter* t, SendQueue* q, uint32_t m) noexcept nogil
cdef int reason_of(int error) noexcept nogil
