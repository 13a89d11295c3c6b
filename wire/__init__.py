"""What do Envoy's messages look like?

`schema` builds the message classes, `messages` names the ones we use. Wire types stop here: only the
`wire.py`-like edge modules of `authz` and `extproc` read or build them.
"""
