from libc.stdint cimport uint8_t, uint32_t
from tun.merge cimport Merger

cdef struct MergeItem:
    uint8_t* data
    uint32_t length
    uint32_t gso_size        # 0: an ordinary frame

cdef void run_items(Merger* m, int fd, uint32_t features, uint32_t zone, const MergeItem* items, uint32_t count,
                    uint32_t rounds) noexcept nogil
