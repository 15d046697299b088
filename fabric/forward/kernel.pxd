# Kernel and compiler declarations of the worker threads that Cython does not ship.
from libc.stdint cimport uint32_t, uint64_t

cdef extern from "<sys/epoll.h>" nogil:
    union epoll_data_t:
        uint32_t u32
        uint64_t u64
    struct epoll_event:
        uint32_t events
        epoll_data_t data
    int epoll_create1(int)
    int epoll_ctl(int, int, int, epoll_event*)
    int epoll_wait(int, epoll_event*, int, int)
    enum:
        EPOLLIN
        EPOLL_CTL_ADD
        EPOLL_CTL_DEL
        EPOLL_CLOEXEC

cdef extern from "<sched.h>" nogil:
    int sched_yield()

# GCC and Clang builtins.
cdef extern from * nogil:
    uint64_t atomic_load "__atomic_load_n" (const uint64_t*, int)
    void atomic_store "__atomic_store_n" (uint64_t*, uint64_t, int)
    uint64_t atomic_add "__atomic_add_fetch" (uint64_t*, uint64_t, int)
    bint atomic_swap_if "__atomic_compare_exchange_n" (uint64_t*, uint64_t*, uint64_t, bint, int, int)
    uint32_t atomic_load32 "__atomic_load_n" (const uint32_t*, int)
    void atomic_store32 "__atomic_store_n" (uint32_t*, uint32_t, int)
    uint32_t atomic_add32 "__atomic_add_fetch" (uint32_t*, uint32_t, int)
    void fence "__atomic_thread_fence" (int)
    int trailing_zeros "__builtin_ctzll" (uint64_t)
    void prefetch "__builtin_prefetch" (const void*)
    enum:
        ORDERED "__ATOMIC_SEQ_CST"
        RELAXED "__ATOMIC_RELAXED"
        ACQUIRE "__ATOMIC_ACQUIRE"
        RELEASE "__ATOMIC_RELEASE"
