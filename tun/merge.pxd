from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from posix.uio cimport iovec
from tun.checksum cimport Verdict
from tun.frame cimport Parsed
from tun.split cimport Superframe
from tun.vnet cimport VnetHeader

cdef enum:
    MERGE_SLOTS = 32
    MERGE_SEGMENTS = 64
    MERGE_HEADER = 128

cdef struct MergeSlot:
    uint32_t hash
    int fd
    uint32_t zone
    uint32_t features
    uint32_t segments
    uint32_t header_length
    uint32_t l4
    uint32_t gso_size
    uint32_t payload_length
    uint32_t next_seq
    uint16_t next_id
    uint8_t family
    uint8_t protocol
    uint8_t tcp_flags        # PSH or-ed in when it ends the chain
    uint8_t partial          # the first frame came with a partial checksum
    uint8_t* first
    VnetHeader vnet          # vnet and header are adjacent: together the first iovec of a superframe
    uint8_t header[MERGE_HEADER]
    iovec iov[MERGE_SEGMENTS + 2]

cdef struct Merger:
    uint32_t last
    uint32_t used
    uint32_t hashes[MERGE_SLOTS]   # 0 = the slot is free
    uint64_t opened[MERGE_SLOTS]   # value of `frames` when the slot was opened: its age
    uint64_t frames          # frames given to merge_add / merge_superframe
    uint64_t writes          # writes done (superframes and single frames)
    uint64_t bytes           # IP bytes of frames written
    uint64_t merged          # frames that left inside a superframe of two or more
    uint64_t bad_checksum    # frames passed on alone because their transport or IPv4 header checksum is wrong
    # frames lost in refused writes: all that were in a superframe
    uint64_t errors_again    # EAGAIN/ENOBUFS/ENOMEM
    uint64_t errors_down     # EIO: device down
    uint64_t errors_gone     # EBADFD/ENODEV/EBADF: device deleted
    uint64_t errors_other
    MergeSlot slots[MERGE_SLOTS]

cdef void merge_init(Merger* m) noexcept nogil
# Takes one IP frame for the port `fd`. It is either written at once or kept in a slot; the memory must stay unchanged
# until merge_flush. Order within a flow is kept. `zone` separates what must never be merged (VTEP, VNI, verdict).
# The memory of a frame whose partial checksum has to be finished in software is changed.
cdef void merge_add(Merger* m, int fd, uint32_t features, uint32_t zone, uint8_t* frame, uint32_t length) noexcept nogil
# Takes a frame that is already a superframe with a partial transport checksum (a same-host kernel peer's TSO/USO frame).
cdef void merge_superframe(Merger* m, int fd, uint32_t features, uint32_t zone, uint8_t* frame, uint32_t length,
                           uint32_t l4, uint8_t protocol, uint32_t gso_size) noexcept nogil
cdef void merge_flush(Merger* m) noexcept nogil

# Used inside this module.
cdef int find_slot(Merger* m, uint32_t hash, int fd, uint32_t zone, const uint8_t* frame, const Parsed* p) noexcept nogil
cdef bint same_flow(const MergeSlot* slot, int fd, uint32_t zone, const uint8_t* frame, const Parsed* p) noexcept nogil
cdef bint can_open(uint32_t features, const uint8_t* frame, const Parsed* p) noexcept nogil
cdef bint can_join(const MergeSlot* slot, const uint8_t* frame, const Parsed* p) noexcept nogil
cdef bint same_network(const MergeSlot* slot, const uint8_t* frame) noexcept nogil
cdef bint same_transport(const MergeSlot* slot, const uint8_t* frame, const Parsed* p) noexcept nogil
cdef uint32_t free_slot(Merger* m) noexcept nogil
cdef void open_slot(Merger* m, uint32_t hash, int fd, uint32_t features, uint32_t zone, uint8_t* frame, const Parsed* p,
                    bint partial) noexcept nogil
cdef void join_slot(Merger* m, uint32_t index, uint8_t* frame, const Parsed* p) noexcept nogil
cdef void flush_slot(Merger* m, uint32_t index) noexcept nogil
cdef void flush_addresses(Merger* m, int fd, const uint8_t* frame, const Parsed* p) noexcept nogil
cdef void emit(Merger* m, MergeSlot* slot) noexcept nogil
cdef void write_frame(Merger* m, int fd, uint32_t features, uint8_t* frame, uint32_t length, uint32_t l4,
                      uint8_t protocol, Verdict verdict) noexcept nogil
# False: refused; `frames` are then counted as lost.
cdef bint write_vector(Merger* m, int fd, const iovec* iov, int count, uint32_t length, uint32_t frames) noexcept nogil
cdef void cut(Merger* m, int fd, const Superframe* s) noexcept nogil
