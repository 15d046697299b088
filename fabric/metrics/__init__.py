"""What the daemon tells Prometheus: the daemon's own reports, turned into metrics when somebody asks.

    families   names, kinds, labels and help texts: all there is, in one table       pure
    counters   which counter of `fabricctl counters` belongs to which family         pure
    readings   reports to readings (family, labels, value)                           pure
    bounded    no family grows beyond MAX_SERIES; what is beyond is one series       pure
    latency    a histogram as it is handed on                                        pure
    policy     what the daemon answers about policy, as one value                    pure
    collector  readings to text, by prometheus_client: the only module that imports it
    page       writes docs/metrics.md out of `families`

Nothing here is on the way of a packet: the data path counts as it does without metrics, and a scrape reads what
`fabricctl` reads. `fabric.daemon.metrics` serves it, and is imported only with `--metrics-port`.

Limits: a scrape is answered from the event loop, at most one a second is computed (`fabric.daemon.metrics`); no
exemplars, no OpenMetrics, no push.
"""
