"""What would become of a packet: `fabricctl explain`.

    fabricctl --question--> door --packet--> forward.rehearse (the data path's own code) --Rehearsed--> story --> words

`packets` makes a packet out of a 5-tuple, `layers` takes one out of a frame, `headers` says what is in one, `files`
reads one out of a capture (at the client's). All four are pure and take any bytes; a packet that is none is explained
like any other.
"""

MOST_BYTES = 45_000
"""Of a packet in a request, which is a line of at most 64 KiB."""
