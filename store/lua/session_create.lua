-- Keep a session, unless its principal has as many as it may.
--
-- KEYS[1] record of the session   KEYS[2] index of the principal's sessions (sorted set, by end)
-- ARGV[1] member of the index: "<session id>:<hash>"   ARGV[2] the session, opaque
-- ARGV[3] the principal's id   ARGV[4] lifetime, ms   ARGV[5] idle time, ms   ARGV[6] most sessions of a principal
--
-- Returns 1, or 0 when there is no room.
--
-- The record ends by itself; its end in the index is the same, so what has ended can be told without a look at it.

local record, index = KEYS[1], KEYS[2]
local lifetime, idle = tonumber(ARGV[4]), tonumber(ARGV[5])
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)

redis.call('ZREMRANGEBYSCORE', index, '-inf', now)
if redis.call('ZCARD', index) >= tonumber(ARGV[6]) then
  return 0
end

local ends = now + math.min(lifetime, idle)
redis.call('HSET', record, 'session', ARGV[2], 'principal', ARGV[3], 'created', now, 'expires', now + lifetime,
           'idle', idle, 'used', now)
redis.call('PEXPIREAT', record, ends)
redis.call('ZADD', index, ends, ARGV[1])
-- The index outlives its last session's absolute end, however often that is used.
if redis.call('PTTL', index) < lifetime then
  redis.call('PEXPIREAT', index, now + lifetime)
end
return 1
