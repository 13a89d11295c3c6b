"""envoy-data-plane 2.2.0 decorates validators in a way that pydantic 2.12 deprecates, and says so when it is imported.

Whoever tests with Envoy's messages imports this before them, for our tests take every warning for an error.
"""

import warnings

with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)
    import wire.messages  # noqa: F401
