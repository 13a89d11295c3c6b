"""Which request was made under which idempotency key?"""

from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None

# The primary key is what keeps a request from being made twice. The answer is there whole or not at all.
_KEYS = """
CREATE TABLE idempotency_keys (
    tenant_id    text        NOT NULL,
    principal_id text        NOT NULL,
    key          text        NOT NULL CHECK (length(key) BETWEEN 1 AND 255),
    request_id   text        NOT NULL,
    fingerprint  bytea       NOT NULL CHECK (octet_length(fingerprint) = 32),
    claimed_at   timestamptz NOT NULL DEFAULT now(),
    admitted     boolean     NOT NULL DEFAULT false,
    expires_at   timestamptz NOT NULL,
    status       smallint,
    content_type text,
    body         bytea,
    PRIMARY KEY (tenant_id, principal_id, key),
    CHECK (num_nulls(status, content_type, body) IN (0, 3))
)"""

_EXPIRY_INDEX = "CREATE INDEX idempotency_keys_expiry ON idempotency_keys (expires_at)"


def upgrade() -> None:
    for statement in (_KEYS, _EXPIRY_INDEX):
        op.execute(statement)


def downgrade() -> None:
    op.execute("DROP TABLE idempotency_keys")
