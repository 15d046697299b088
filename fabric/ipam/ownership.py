"""Who owns a record, and which records nobody needs any more. Pure.

A record whose content is damaged still reserves its address: the file's name is the reservation. Its owner cannot be
read, so before such a record is given up, every live attachment must be accounted for by records of its own.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence

from fabric.ipam.names import Attachment
from fabric.ipam.ranges import Address, RangeSet

Records = Mapping[Address, bytes]


def owned(records: Records, attachment: Attachment) -> list[Address]:
    """The addresses of one attachment. Records in the old form count only when there is none in the present form."""
    for wanted in (attachment.record, attachment.old_record):
        found = [address for address, content in records.items() if content == wanted]
        if found:
            return found
    return []


def owned_by_any(records: Records, attachments: Collection[Attachment]) -> list[Address]:
    """The addresses of many attachments, as `owned` finds each one's."""
    there = set(records.values())
    wanted = {item.record if item.record in there else item.old_record for item in attachments}
    return [address for address, content in records.items() if content in wanted]


def stale(records: Records, live: Collection[Attachment], range_sets: Sequence[RangeSet]) -> list[Address]:
    """The addresses to free when only `live` attachments may keep theirs.

    A record that is nobody's is kept while a live attachment has fewer records of that family than there are range
    sets, and the content may be that attachment's after damage (`Attachment.may_have_been`).
    """
    holders: dict[bytes, list[Attachment]] = {}
    for attachment in live:
        holders.setdefault(attachment.record, []).append(attachment)
        holders.setdefault(attachment.old_record, []).append(attachment)
    held = Counter(
        (attachment, address.version) for address, content in records.items() for attachment in holders.get(content, ())
    )
    expected = Counter(item.version for item in range_sets)
    missing = {
        version: [attachment for attachment in live if held[attachment, version] < expected[version]]
        for version in (4, 6)
    }
    return [
        address
        for address, content in records.items()
        if content not in holders
        and not any(attachment.may_have_been(content) for attachment in missing[address.version])
    ]
