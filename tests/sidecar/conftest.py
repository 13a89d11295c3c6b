"""Envoy's messages are imported once, here."""

import tests.wire.first_import  # noqa: F401
