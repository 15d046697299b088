from libc.stdint cimport uint8_t, uint32_t, uint64_t

# Seeds of a mutation run, flat: seed i is data[start[i] : start[i + 1]].
cdef struct Corpus:
    const uint8_t* data
    const uint32_t* start
    uint32_t count

# Pseudo-random 64 bits; the state must not be 0.
cdef uint64_t draw(uint64_t* state) noexcept nogil
# Each writes to `out` (`room` bytes) and returns the new length.
cdef uint32_t pick_seed(uint64_t* state, const Corpus* corpus, uint8_t* out, uint32_t room) noexcept nogil
cdef uint32_t mutate(uint64_t* state, const Corpus* corpus, uint8_t* out, uint32_t length, uint32_t room,
                     uint32_t skip) noexcept nogil
cdef uint32_t splice(uint64_t* state, const Corpus* corpus, uint8_t* out, uint32_t length, uint32_t room) noexcept nogil
# Makes the checksum of an IPv4 header right.
cdef void repair(uint8_t* packet, uint32_t length) noexcept nogil
