"""A directory in memory, for tests of those who ask one. `tests/store/test_directory.py` holds it to the contract."""

from dataclasses import dataclass, field

from authz.directory import DirectoryOutage, KeyRecord


@dataclass(slots=True)
class MemoryDirectory:
    """Knows the records it is given; `out` makes it fail, `asked` counts the questions."""

    records: dict[str, KeyRecord] = field(default_factory=dict)
    out: bool = False
    asked: int = 0

    def add(self, record: KeyRecord) -> None:
        self.records[record.id] = record

    async def find_key(self, key_id: str) -> KeyRecord | None:
        self.asked += 1
        if self.out:
            raise DirectoryOutage
        return self.records.get(key_id)
