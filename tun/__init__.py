"""Frames to and from the Linux kernel through TUN and TAP devices, 64 KB at a time.

Theory of operation. A TUN device costs one system call per frame, so the way to speed is a bigger frame. With a
virtio-net header in front of each frame and the offloads of TUNSETOFFLOAD set, the kernel hands over what TCP or UDP
produced before it was cut into packets: a superframe of up to 64 KB, with the transport checksum unfinished. What comes
back from the network is merged the same way and written as one superframe, which the kernel carries whole to a socket.

- `device`: makes, attaches to, adopts and configures devices; a device is its queue fds. `link` sets what belongs to
  the link (MTU, queue length, up, namespace), `netns` runs a function in another network namespace.
- `offload`: asks for TCP and UDP segmentation offload in order, obeys kill switches, and tests at start whether the
  kernel really takes a superframe.
- `vnet`: the virtio-net header; `virtio`: its tunnel form and the kernel's rules for what may be written.
- `checksum`, `split`, `merge`: compiled. Split cuts a superframe into packets, headers beside it, without a copy of
  the payload. Merge joins packets of one flow into a superframe and writes it with one vectored write.
- `port`: the interface of what a worker reads and writes; a queue of a device, or `memory`, a socket pair that behaves
  like one. The compiled worker uses the fd, so the contract is one of read(2) and write(2).
- `errors`: `DeviceError`, one readable line for anything that fails here.

The package knows nothing of VXLAN, routes or policy and imports nothing of its neighbours.

Limits. Linux 5.15 or later; UDP segmentation offload from 6.2, tunnel superframes (24-byte header, TAP only) from 6.17.
A frame has at most 65,535 bytes. A TUN never pushes back: beyond `txqueuelen` frames the kernel drops. The last close
deletes a device that is not persistent, and with it its addresses and routes. Virtio-net headers are in host order.
Sources: Linux drivers/net/tun.c, include/linux/virtio_net.h, include/uapi/linux/{if_tun,virtio_net}.h; RFC 793, 768,
791, 8200 for the frames; RFC 1071 and 1624 for checksums.
"""
