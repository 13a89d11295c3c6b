"""How much: limits of organizations, time zones, priorities, rates of models, and what a request was charged."""

from alembic import op

revision = "0003"
down_revision: str | None = "0002"
branch_labels = None
depends_on = None

_COLUMNS = (
    "ALTER TABLE organizations ADD limits jsonb NOT NULL DEFAULT '[]' CHECK (jsonb_typeof(limits) = 'array')",
    "ALTER TABLE tenants ADD time_zone text NOT NULL DEFAULT 'UTC'",
    "ALTER TABLE plans ADD priority smallint NOT NULL DEFAULT 5 CHECK (priority BETWEEN 0 AND 9)",
    # NULL in what was written before there was such a thing. `charged_*` is what the limits counted. `reserved_at` is
    # when room was taken by the clock of Redis; NULL when Redis knew of no reservation. `settlement` is the place of
    # the settled event in the stream of its organization's shard.
    """ALTER TABLE inference_requests
    ADD cached_tokens         bigint CHECK (cached_tokens >= 0),
    ADD reasoning_tokens      bigint CHECK (reasoning_tokens >= 0),
    ADD charged_requests      bigint CHECK (charged_requests >= 0),
    ADD charged_input_tokens  bigint CHECK (charged_input_tokens >= 0),
    ADD charged_output_tokens bigint CHECK (charged_output_tokens >= 0),
    ADD charged_tokens        bigint CHECK (charged_tokens >= 0),
    ADD cost_micros           bigint CHECK (cost_micros >= 0),
    ADD degraded              text   NOT NULL DEFAULT '' CHECK (degraded IN ('', 'open', 'local')),
    ADD input_bytes           bigint CHECK (input_bytes >= 0),
    ADD plan                  text,
    ADD output_named          boolean,
    ADD reserved_at           timestamptz,
    ADD settlement            bigint""",
    "CREATE INDEX inference_requests_admitted ON inference_requests (tenant_id, admitted_at)",
)

# Weights are thousandths of a token; prices micro-dollars for a million tokens.
_MODEL_RATES = """
CREATE TABLE model_rates (
    pattern          text    PRIMARY KEY,
    input_weight     integer NOT NULL CHECK (input_weight >= 0),
    cached_weight    integer NOT NULL CHECK (cached_weight >= 0),
    output_weight    integer NOT NULL CHECK (output_weight >= 0),
    reasoning_weight integer NOT NULL CHECK (reasoning_weight >= 0),
    input_price      bigint  NOT NULL CHECK (input_price >= 0),
    cached_price     bigint  NOT NULL CHECK (cached_price >= 0),
    output_price     bigint  NOT NULL CHECK (output_price >= 0),
    reasoning_price  bigint  NOT NULL CHECK (reasoning_price >= 0),
    output_tokens    integer NOT NULL CHECK (output_tokens > 0),
    version          bigint  NOT NULL DEFAULT 0
)"""
_ANNOUNCED = (
    """CREATE TRIGGER model_rates_version BEFORE INSERT OR UPDATE ON model_rates
    FOR EACH ROW EXECUTE FUNCTION set_identity_version()""",
    """CREATE TRIGGER model_rates_announce AFTER INSERT OR UPDATE OR DELETE ON model_rates
    FOR EACH ROW EXECUTE FUNCTION announce_identity_change('pattern')""",
    """CREATE TRIGGER model_rates_emptied AFTER TRUNCATE ON model_rates
    FOR EACH STATEMENT EXECUTE FUNCTION announce_identity_change()""",
)
# Of the shipped plans the one that costs nothing waits first.
_SHIPPED_PRIORITIES = """
UPDATE plans SET priority = shipped.priority
FROM (VALUES ('free', 1), ('enterprise', 9)) AS shipped (name, priority) WHERE plans.name = shipped.name"""


def upgrade() -> None:
    for statement in (*_COLUMNS, _MODEL_RATES, *_ANNOUNCED, _SHIPPED_PRIORITIES):
        op.execute(statement)


def downgrade() -> None:
    raise NotImplementedError("there is no way back: what was charged would be lost")
