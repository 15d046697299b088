from tests.apiserver.fixtures import api, cluster_etcd, make_api  # noqa: F401
