"""Benchmarks: what the fabric costs, measured against something else in the same run on the same machine.

Five kinds:

* `pytest bench --benchmark-enable`: one file per hot function (`test_parse.py` ...), loops compiled in `hot` and
  `hot_path`, with series from 1 to 1,000 peers and 10,000 prefixes.
* `python -m bench` (`./dev bench`): the end-to-end comparison. Two nodes in network namespaces (`fabric.lab`), pods
  behind them, and between the same pods in turn: kernel VXLAN, the fabric in every encapsulation and offload setting,
  through the node port (pods in a bridge) and through pod ports (TUN pods), and what is installed of tinc, fastd,
  nebula and wireguard-go; and two pods of one node over the kernel's bridge and over pod ports. tinc and fastd run
  without encryption; nebula and wireguard-go cannot and are marked so.
* `python -m bench gate` (part of `./dev test`): hot functions against a reference loop (`cases`), the start of the CNI
  plugin against that of its interpreter (`cni_start`), and the floors of the design for throughput, packets, CPU,
  latency, memory and start-up (`gates`), each in a short form.
* `python -m bench cni`: how long a container runtime waits for the CNI plugin (`cni`), against its targets.
* `python -m bench policy`: what compiling network policy costs, from nothing and for one change (`policy`).
* `python -m bench capture`: what a running `fabricctl capture` costs the traffic beside it (`capture`).

How figures are made. A round measures kernel VXLAN first, then every variant; a ratio is a variant's figure divided by
its baseline's of the same round. Shown is the median of the rounds with the smallest and the largest. Machines differ
and drift by 20 % within minutes, so absolute figures of different runs must not be compared; ratios may.

* TCP: payload bytes at the receiving program. CPU per GB: busy time of all cores from /proc/stat, everything included
  (both nodes, both pods, softirq, the traffic tools), and separately that of the tunnel's own processes.
* UDP: datagrams that reached the receiving pod's socket layer (InDatagrams + InErrors - InCsumErrors), so superframes
  count as what is in them. The sender is a compiled sendmmsg loop that ends at a deadline; "mixed" sends one datagram
  per call, sizes 64, 64, 200, 64, 700, over 16 flows in turn, which defeats batching.
* Round trips: 64 bytes over UDP with one in flight, one per millisecond ("sparse") or back to back; "loaded" is one
  per 2 ms while a TCP stream runs.
* Modes of the underlay: `wire` passes MTU-sized packets and merges them on receipt, as a network card does; `veth`
  passes superframes; `bare` neither segments nor merges for us.

Limits: both nodes, sender and receiver share the machine's cores, so the sending node also pays for the receiving
one; no physical network card; process start-up of the traffic tools (about 50 ms of CPU) is part of every figure.
"""
