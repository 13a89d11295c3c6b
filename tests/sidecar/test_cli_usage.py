"""Usage on the command line: by every grouping."""

from datetime import UTC, datetime

import pytest

from quota.charges import Charges
from sidecar.cli import app
from store import ledger
from tests.support.records import usage_record
from tests.support.shell import PEPPER, Shell


@pytest.fixture
def shell(database: str, monkeypatch: pytest.MonkeyPatch) -> Shell:
    monkeypatch.setenv("DATABASE_URL", database)
    monkeypatch.setenv("GATEWAY_KEY_PEPPER", PEPPER)
    return Shell(app, database)


@pytest.mark.parametrize(
    ("group_by", "groups", "heading"),
    [
        ("model", ["demo"], "MODEL"),
        ("principal", ["key:k", "wl_w"], "PRINCIPAL"),
        ("route", ["/v1/chat/completions", "/v1/infer"], "ROUTE"),
        ("tenant", ["ten_a"], "TENANT"),
    ],
)
def test_usage_is_summed_by(shell: Shell, group_by: str, groups: list[str], heading: str) -> None:
    now = int(datetime.now(UTC).timestamp() * 1000)
    records = [
        usage_record(ended_ms=now - 1000, principal_id="wl_w", charges=Charges(cost=1)),
        usage_record(ended_ms=now - 1000, path="/v1/infer", charges=Charges(cost=2)),
    ]
    shell.within(lambda pool: ledger.write(pool, records))
    found = shell.json(f"usage --group-by {group_by}")
    assert [total["group"] for total in found] == groups
    assert sum(total["cost_micros"] for total in found) == 3
    table = shell.says(f"usage --group-by {group_by}")
    assert table.split()[0] == heading
    assert all(group in table for group in groups)
