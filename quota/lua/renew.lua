-- A request is alive: extend its lease, and note how far it came.
--
-- KEYS[1] record of the request   KEYS[2] leases of the shard
-- ARGV[1] request id   ARGV[2] lease, ms   ARGV[3] events so far
--
-- Returns 1, or 0 when the request is not open.
--
-- A request whose lease had run out takes its slot again, even above the ceiling: it runs, and as long as it does
-- nobody else is let in.

local RECORD_TTL_MS = 172800000

-- include holds_of.lua

local known = redis.call('HMGET', KEYS[1], 'state', 'holds', 'events')
if known[1] ~= 'open' then
  return 0
end
local time = redis.call('TIME')
local lease_end = time[1] * 1000 + math.floor(time[2] / 1000) + tonumber(ARGV[2])
for _, hold in ipairs(holds_of(known[2])) do
  if hold[3] < 0 then
    redis.call('ZADD', hold[1], lease_end, ARGV[1])
    redis.call('PEXPIRE', hold[1], RECORD_TTL_MS)
  end
end
redis.call('ZADD', KEYS[2], lease_end, ARGV[1])
redis.call('PEXPIRE', KEYS[2], RECORD_TTL_MS)
redis.call('HSET', KEYS[1], 'events', math.max(tonumber(known[3] or '0'), tonumber(ARGV[3])))
redis.call('PEXPIRE', KEYS[1], RECORD_TTL_MS)
return 1
