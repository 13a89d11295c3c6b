"""What do Envoy's messages look like, and how do bytes reach a service?

`schema` builds the message classes, `messages` names the ones we use, `transport` is the seam between a
service and the gRPC server that carries it. Wire types stop here: only the `wire.py`-like edge modules of
`authz` and `extproc` read or build them.
"""
