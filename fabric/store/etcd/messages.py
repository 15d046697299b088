"""The part of etcd's gRPC interface that the store uses, as protobuf message classes.

Source of names and numbers: etcd `api/etcdserverpb/rpc.proto` and `api/mvccpb/kv.proto`, unchanged since etcd 3.0
(`progress_notify` and what else is newer is ignored by servers that do not know it). The table below is turned into
message classes when this module is imported, in a descriptor pool of its own: there is no generated code that would
have to match the installed protobuf's version.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.message import DecodeError, Message

_PACKAGE = "etcdserverpb"
_TABLE = """
ResponseHeader: uint64 cluster_id=1, uint64 member_id=2, int64 revision=3, uint64 raft_term=4
KeyValue: bytes key=1, int64 create_revision=2, int64 mod_revision=3, int64 version=4, bytes value=5, int64 lease=6
Event: int32 type=1, KeyValue kv=2
RangeRequest: bytes key=1, bytes range_end=2, int64 limit=3, int64 revision=4, int32 sort_order=5, \
int32 sort_target=6, bool keys_only=8
RangeResponse: ResponseHeader header=1, KeyValue* kvs=2, bool more=3, int64 count=4
PutRequest: bytes key=1, bytes value=2, int64 lease=3, bool prev_kv=4
PutResponse: ResponseHeader header=1, KeyValue prev_kv=2
DeleteRangeRequest: bytes key=1, bytes range_end=2, bool prev_kv=3
DeleteRangeResponse: ResponseHeader header=1, int64 deleted=2, KeyValue* prev_kvs=3
RequestOp: RangeRequest request_range=1, PutRequest request_put=2, DeleteRangeRequest request_delete_range=3
ResponseOp: RangeResponse response_range=1, PutResponse response_put=2, DeleteRangeResponse response_delete_range=3
Compare: int32 result=1, int32 target=2, bytes key=3, int64 version=4, int64 create_revision=5, int64 mod_revision=6
TxnRequest: Compare* compare=1, RequestOp* success=2, RequestOp* failure=3
TxnResponse: ResponseHeader header=1, bool succeeded=2, ResponseOp* responses=3
LeaseGrantRequest: int64 TTL=1, int64 ID=2
LeaseGrantResponse: ResponseHeader header=1, int64 ID=2, int64 TTL=3, string error=4
LeaseRevokeRequest: int64 ID=1
LeaseRevokeResponse: ResponseHeader header=1
LeaseTimeToLiveRequest: int64 ID=1, bool keys=2
LeaseTimeToLiveResponse: ResponseHeader header=1, int64 ID=2, int64 TTL=3, int64 grantedTTL=4, bytes* keys=5
AuthenticateRequest: string name=1, string password=2
AuthenticateResponse: ResponseHeader header=1, string token=2
WatchCreateRequest: bytes key=1, bytes range_end=2, int64 start_revision=3, bool progress_notify=4
WatchRequest: WatchCreateRequest create_request=1
WatchResponse: ResponseHeader header=1, int64 watch_id=2, bool created=3, bool canceled=4, int64 compact_revision=5, \
string cancel_reason=6, Event* events=11
"""
DELETE = 1  # Event.type
MOD = 2  # Compare.target; result 0 is EQUAL
SORT_BY_MOD, DESCENDING = 3, 2  # RangeRequest.sort_target, sort_order


def _file() -> descriptor_pb2.FileDescriptorProto:
    file = descriptor_pb2.FileDescriptorProto(name="etcd.proto", package=_PACKAGE, syntax="proto3")
    scalars = {"bool": 8, "bytes": 12, "int32": 5, "int64": 3, "string": 9, "uint64": 4}  # FieldDescriptorProto.Type
    for line in _TABLE.strip().splitlines():
        name, fields = line.split(": ")
        message = file.message_type.add(name=name)
        for text in fields.split(", "):
            kind, _, definition = text.partition(" ")
            field_name, _, number = definition.partition("=")
            field = message.field.add(name=field_name, number=int(number), label=3 if kind.endswith("*") else 1)
            kind = kind.rstrip("*")
            field.type = scalars.get(kind, 11)
            if kind not in scalars:
                field.type_name = f".{_PACKAGE}.{kind}"
    return file


_pool = descriptor_pool.DescriptorPool()
_pool.Add(_file())


def _class(name: str) -> Any:
    return message_factory.GetMessageClass(_pool.FindMessageTypeByName(f"{_PACKAGE}.{name}"))


@dataclass(frozen=True, slots=True)
class Method:
    """One remote procedure: its HTTP path and the class of its answers."""

    path: str
    response: Any


def _method(service: str, name: str, response: str) -> Method:
    return Method(f"/{_PACKAGE}.{service}/{name}", _class(response))


RANGE = _method("KV", "Range", "RangeResponse")
TXN = _method("KV", "Txn", "TxnResponse")
LEASE_GRANT = _method("Lease", "LeaseGrant", "LeaseGrantResponse")
LEASE_REVOKE = _method("Lease", "LeaseRevoke", "LeaseRevokeResponse")
LEASE_TIME_TO_LIVE = _method("Lease", "LeaseTimeToLive", "LeaseTimeToLiveResponse")
AUTHENTICATE = _method("Auth", "Authenticate", "AuthenticateResponse")
WATCH = _method("Watch", "Watch", "WatchResponse")

RangeRequest = _class("RangeRequest")
PutRequest = _class("PutRequest")
DeleteRangeRequest = _class("DeleteRangeRequest")
RequestOp = _class("RequestOp")
Compare = _class("Compare")
TxnRequest = _class("TxnRequest")
LeaseGrantRequest = _class("LeaseGrantRequest")
LeaseRevokeRequest = _class("LeaseRevokeRequest")
LeaseTimeToLiveRequest = _class("LeaseTimeToLiveRequest")
AuthenticateRequest = _class("AuthenticateRequest")
WatchCreateRequest = _class("WatchCreateRequest")
WatchRequest = _class("WatchRequest")

__all__ = ["DecodeError", "Message", "Method"]
