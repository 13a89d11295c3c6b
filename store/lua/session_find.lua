-- Find a session, and note that it is used: it lives for its idle time from now, but never past its absolute end.
--
-- KEYS[1] record of the session
-- ARGV[1] member of the index: "<session id>:<hash>"   ARGV[2] an index's key, up to the principal's id
--
-- Returns {session, created, expires, now}, times in ms since the epoch; false when there is none.
--
-- The index's key follows from the record. It carries the hash tag of the record, so both are on the same node of a
-- Redis Cluster.

local known = redis.call('HMGET', KEYS[1], 'session', 'principal', 'created', 'expires', 'idle', 'used')
if not known[1] then
  return false
end
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local expires, idle = tonumber(known[4]), tonumber(known[5])
-- Redis keeps a key for its last millisecond.
if now >= math.min(tonumber(known[6]) + idle, expires) then
  return false
end
local ends = math.min(now + idle, expires)
redis.call('HSET', KEYS[1], 'used', now)
redis.call('PEXPIREAT', KEYS[1], ends)
redis.call('ZADD', ARGV[2] .. known[2], 'XX', ends, ARGV[1])
return {known[1], tonumber(known[3]), expires, now}
