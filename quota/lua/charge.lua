-- Charge a request that no counter holds, once.
--
-- KEYS[1] requests charged afterwards (zset: request id -> place among them)   KEYS[2..] counters of windows
-- ARGV[1] request id
-- ARGV[2..] five a counter: slice, amount, oldest slice that counts besides, ms since the epoch from and until when the
--           slice counts
--
-- Returns 1 when this call did it, 0 when an earlier one had.
--
-- Who compares counters with the ledger (cut.lua) must know of each such request whether it was charged before or
-- after: places rise. A slice that has left its window, or has not begun, is left alone.

local KEPT_US = 600000000  -- a charge comes again only until its event is acknowledged, and a comparison takes seconds

local charged, request = KEYS[1], ARGV[1]
if redis.call('ZSCORE', charged, request) then
  return 0
end

local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local now_us = time[1] * 1000000 + time[2]
local last = redis.call('ZREVRANGE', charged, 0, 0, 'WITHSCORES')[2]
local place = math.max(now_us, (tonumber(last) or 0) + 1)
redis.call('ZREMRANGEBYSCORE', charged, '-inf', string.format('%.0f', now_us - KEPT_US))
redis.call('ZADD', charged, string.format('%.0f', place), request)
redis.call('PEXPIRE', charged, KEPT_US / 1000)

-- include make_whole.lua

for index = 2, #KEYS do
  local key, at = KEYS[index], 2 + (index - 2) * 5
  local starts, ends = tonumber(ARGV[at + 3]), tonumber(ARGV[at + 4])
  if starts <= now and now < ends then
    redis.call('HINCRBY', key, ARGV[at], ARGV[at + 1])
    make_whole(key, tonumber(ARGV[at]), tonumber(ARGV[at + 2]))
    if redis.call('PTTL', key) < ends - now then
      redis.call('PEXPIREAT', key, ends)
    end
  end
end
return 1
