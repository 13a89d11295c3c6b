-- The sessions of a principal that live. None of them is used hereby.
--
-- KEYS[1] index of the principal's sessions (sorted set, by end)
-- ARGV[1] a record's key, up to the hash
--
-- Returns {session, created, expires, used, ...}, four for each, times in ms since the epoch.
--
-- The records' keys follow from the index. They carry its hash tag, so all are on the same node of a Redis Cluster.

local time = redis.call('TIME')
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', time[1] * 1000 + math.floor(time[2] / 1000))
local answer = {}
for _, member in ipairs(redis.call('ZRANGE', KEYS[1], 0, -1)) do
  local hash = string.match(member, ':(.*)$')
  local known = redis.call('HMGET', ARGV[1] .. hash, 'session', 'created', 'expires', 'used')
  if known[1] then
    answer[#answer + 1] = known[1]
    for at = 2, 4 do
      answer[#answer + 1] = tonumber(known[at])
    end
  else
    -- Its record was evicted.
    redis.call('ZREM', KEYS[1], member)
  end
end
return answer
