"""The API server's requests: one aiohttp application over one etcd."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import uuid4

import aiohttp
from aiohttp import web

from tests.apiserver import objects
from tests.apiserver.etcd import CompactedError, Etcd, FutureRevisionError, Kv, end_of
from tests.apiserver.objects import RESOURCES, ApiError, Object, Resource, expired
from tests.apiserver.policy import Fault, Policy
from tests.apiserver.watching import Watching

PATCHES = {
    "application/strategic-merge-patch+json": objects.strategic_merge,
    "application/merge-patch+json": objects.merge_patch,
}
TRIES = 5
TRUE = ("1", "t", "T", "true", "TRUE", "True")  # Go's ParseBool


@dataclass(frozen=True)
class Target:
    """What a path names."""

    resource: Resource
    namespace: str
    name: str
    subresource: str

    @property
    def prefix(self) -> str:
        return f"/registry/{self.resource.plural}/" + (f"{self.namespace}/" if self.namespace else "")

    @property
    def key(self) -> str:
        return self.prefix + self.name


def parse_path(path: str) -> Target | None:
    parts = path.strip("/").split("/")
    root, parts = (parts[:2], parts[2:]) if parts[0] == "api" else (parts[:3], parts[3:])
    known = {name: item for name, item in RESOURCES.items() if item.root == root}
    namespace = ""
    if len(parts) >= 3 and parts[0] == "namespaces" and parts[2] in known:
        namespace, parts = parts[1], parts[2:]
    if not 1 <= len(parts) <= 3 or parts[0] not in known or (len(parts) == 3 and parts[2] != "status"):
        return None
    return Target(RESOURCES[parts[0]], namespace, parts[1] if len(parts) > 1 else "", "".join(parts[2:]))


class Server:
    """`audit` gets one line per request: METHOD, path with query, status."""

    def __init__(self, etcd: Etcd, policy: Policy, watching: Watching, audit: Path | None) -> None:
        self.etcd = etcd
        self.policy = policy
        self.watching = watching
        self._audit = audit

    def application(self) -> web.Application:
        app = web.Application(client_max_size=4 << 20)
        app.router.add_post("/faults", self._add_fault)
        app.router.add_route("*", "/{path:.*}", self._entry)
        app.cleanup_ctx.append(self._background)
        return app

    async def _background(self, app: web.Application) -> Any:
        task = asyncio.create_task(self.watching.keep_marking())
        yield
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await self.etcd.close()

    async def _add_fault(self, request: web.Request) -> web.Response:
        self.policy.faults.append(Fault(**await request.json()))
        return web.json_response({})

    async def _entry(self, request: web.Request) -> web.StreamResponse:
        try:
            answer = await self._answer(request)
        except ApiError as error:
            headers = {"Retry-After": str(int(error.retry_after))} if error.retry_after else {}
            answer = web.json_response(error.status(), status=error.code, headers=headers)
        except CompactedError:
            answer = web.json_response(expired().status(), status=410)
        except (aiohttp.ClientError, TimeoutError) as error:
            failure = ApiError(500, "InternalError", f"etcd: {error}")
            answer = web.json_response(failure.status(), status=500)
        if not isinstance(answer, web.Response):  # a watch logs when it starts
            return answer
        self._log(request, answer.status)
        return answer

    def _log(self, request: web.Request, status: int) -> None:
        if self._audit is not None:
            with self._audit.open("a") as file:
                file.write(f"{request.method} {request.path_qs} {status}\n")

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        found = objects.discovery(request.path.rstrip("/") or "/")
        if found is not None:
            return web.json_response(found)
        target = parse_path(request.path)
        if target is None:
            raise ApiError(404, "NotFound", "the server could not find the requested resource")
        verb, sort = self._verb(request, target)
        resource = target.resource.plural + (f"/{target.subresource}" if target.subresource else "")
        certificate = request.transport is not None and bool(request.transport.get_extra_info("peercert"))
        self.policy.check(request.headers.get("Authorization", ""), certificate, verb, resource)
        self.policy.fault(sort)
        if verb == "watch":
            return await self._watch(request, target)
        body = await getattr(self, f"_{verb}")(request, target)
        return web.json_response(body, status=201 if verb == "create" else 200)

    @staticmethod
    def _verb(request: web.Request, target: Target) -> tuple[str, str]:
        if request.method == "GET" and not target.name:
            if request.query.get("watch") in TRUE:
                return "watch", "watch"
            return "list", "continue" if "continue" in request.query else "list"
        verbs = {"GET": "get", "POST": "create", "PUT": "update", "PATCH": "patch", "DELETE": "delete"}
        verb = verbs.get(request.method, "")
        if not verb:
            raise ApiError(405, "MethodNotAllowed", request.method)
        return verb, verb

    async def _list(self, request: web.Request, target: Target) -> Object:
        limit = int(request.query.get("limit", "0"))
        revision, start = 0, target.prefix + "\0"  # behind the marker
        if token := request.query.get("continue"):
            document = json.loads(base64.urlsafe_b64decode(token))
            revision, start = int(document["rv"]), str(document["start"])
        elif request.query.get("resourceVersionMatch") == "Exact":
            revision = int(request.query["resourceVersion"])
        try:
            found = await self.etcd.range(start, end_of(target.prefix), revision, limit)
        except FutureRevisionError:
            raise ApiError(504, "Timeout", "Too large resource version", 1) from None
        version = revision or found.revision
        items = [self._shown(target, item, True) for item in found.items]
        meta: Object = {"resourceVersion": str(version)}
        if found.more:
            text = json.dumps({"rv": version, "start": found.items[-1].key + "\0"}).encode()
            meta["continue"] = base64.urlsafe_b64encode(text).decode()
            meta["remainingItemCount"] = found.count - len(items)
        kind = f"{target.resource.kind}List"
        selected = self._selected(request, items)
        return {"kind": kind, "apiVersion": target.resource.version, "metadata": meta, "items": selected}

    @staticmethod
    def _selected(request: web.Request, items: list[Object]) -> list[Object]:
        selector = request.query.get("fieldSelector", "")
        return [item for item in items if objects.selected(item, selector)]

    async def _watch(self, request: web.Request, target: Target) -> web.StreamResponse:
        version = request.query.get("resourceVersion", "")
        seed: list[Kv] = []
        if version in ("", "0"):
            found = await self.etcd.range(target.prefix + "\0", end_of(target.prefix))
            seed, revision = found.items, found.revision
        else:
            revision = int(version)
            if not self.watching.late:
                with contextlib.suppress(FutureRevisionError):  # as the real one: silence until it is there
                    await self.etcd.range(target.prefix, revision=revision)
        response = web.StreamResponse(headers={"Content-Type": "application/json"})
        response.enable_chunked_encoding()
        await response.prepare(request)
        await response.write(b"")  # the head goes out now, as the real server's does
        self._log(request, 200)
        bookmarks = request.query.get("allowWatchBookmarks") in TRUE
        seconds = float(request.query.get("timeoutSeconds", "1800"))
        name = request.query.get("fieldSelector", "").removeprefix("metadata.name=")
        stream = self.watching.stream(target.resource, target.prefix, seed, revision, bookmarks, name)
        with contextlib.suppress(ConnectionError, TimeoutError, aiohttp.ClientError):
            async with asyncio.timeout(seconds), contextlib.aclosing(stream) as lines:
                async for line in lines:
                    await response.write(line)
        with contextlib.suppress(ConnectionError):
            await response.write_eof()
        return response

    async def _get(self, request: web.Request, target: Target) -> Object:
        return self._shown(target, await self._stored(target))

    async def _create(self, request: web.Request, target: Target) -> Object:
        if request.content_type != "application/json":
            raise ApiError(415, "UnsupportedMediaType", request.content_type)
        document = await self._document(request)
        target = Target(target.resource, target.namespace, str(document["metadata"].get("name", "")), "")
        now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        document["metadata"] |= {"uid": str(uuid4()), "creationTimestamp": now}
        document["metadata"].pop("resourceVersion", None)
        if target.namespace:
            document["metadata"]["namespace"] = target.namespace
        stored = objects.updated(target.resource, {"metadata": {}}, document, "")
        stored |= {"status": document.get("status", {})}
        revision = await self.etcd.put(target.key, _dump(stored), 0)
        if revision is None:
            raise ApiError(409, "AlreadyExists", f'{target.resource.plural} "{target.name}" already exists')
        return objects.shown(target.resource, stored, revision)

    async def _update(self, request: web.Request, target: Target) -> Object:
        document = await self._document(request)
        return await self._change(target, lambda old: document, once=True)

    async def _patch(self, request: web.Request, target: Target) -> Object:
        merge = PATCHES.get(request.content_type)
        if merge is None:
            raise ApiError(415, "UnsupportedMediaType", request.content_type)
        patch = await self._document(request)
        return await self._change(target, lambda old: merge(old, patch))

    async def _change(self, target: Target, change: Any, once: bool = False) -> Object:
        for _ in range(1 if once else TRIES):
            found = await self._stored(target)
            old = json.loads(found.value)
            new = change(old)
            wanted = new["metadata"].pop("resourceVersion", None)
            if wanted not in (None, "", str(found.revision)):
                raise self._conflict(target)
            stored = objects.updated(target.resource, old, new, target.subresource)
            if stored == old:
                return objects.shown(target.resource, stored, found.revision)
            revision = await self.etcd.put(target.key, _dump(stored), found.revision)
            if revision is not None:
                return objects.shown(target.resource, stored, revision)
        raise self._conflict(target)

    async def _delete(self, request: web.Request, target: Target) -> Object:
        for _ in range(TRIES):
            found = await self._stored(target)
            if await self.etcd.delete(target.key, found.revision) is not None:
                return self._shown(target, found)
        raise self._conflict(target)

    async def _stored(self, target: Target) -> Kv:
        found = await self.etcd.get(target.key)
        if found is None:
            raise ApiError(404, "NotFound", f'{target.resource.plural} "{target.name}" not found')
        return found

    @staticmethod
    async def _document(request: web.Request) -> Object:
        try:
            document = await request.json()
        except ValueError:
            document = None
        if not isinstance(document, dict):
            raise ApiError(400, "BadRequest", "the body is not a JSON object")
        return document

    @staticmethod
    def _shown(target: Target, item: Kv, in_list: bool = False) -> Object:
        return objects.shown(target.resource, json.loads(item.value), item.revision, in_list)

    @staticmethod
    def _conflict(target: Target) -> ApiError:
        return ApiError(409, "Conflict", f'{target.resource.plural} "{target.name}": the object has been modified')


def _dump(stored: Object) -> bytes:
    return json.dumps(stored, separators=(",", ":")).encode()
