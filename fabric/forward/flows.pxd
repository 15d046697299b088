from libc.stdint cimport uint16_t, uint32_t
from fabric.forward.flow_table cimport Flow, FlowRest, Table

cdef class FlowTable:
    cdef Table* table
    cdef size_t room             # bytes mapped
    cdef dict accounts           # port name -> account
    cdef object names            # account -> last port name
    cdef object _describe(self, const Flow* flow, const FlowRest* rest, uint32_t left, uint32_t now)
    cdef object _entry(self, uint16_t entry)
