# No Python API: C functions only, declared in the .pxd.
