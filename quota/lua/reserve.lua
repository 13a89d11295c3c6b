-- Take room under every limit of a request, or under none. Idempotent by request id.
--
-- KEYS[1]   record of the request (hash: state, admission, holds, taken, at)
-- KEYS[2]   leases of the shard (zset: request id -> end of its lease, ms)
-- KEYS[3..] one per limit: a window (hash: slice number -> amount, sum, first) or slots (zset: request id -> lease end)
-- ARGV[1]   request id        ARGV[2] admission, opaque        ARGV[3] lease, ms
-- ARGV[4..] six per limit: unit, slice ms (0: slots), live slices, ceiling, amount, least
--
-- Returns   {1, now ms, taken, taken, ...}               taken, or taken by an earlier call ({1, now ms}: has ended)
--           {0, index of the limit, used, retry after ms (-1: never fits)}
--
-- Time is Redis's own, in milliseconds, so that all workers count in the same slice. Integers only.
-- A script, because check and take must be one step: two workers must not both see the last room.

local SLOT_RETRY_MS = 1000       -- any running request may end meanwhile
local RECORD_TTL_MS = 172800000  -- two days; each renewal extends it

local record, leases = KEYS[1], KEYS[2]
local request, admission, lease_ms = ARGV[1], ARGV[2], tonumber(ARGV[3])

local known = redis.call('HMGET', record, 'state', 'at', 'taken')
if known[1] == 'open' then
  local answer = {1, tonumber(known[2])}
  for taken in string.gmatch(known[3], '%d+') do
    answer[#answer + 1] = tonumber(taken)
  end
  return answer
end

local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)

-- A call that was delayed until after the end takes nothing: nobody would give it back.
if known[1] == 'settled' then
  return {1, now}
end

-- Drops the slices that have left the window; returns what the others hold.
local function used_in_window(key, slice, live)
  local held = redis.call('HMGET', key, 'sum', 'first')
  if not held[1] then
    return 0
  end
  local sum, first, oldest = tonumber(held[1]), tonumber(held[2]), slice - live + 1
  if first >= oldest then
    return sum
  end
  if oldest - first >= live then
    redis.call('DEL', key)
    return 0
  end
  for number = first, oldest - 1 do
    local amount = redis.call('HGET', key, number)
    if amount then
      sum = sum - amount
      redis.call('HDEL', key, number)
    end
  end
  redis.call('HSET', key, 'sum', sum, 'first', oldest)
  return sum
end

-- When enough slices will have left the window, in ms from now.
local function room_after(key, limit, used)
  local first = tonumber(redis.call('HGET', key, 'first'))
  for number = first, limit.slice do
    used = used - (redis.call('HGET', key, number) or 0)
    if used + limit.least <= limit.ceiling then
      return (number + limit.live) * limit.slice_ms - now
    end
  end
  return 0
end

local limits, amounts = {}, {}
for index = 1, #KEYS - 2 do
  local at = 4 + (index - 1) * 6
  local key = KEYS[index + 2]
  local limit = {
    key = key, unit = ARGV[at], slice_ms = tonumber(ARGV[at + 1]), live = tonumber(ARGV[at + 2]),
    ceiling = tonumber(ARGV[at + 3]), amount = tonumber(ARGV[at + 4]), least = tonumber(ARGV[at + 5]),
  }
  local used
  if limit.slice_ms == 0 then
    redis.call('ZREMRANGEBYSCORE', key, '-inf', now)
    used = redis.call('ZCARD', key)
  else
    limit.slice = math.floor(now / limit.slice_ms)
    used = used_in_window(key, limit.slice, limit.live)
  end
  if used + limit.least > limit.ceiling then
    local retry = SLOT_RETRY_MS
    if limit.least > limit.ceiling then
      retry = -1
    elseif limit.slice_ms > 0 then
      retry = room_after(key, limit, used)
    end
    return {0, index, used, retry}
  end
  limits[index] = limit
  amounts[index] = math.max(limit.least, math.min(limit.amount, limit.ceiling - used))
end

local holds = {}
for index, limit in ipairs(limits) do
  local key, amount = limit.key, amounts[index]
  if limit.slice_ms == 0 then
    redis.call('ZADD', key, now + lease_ms, request)
    redis.call('PEXPIRE', key, RECORD_TTL_MS)
  else
    redis.call('HINCRBY', key, limit.slice, amount)
    redis.call('HINCRBY', key, 'sum', amount)
    redis.call('HSETNX', key, 'first', limit.slice)
    redis.call('PEXPIRE', key, (limit.live + 1) * limit.slice_ms)
  end
  holds[index] = {key, limit.unit, limit.slice or -1, amount}
end
redis.call('HSET', record, 'state', 'open', 'admission', admission, 'holds', cjson.encode(holds),
           'taken', table.concat(amounts, ' '), 'at', now)
redis.call('PEXPIRE', record, RECORD_TTL_MS)
redis.call('ZADD', leases, now + lease_ms, request)

local answer = {1, now}
for index, amount in ipairs(amounts) do
  answer[index + 2] = amount
end
return answer
