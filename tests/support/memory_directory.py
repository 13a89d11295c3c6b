"""A directory in memory, for tests of those who ask one. `tests/store/test_directory.py` holds it to the contract."""

from dataclasses import dataclass, field

from authz.directory import DirectoryOutage
from authz.principal import Handle, Principal


@dataclass(slots=True)
class MemoryDirectory:
    """Knows the principals it is given; `out` makes it fail, `asked` counts the questions."""

    records: dict[Handle, Principal] = field(default_factory=dict)
    out: bool = False
    asked: int = 0

    def add(self, handle: Handle, principal: Principal) -> None:
        self.records[handle] = principal

    async def find(self, handle: Handle) -> Principal | None:
        self.asked += 1
        if self.out:
            raise DirectoryOutage("the directory in memory is out")
        return self.records.get(handle)
