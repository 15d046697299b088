"""Ways to get podfabric onto nodes: the Debian package. The DaemonSet is in `docs/kubernetes`."""
