-- A request is alive: extend its lease, and note how far it came.
--
-- KEYS[1] record of the request   KEYS[2] leases of the shard   KEYS[3] log of the shard (stream)
-- ARGV[1] request id   ARGV[2] lease, ms   ARGV[3] events so far   ARGV[4] its stage; "" for no change
-- ARGV[5] event for the log when the stage is new; "" for none   ARGV[6..] the stages that this one may follow
--
-- Returns why the request is to be stopped, "" when it is not; nil when it is not open.
--
-- A request whose lease had run out takes its slot again, even above the ceiling: it runs, and as long as it does
-- nobody else is let in.

local RECORD_TTL_MS = 172800000
local LOG_LENGTH = 10000  -- as in reserve.lua

-- include holds_of.lua

-- include follows.lua

local known = redis.call('HMGET', KEYS[1], 'state', 'holds', 'events', 'stage', 'stopping')
if known[1] ~= 'open' then
  return false
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
if ARGV[4] ~= '' and follows(known[4], 6) then
  redis.call('HSET', KEYS[1], 'stage', ARGV[4], 'step', ARGV[5])
  if ARGV[5] ~= '' then
    redis.call('XADD', KEYS[3], 'MAXLEN', '~', LOG_LENGTH, '*', 'event', ARGV[5])
  end
end
return known[5] or ''
