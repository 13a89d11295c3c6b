-- Which requests does nobody report any more?
--
-- KEYS[1] leases of the shard   ARGV[1] at most so many   ARGV[2] prefix of the records' keys, same hash tag
--
-- Returns {request id, admission, events, why it is to be stopped or "", request id, ...}. An id whose record is gone is dropped from the leases.

local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local found = {}
for _, request in ipairs(redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', now, 'LIMIT', 0, ARGV[1])) do
  local known = redis.call('HMGET', ARGV[2] .. request, 'state', 'admission', 'events', 'stopping')
  if known[1] == 'open' then
    found[#found + 1] = request
    found[#found + 1] = known[2]
    found[#found + 1] = known[3] or '0'
    found[#found + 1] = known[4] or ''
  else
    redis.call('ZREM', KEYS[1], request)
  end
end
return found
