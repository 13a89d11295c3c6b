"""Who is told when a request has ended? Webhooks, and what is on its way to them."""

from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None

# `secret` and `previous_secret` are encrypted. An empty `states` stands for every final state.
_WEBHOOKS = """
CREATE TABLE webhooks (
    id                  text        PRIMARY KEY CHECK (id LIKE 'wh\\_%'),
    tenant_id           text        NOT NULL CONSTRAINT webhooks_tenant_known REFERENCES tenants (id),
    url                 text        NOT NULL,
    states              text[]      NOT NULL DEFAULT '{}'
                        CHECK (states <@ ARRAY['completed', 'failed', 'cancelled', 'timed_out']),
    description         text        NOT NULL DEFAULT '',
    secret              bytea       NOT NULL,
    previous_secret     bytea,
    previous_expires_at timestamptz,
    created_at          timestamptz NOT NULL,
    failing_since       timestamptz,
    disabled_at         timestamptz,
    deleted_at          timestamptz,
    CHECK ((previous_secret IS NULL) = (previous_expires_at IS NULL))
)"""
_LIVE = "CREATE INDEX webhooks_live ON webhooks (tenant_id) WHERE deleted_at IS NULL"

# One row for each request and webhook, whatever is repeated. A row that is neither delivered nor dead waits until
# `next_at`; whoever sends it pushes that ahead, so that no other does. No foreign key to the ledger, whose rows end.
_DELIVERIES = """
CREATE TABLE webhook_deliveries (
    webhook_id   text        NOT NULL REFERENCES webhooks (id),
    request_id   uuid        NOT NULL,
    queued_at    timestamptz NOT NULL DEFAULT now(),
    next_at      timestamptz NOT NULL DEFAULT now(),
    attempts     integer     NOT NULL DEFAULT 0,
    delivered_at timestamptz,
    dead_at      timestamptz,
    last_status  integer,
    last_error   text,
    PRIMARY KEY (webhook_id, request_id),
    CHECK (delivered_at IS NULL OR dead_at IS NULL)
)"""
_INDEXES = (
    """CREATE INDEX webhook_deliveries_waiting ON webhook_deliveries (webhook_id, next_at)
    WHERE delivered_at IS NULL AND dead_at IS NULL""",
    "CREATE INDEX webhook_deliveries_queued ON webhook_deliveries (webhook_id, queued_at)",
    "CREATE INDEX webhook_deliveries_dead ON webhook_deliveries (webhook_id) WHERE dead_at IS NOT NULL",
)

# In the transaction of the ledger's rows, and only for rows that are new: who repeats a batch queues nothing twice.
# Of the statement, not of the row: a batch of a tenant without webhooks costs one probe of an index. It is on the
# partitioned table alone: rows that only move into a partition are not new. It runs with its owner's rights: whoever
# may write the ledger need know nothing of webhooks.
_QUEUE = """
CREATE FUNCTION queue_webhook_deliveries() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER AS $$
BEGIN
    INSERT INTO webhook_deliveries (webhook_id, request_id)
    SELECT w.id, e.request_id FROM ended e JOIN webhooks w ON w.tenant_id = e.tenant_id
    WHERE w.deleted_at IS NULL AND w.disabled_at IS NULL AND (w.states = '{}' OR e.state = ANY (w.states))
    ORDER BY w.id, e.request_id
    ON CONFLICT (webhook_id, request_id) DO NOTHING;
    RETURN NULL;
END
$$"""
_QUEUED = """
CREATE TRIGGER inference_requests_webhooks AFTER INSERT ON inference_requests
REFERENCING NEW TABLE AS ended FOR EACH STATEMENT EXECUTE FUNCTION queue_webhook_deliveries()"""

_DELETE_WITH_TENANT = """
CREATE FUNCTION delete_webhooks_of_tenant() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER AS $$
BEGIN
    UPDATE webhooks SET deleted_at = NEW.deleted_at WHERE tenant_id = NEW.id AND deleted_at IS NULL;
    RETURN NULL;
END
$$"""
_DELETED_WITH_TENANT = """
CREATE TRIGGER tenants_webhooks AFTER UPDATE OF deleted_at ON tenants
FOR EACH ROW WHEN (NEW.deleted_at IS NOT NULL) EXECUTE FUNCTION delete_webhooks_of_tenant()"""

# They run with the rights of whoever owns the tables, so they look nothing up where others can put things.
_GUARDED = """
DO $$
BEGIN
    EXECUTE format('ALTER FUNCTION queue_webhook_deliveries() SET search_path = %I, pg_temp', current_schema());
    EXECUTE format('ALTER FUNCTION delete_webhooks_of_tenant() SET search_path = %I, pg_temp', current_schema());
END
$$"""


def upgrade() -> None:
    for statement in (_WEBHOOKS, _LIVE, _DELIVERIES, *_INDEXES, _QUEUE, _QUEUED):
        op.execute(statement)
    for statement in (_DELETE_WITH_TENANT, _DELETED_WITH_TENANT, _GUARDED):
        op.execute(statement)


def downgrade() -> None:
    raise NotImplementedError("there is no way back: what is on its way to webhooks would be lost")
