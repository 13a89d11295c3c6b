-- End sessions of a principal: one, or all that there are.
--
-- KEYS[1] index of the principal's sessions (sorted set, by end)
-- ARGV[1] a record's key, up to the hash   ARGV[2] the session's id; "" for all
--
-- Returns how many there were.
--
-- The records' keys follow from the index. They carry its hash tag, so all are on the same node of a Redis Cluster.

local time = redis.call('TIME')
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', time[1] * 1000 + math.floor(time[2] / 1000))
local ended = 0
for _, member in ipairs(redis.call('ZRANGE', KEYS[1], 0, -1)) do
  local id, hash = string.match(member, '^(.*):(.*)$')
  if ARGV[2] == '' or ARGV[2] == id then
    ended = ended + redis.call('DEL', ARGV[1] .. hash)
    redis.call('ZREM', KEYS[1], member)
  end
end
return ended
