-- How do counters stand? Asking changes nothing.
--
-- KEYS[1] epoch of the shard   KEYS[2..] counters, as in reserve.lua   ARGV[1] msgpack: facts of the limits, as there
--
-- Returns msgpack, one array
--   {1, used, reserved, reset ms, used, ...}   in the units of the limits; ms from now
--   {2, now ms}                                the calendar periods given are not those of now
--   {3}                                        no epoch: the counters are not whole

local TOLD, OTHER_PERIOD, NOT_WHOLE = 1, 2, 3
local SLIDING, CALENDAR = 0, 1

if redis.call('EXISTS', KEYS[1]) == 0 then
  return cmsgpack.pack({NOT_WHOLE})
end
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)

local function sliding(key, fact)
  local slice_ms, live = fact[6], fact[7]
  local slice = math.floor(now / slice_ms)
  local held = redis.call('HMGET', key, 'sum', 'reserved', 'first', 'last')
  local used, reserved = tonumber(held[1] or 0), tonumber(held[2] or 0)
  local first, last, gone = tonumber(held[3] or slice), tonumber(held[4] or slice), {}
  if last <= slice - live then
    return 0, 0, 0
  end
  -- From the newest that has left the window, so that a list that is cut short lacks what expired long ago.
  for left = slice - live, math.max(first, slice - 3 * live), -1 do
    gone[#gone + 1] = left
    gone[#gone + 1] = 'r' .. left
  end
  if #gone > 0 then
    local amounts = redis.call('HMGET', key, unpack(gone))
    for at = 1, #gone, 2 do
      used = used - (amounts[at] or 0)
      reserved = reserved - (amounts[at + 1] or 0)
    end
  end
  return used, math.max(0, reserved), (last + live) * slice_ms
end

-- include period_of.lua

-- nil when now is in none of the periods given.
local function calendar(key, fact)
  local held = redis.call('HMGET', key, 'first', 'sum', 'reserved')
  local first = tonumber(held[1] or 0)
  local place = period_of(fact, first, now)
  if place and first ~= fact[place] then
    return 0, 0, 0
  end
  return place and tonumber(held[2] or 0), tonumber(held[3] or 0), place and fact[place + 1]
end

local answer = {TOLD}
for index, fact in ipairs(cmsgpack.unpack(ARGV[1])) do
  local key, used, reserved, reset_at = KEYS[index + 1], nil, nil, 0
  if fact[1] == SLIDING then
    used, reserved, reset_at = sliding(key, fact)
  elseif fact[1] == CALENDAR then
    used, reserved, reset_at = calendar(key, fact)
  else
    used = redis.call('ZCOUNT', key, '(' .. string.format('%.0f', now), '+inf')
    reserved = used
  end
  if not used then
    return cmsgpack.pack({OTHER_PERIOD, now})
  end
  answer[#answer + 1] = used
  answer[#answer + 1] = reserved
  answer[#answer + 1] = used > 0 and math.max(0, reset_at - now) or 0
end
return cmsgpack.pack(answer)
