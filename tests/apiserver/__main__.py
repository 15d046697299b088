"""`python -m tests.apiserver --etcd URL --port PORT [...]`: run the API server until it is killed."""

from __future__ import annotations

import argparse
import ssl
from pathlib import Path

from aiohttp import web

from tests.apiserver.etcd import Etcd
from tests.apiserver.policy import Policy
from tests.apiserver.server import Server
from tests.apiserver.watching import Watching


def main() -> None:
    parser = argparse.ArgumentParser(prog="tests.apiserver")
    parser.add_argument("--etcd", required=True, help="URL of the etcd that holds everything")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--audit", type=Path, help="append a line per request to this file")
    parser.add_argument("--tokens", type=Path, help="file of accepted bearer tokens")
    parser.add_argument("--rbac", type=Path, help="manifest whose ClusterRole is enforced")
    parser.add_argument("--cert", type=Path)
    parser.add_argument("--key", type=Path)
    parser.add_argument("--client-ca", type=Path, help="ask for client certificates of this CA; they replace a token")
    parser.add_argument("--bookmarks", type=float, default=0.0, help="seconds between two bookmarks")
    parser.add_argument("--late", action="store_true", help="410 in the stream of a watch, not before it")
    parser.add_argument("--twice", action="store_true", help="send each event twice")
    parser.add_argument("--swapped", action="store_true", help="send neighbouring events in the wrong order")
    options = parser.parse_args()

    async def application() -> web.Application:
        etcd = Etcd(options.etcd)
        watching = Watching(etcd, options.bookmarks, options.late, options.twice, options.swapped)
        return Server(etcd, Policy(options.tokens, options.rbac), watching, options.audit).application()

    context = None
    if options.cert is not None:
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.load_cert_chain(options.cert, options.key)
        if options.client_ca is not None:
            context.load_verify_locations(options.client_ca)
            context.verify_mode = ssl.CERT_OPTIONAL
    web.run_app(
        application(), host="127.0.0.1", port=options.port, ssl_context=context, print=None, shutdown_timeout=0.1,
        handler_cancellation=True,  # as the real server ends a watch whose client is gone
    )  # fmt: skip


if __name__ == "__main__":
    main()
