"""How is a Lua script run? By its digest; its text goes to Redis only when Redis does not know it."""

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

from redis.exceptions import NoScriptError, ResponseError

from quota.pipe import Argument, Pipe
from quota.reservation import QuotaOutage

_INCLUDE = re.compile(r"^-- include (?P<part>\w+\.lua)\n", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Script:
    """A Lua script and the digest that Redis knows it by."""

    source: str
    sha: str


def load(name: str, package: str = "quota") -> Script:
    """Read `<package>/lua/<name>.lua`; a line `-- include part.lua` stands for the text of that file beside it."""
    folder = files(package) / "lua"
    source = _INCLUDE.sub(lambda found: (folder / found["part"]).read_text(), (folder / f"{name}.lua").read_text())
    return Script(source, hashlib.sha1(source.encode(), usedforsecurity=False).hexdigest())


async def run(pipe: Pipe, script: Script, keys: Sequence[str], arguments: Sequence[Argument]) -> Any:
    """The script's answer.

    Raises QuotaOutage when Redis cannot be asked, or cannot do it: it is full, read-only, or still loading.
    """
    try:
        try:
            return await pipe.call("EVALSHA", script.sha, len(keys), *keys, *arguments)
        except NoScriptError:
            # Redis was restarted or flushed its scripts; EVAL makes it remember.
            return await pipe.call("EVAL", script.source, len(keys), *keys, *arguments)
    except ResponseError as error:
        raise QuotaOutage(f"Redis could not do it: {error}") from error
