-- Correct counters by differences, which are right however much is reserved and settled meanwhile; or not at all.
--
-- KEYS[1] token of the shard's repairs   KEYS[2] epoch of the shard   KEYS[3..] counters of windows, one a correction
-- ARGV[1] token that the cut told        ARGV[2] token from now on    ARGV[3] epoch to set; "" for none
-- ARGV[4..] six a correction: slice, difference, oldest slice that counts besides, ms since the epoch from and until
--           when the slice counts, level of a bucket that has none (units x window ms; 0 for none)
--
-- Returns 1 when it was done, 0 when the token is another one: somebody has repaired since the cut, or Redis was flushed.
--
-- A slice that has left its window meanwhile, or has not begun, is left alone. `sum`, `reserved`, `first` and `last` are
-- made anew. The fields of a counter are told in reserve.lua.

local TOKEN_TTL_MS = 900000  -- as in cut.lua

if redis.call('GET', KEYS[1]) ~= ARGV[1] then
  return 0
end
redis.call('SET', KEYS[1], ARGV[2], 'PX', TOKEN_TTL_MS)

local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)

-- include make_whole.lua

for index = 3, #KEYS do
  local key, at = KEYS[index], 4 + (index - 3) * 6
  local slice, difference = ARGV[at], tonumber(ARGV[at + 1])
  local oldest, starts, ends = tonumber(ARGV[at + 2]), tonumber(ARGV[at + 3]), tonumber(ARGV[at + 4])
  if starts <= now and now < ends then
    local held = redis.call('HMGET', key, slice, 'r' .. slice)
    local settled = (tonumber(held[1]) or 0) - (tonumber(held[2]) or 0)
    redis.call('HINCRBY', key, slice, math.max(difference, -settled))
    make_whole(key, tonumber(slice), oldest)
    local expires = ends
    if tonumber(ARGV[at + 5]) > 0 and redis.call('HSETNX', key, 'level', ARGV[at + 5]) == 1 then
      redis.call('HSET', key, 'level_at', now)
      expires = now + ends - starts  -- a window from now; by then it has drained
    end
    if redis.call('PTTL', key) < expires - now then
      redis.call('PEXPIREAT', key, expires)
    end
  end
end

if ARGV[3] ~= '' then
  redis.call('SET', KEYS[2], ARGV[3])
end
return 1
