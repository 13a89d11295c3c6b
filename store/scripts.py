"""Where are the store's own Lua scripts? In `store/lua`; `quota.scripts` says how one is run."""

import hashlib
from importlib.resources import files

from quota.scripts import Script


def load(name: str) -> Script:
    """Read `store/lua/<name>.lua`."""
    source = (files("store") / "lua" / f"{name}.lua").read_text()
    return Script(source, hashlib.sha1(source.encode(), usedforsecurity=False).hexdigest())
