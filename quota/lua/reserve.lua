-- Take room under every limit of a request, or under none. Idempotent by request id.
--
-- KEYS[1] record of the request   KEYS[2] leases of the shard   KEYS[3] epoch of the shard   KEYS[4] log (stream)
-- KEYS[5] live requests of the tenant (zset: request id -> ms since the epoch of the reservation)
-- KEYS[6..] counters, one per limit: a window (hash) or slots (zset: request id -> end of its lease, ms)
-- ARGV[1] request id   ARGV[2] admission, opaque
-- ARGV[3] msgpack: {lease, ms; five amounts; five leasts, in the order of UNITS; epoch ms after which it is too late}
-- ARGV[4] stage of the request once room is taken   ARGV[5] event for the log; "" for none
-- ARGV[6] msgpack: one array per limit: {kind, unit's place in UNITS, ceiling, priority, 1 in shadow mode, ...} and
--         of SLIDING windows: slice ms, live slices, window ms, burst (0: none)
--         of CALENDAR windows: when the periods before, at and after now begin, and when the last ends; epoch ms
--
-- Returns msgpack, one array; a standing is three numbers: used, reserved, reset ms
--   {1, now ms, count, taken..., standing..., shadowed index...}    taken, by this call or an earlier one
--   {1, now ms, 0}                                                  the request has ended
--   {0, index, used, least, retry after ms (-1: never), standing...}  refused by the index-th limit
--   {2, now ms}                                                     the calendar periods given are not those of now
--   {3}                                                             no epoch: the counters are not whole
--   {4, now ms}                                                     it is too late
--
-- The fields of a window: <slice> -> amount, r<slice> -> the part of it that running requests have reserved; sum and
-- reserved over all slices, first and last slice; with a burst, level (units x window ms) as it was at level_at (ms).
-- `holds` of a record is a msgpack list of {key, unit, slice (-1: a slot), amount, window ms (0: no burst), ceiling}.
-- A slice is a part of a sliding window, or the period of a calendar one, of which there is one at a time.
--
-- Time is Redis's own, in milliseconds, so that all workers count in the same slice. Integers only, below 2^53.
-- No key is deleted and made anew: in a slot of a cluster that is moving, a key that is gone cannot be written here.
-- A script, because check and take must be one step: two workers must not both see the last room.

local TAKEN, REFUSED, OTHER_PERIOD, NOT_WHOLE, TOO_LATE, NEVER = 1, 0, 2, 3, 4, -1
local SLIDING, CALENDAR = 0, 1
local UNITS = {'requests', 'input_tokens', 'output_tokens', 'tokens', 'cost'}
local SLOT_RETRY_MS = 1000        -- any running request may end meanwhile
local RECORD_TTL_MS = 172800000   -- two days; each renewal extends it
local LOG_LENGTH = 10000          -- about; observers that are further behind have lost some
local LATE_MS = 60000             -- a calendar window is kept so much longer, in case Redis's clock is set back

local record, request = KEYS[1], ARGV[1]
local known = redis.call('HMGET', record, 'state', 'answer')
if known[1] == 'open' and known[2] then
  return known[2]
end
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
-- A call that was delayed until after the end takes nothing: nobody would give it back.
if known[1] then
  return cmsgpack.pack({TAKEN, now, 0})
end
local asked, facts = cmsgpack.unpack(ARGV[3]), cmsgpack.unpack(ARGV[6])
-- It waited in a connection while Redis stood still: its caller has been answered long ago, and may be gone.
if now > asked[12] then
  return cmsgpack.pack({TOO_LATE, now})
end
if redis.call('EXISTS', KEYS[3]) == 0 then
  return cmsgpack.pack({NOT_WHOLE})
end

-- Drops the slices that have left the window: those from its first to the one before `oldest`.
local function drop(counter, oldest, live)
  local key, gone = counter.key, {}
  for slice = counter.first, math.min(counter.last, oldest - 1, counter.first + 2 * live) do
    gone[#gone + 1] = slice
    gone[#gone + 1] = 'r' .. slice
  end
  counter.first = math.min(oldest, counter.first + 2 * live + 1)
  if #gone == 0 then
    return
  end
  local held = redis.call('HMGET', key, unpack(gone))
  for at = 1, #gone, 2 do
    counter.sum = counter.sum - (held[at] or 0)
    counter.reserved = math.max(0, counter.reserved - (held[at + 1] or 0))
  end
  redis.call('HDEL', key, unpack(gone))
  redis.call('HSET', key, 'sum', counter.sum, 'reserved', counter.reserved, 'first', counter.first)
end

local function sliding(key, fact)
  local slice_ms, live, window_ms, burst = fact[6], fact[7], fact[8], fact[9]
  local slice = math.floor(now / slice_ms)
  local held
  if burst > 0 then
    held = redis.call('HMGET', key, slice, 'r' .. slice, 'sum', 'reserved', 'first', 'last', 'level', 'level_at')
  else
    held = redis.call('HMGET', key, slice, 'r' .. slice, 'sum', 'reserved', 'first', 'last')
  end
  local counter = {
    key = key, slice = slice, fresh = not held[1],
    amount = tonumber(held[1] or 0), own = tonumber(held[2] or 0),
    sum = tonumber(held[3] or 0), reserved = tonumber(held[4] or 0),
    first = tonumber(held[5] or slice), last = tonumber(held[6] or slice),
  }
  if burst > 0 then
    local drained = math.max(0, now - (held[8] or now)) * fact[3]
    -- Never fuller than full, whatever shadow mode or an answer longer than reserved has put in.
    counter.level = math.max(0, math.min(held[7] or 0, burst * window_ms) - drained)
    counter.burst_ms = window_ms
  end
  if counter.first < slice - live + 1 then
    drop(counter, slice - live + 1, live)
  end
  counter.reset_at = (counter.last + live) * slice_ms
  counter.expires = (slice + live + 1) * slice_ms
  return counter
end

-- include period_of.lua

-- nil when now is in none of the periods given.
local function calendar(key, fact)
  local held = redis.call('HMGET', key, 'first', 'sum', 'reserved')
  local first = tonumber(held[1] or 0)
  local place = period_of(fact, first, now)
  if not place then
    return nil
  end
  local start, fresh = fact[place], first ~= fact[place]
  local sum, reserved = tonumber(held[2] or 0), tonumber(held[3] or 0)
  if fresh then
    sum, reserved = 0, 0
  end
  return {
    key = key, slice = start, fresh = fresh, stale = fresh and held[1] and first, amount = sum, own = reserved,
    sum = sum, reserved = reserved, first = start, last = start,
    reset_at = fact[place + 1], expires = fact[place + 1] + LATE_MS,
  }
end

local function slots(key)
  local count = redis.call('ZCOUNT', key, '(' .. string.format('%.0f', now), '+inf')
  return {key = key, slice = -1, sum = count, reserved = count, reset_at = 0}
end

local function room(counter, fact)
  local free = fact[3] - counter.sum
  if counter.level then
    free = math.min(free, math.floor((fact[9] * fact[8] - counter.level) / fact[8]))
  end
  return free
end

-- When enough slices will have left the sliding window, and enough of its burst has drained; ms from now.
local function sliding_retry(counter, fact, least)
  local after, used, slices = 0, counter.sum, {}
  if used + least > fact[3] then
    for slice = counter.first, math.min(counter.last, counter.first + 2 * fact[7]) do
      slices[#slices + 1] = slice
    end
    local held = redis.call('HMGET', counter.key, unpack(slices))
    for place, slice in ipairs(slices) do
      used = used - (held[place] or 0)
      after = (slice + fact[7]) * fact[6] - now
      if used + least <= fact[3] then
        break
      end
    end
  end
  if counter.level and fact[3] > 0 then
    after = math.max(after, math.ceil((counter.level - (fact[9] - least) * fact[8]) / fact[3]))
  end
  return after
end

local function retry_after(counter, fact, least)
  if least > fact[3] or (counter.level and least > fact[9]) then
    return NEVER
  elseif fact[1] == SLIDING then
    return sliding_retry(counter, fact, least)
  elseif fact[1] == CALENDAR then
    return counter.reset_at - now
  end
  return SLOT_RETRY_MS
end

local function take(counter, fact, amount, lease_end)
  counter.sum, counter.reserved = counter.sum + amount, counter.reserved + amount
  local key, slice, last = counter.key, counter.slice, counter.last
  if slice < 0 then
    redis.call('ZADD', key, lease_end, request)
    redis.call('ZREMRANGEBYSCORE', key, '-inf', now)
    redis.call('PEXPIRE', key, RECORD_TTL_MS)
    return
  end
  if last < slice then
    last, counter.reset_at = slice, (slice + fact[7]) * fact[6]
  end
  local fields = {slice, counter.amount + amount, 'r' .. slice, counter.own + amount, 'sum', counter.sum,
                  'reserved', counter.reserved}
  local count = #fields
  if counter.fresh then
    -- A slice before the first: Redis's clock was set back.
    fields[9], fields[10], fields[11], fields[12] = 'first', math.min(counter.first, slice), 'last', last
    count = 12
  end
  if counter.level then
    local level = math.min(counter.level + amount * counter.burst_ms, fact[9] * fact[8])
    fields[count + 1], fields[count + 2] = 'level', string.format('%.0f', level)
    fields[count + 3], fields[count + 4] = 'level_at', now
    counter.expires = math.max(counter.expires, now + math.ceil(level / math.max(1, fact[3])))
  end
  redis.call('HSET', key, unpack(fields))
  if counter.stale then
    redis.call('HDEL', key, counter.stale, 'r' .. counter.stale)
  end
  if counter.fresh or counter.level then
    redis.call('PEXPIREAT', key, string.format('%.0f', counter.expires))
  end
end

local function add_standing(answer, counter)
  answer[#answer + 1] = counter.sum
  answer[#answer + 1] = counter.reserved
  answer[#answer + 1] = counter.sum > 0 and math.max(0, counter.reset_at - now) or 0
end

-- Of two that refuse, the one to be named: by priority, then one that never fits, then the longer wait.
local function outranks(refusal, other)
  if not other or refusal.priority ~= other.priority then
    return not other or refusal.priority > other.priority
  end
  if refusal.retry == NEVER or other.retry == NEVER then
    return refusal.retry == NEVER and other.retry ~= NEVER
  end
  return refusal.retry > other.retry
end

local counters, amounts, shadowed, refusal = {}, {}, {}, nil
for index, fact in ipairs(facts) do
  local key, amount, least = KEYS[index + 5], 1, 1
  if fact[2] > 0 then
    amount, least = asked[1 + fact[2]], asked[6 + fact[2]]
  end
  local counter
  if fact[1] == SLIDING then
    counter = sliding(key, fact)
  elseif fact[1] == CALENDAR then
    counter = calendar(key, fact)
  else
    counter = slots(key)
  end
  if not counter then
    return cmsgpack.pack({OTHER_PERIOD, now})
  end
  local free, shadow = room(counter, fact), fact[5] == 1
  counters[index] = counter
  amounts[index] = math.max(least, shadow and amount or math.min(amount, free))
  if least > free and shadow then
    shadowed[#shadowed + 1] = index - 1
  elseif least > free then
    local found = {
      index = index - 1, priority = fact[4], used = counter.sum, least = least,
      retry = retry_after(counter, fact, least),
    }
    if outranks(found, refusal) then
      refusal = found
    end
  end
end

if refusal then
  local answer = {REFUSED, refusal.index, refusal.used, refusal.least, refusal.retry}
  for _, counter in ipairs(counters) do
    add_standing(answer, counter)
  end
  return cmsgpack.pack(answer)
end

local lease_end, holds, answer = now + asked[1], {}, {TAKEN, now, #facts}
for index, fact in ipairs(facts) do
  local counter, amount = counters[index], amounts[index]
  take(counter, fact, amount, lease_end)
  holds[index] = {
    counter.key, UNITS[fact[2]] or 'concurrent_requests', counter.slice, amount, counter.burst_ms or 0,
    counter.burst_ms and fact[3],
  }
  answer[index + 3] = amount
end
for _, counter in ipairs(counters) do
  add_standing(answer, counter)
end
for _, index in ipairs(shadowed) do
  answer[#answer + 1] = index
end
local packed = cmsgpack.pack(answer)
redis.call('HSET', record, 'state', 'open', 'admission', ARGV[2], 'at', now, 'holds', cmsgpack.pack(holds),
           'answer', packed, 'stage', ARGV[4], 'live', KEYS[5])
redis.call('PEXPIRE', record, RECORD_TTL_MS)
redis.call('ZADD', KEYS[2], lease_end, request)
redis.call('PEXPIRE', KEYS[2], RECORD_TTL_MS)
redis.call('ZADD', KEYS[5], now, request)
redis.call('PEXPIRE', KEYS[5], RECORD_TTL_MS)
if ARGV[5] ~= '' then
  redis.call('XADD', KEYS[4], 'MAXLEN', '~', LOG_LENGTH, '*', 'event', ARGV[5])
end
return packed
