"""Bytes from strangers to requests, outcomes to bytes.

Reading a record's value takes three steps, each of which raises `Rejection` where the message is at fault:

1. `framing` tells the wire formats apart and says which writer's schema the payload needs. `registry` knows schemas by
   id and GUID, `codec` those that ship with the worker.
2. `binary` checks with `schema_walk` that the payload is exactly one datum of that schema, then lets fastavro read and
   resolve it.
3. `request` checks what the datum asks for against the limits and fills in the defaults.

Writing takes two: `result` makes a datum of an outcome, `codec` encodes and frames it. `json_request` makes data of the
JSON that ``xnli-worker send`` takes.
"""
