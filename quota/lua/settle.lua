-- End a request: free its slots, put the fact in place of its reservation, append the event. Only the first call does.
--
-- KEYS[1] record of the request   KEYS[2] leases of the shard   KEYS[3] settled events of the shard (stream)
-- ARGV[1] request id
-- ARGV[2] msgpack: what it really counts for: {requests, input tokens, output tokens, tokens, micro-dollars}
-- ARGV[3] ending, opaque
-- ARGV[4] the caller's copy of the admission, which may know more than the record, and outlives it; "" for none
-- ARGV[5] "settle"; "overdue": only when the lease has run out; "release": undo the reservation, without an event
--
-- Returns 1 when this call did it, 0 when there was nothing to do.
--
-- The keys of the counters stand in the record: limits may have changed since room was taken. They carry the hash tag
-- of the record, so they are on the same node of a Redis Cluster. The event says `at`, epoch ms of the reservation,
-- only when there was one. Integers only, below 2^53; `level` is units x window ms.

local SETTLED_TTL_MS = 3600000  -- for how long a late second settlement is recognised here; the ledger does for ever
local RELEASED_TTL_MS = 60000   -- for how long a reservation may come after its release
local PLACES = {requests = 1, input_tokens = 2, output_tokens = 3, tokens = 4, cost = 5}

local record, leases, events = KEYS[1], KEYS[2], KEYS[3]
local request, ending, copy, release = ARGV[1], ARGV[3], ARGV[4], ARGV[5] == 'release'

local known = redis.call('HMGET', record, 'state', 'admission', 'holds', 'at')
local state, admission, at = known[1], known[2], known[4]
if release and not state then
  -- The reservation that this undoes may be on its way still, in a connection that was given up: it comes too late.
  redis.call('HSET', record, 'state', 'released')
  redis.call('PEXPIRE', record, RELEASED_TTL_MS)
  return 0
end
if state == 'settled' or (state ~= 'open' and (copy == '' or release)) then
  return 0
end

local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)

-- include holds_of.lua

-- What a burst's bucket holds when `less` of what was taken at the reservation had not been. Of that, as much as can
-- have drained since has left the bucket already: no more than the rest is given back.
local function level_without(held, less, burst_ms, ceiling)
  local level = math.max(0, held[5] - math.max(0, now - held[6]) * ceiling)
  if less > 0 then
    return math.max(0, level - math.max(0, less * burst_ms - math.max(0, now - at) * ceiling))
  end
  return level - less * burst_ms
end

local function held_under(hold)
  if hold[3] < 0 then
    return redis.call('ZSCORE', hold[1], request)
  end
  return redis.call('HMGET', hold[1], hold[3], 'r' .. hold[3], 'sum', 'reserved', 'level', 'level_at')
end

local function replace(hold, held, amount, fact)
  local slice, less, burst_ms = hold[3], amount - fact, hold[5] or 0  -- an older version's record has no burst
  local fields = {
    slice, math.max(0, held[1] - less), 'r' .. slice, math.max(0, (held[2] or 0) - amount),
    'sum', math.max(0, (held[3] or 0) - less), 'reserved', math.max(0, (held[4] or 0) - amount),
  }
  if burst_ms > 0 and less ~= 0 and held[5] and held[6] then
    fields[9], fields[10] = 'level', string.format('%.0f', level_without(held, less, burst_ms, tonumber(hold[6])))
    fields[11], fields[12] = 'level_at', math.max(now, held[6])
  end
  redis.call('HSET', hold[1], unpack(fields))
end

if state == 'open' then
  if ARGV[5] == 'overdue' then
    local lease_end = redis.call('ZSCORE', leases, request)
    if lease_end and tonumber(lease_end) > now then
      return 0
    end
  end
  local charges, holds, held = cmsgpack.unpack(ARGV[2]), holds_of(known[3]), {}
  -- All is read before anything is written: of a cluster whose slot is moving, a node that lacks a counter by now
  -- fails here, with nothing done.
  for index, hold in ipairs(holds) do
    held[index] = held_under(hold)
  end
  for index, hold in ipairs(holds) do
    if hold[3] < 0 then
      redis.call('ZREM', hold[1], request)
    elseif held[index][1] then
      -- A slice that has left its window took its amount with it.
      replace(hold, held[index], tonumber(hold[4]), release and 0 or charges[PLACES[hold[2]]])
    end
  end
  redis.call('ZREM', leases, request)
end
if copy ~= '' then
  admission = copy
end

if release then
  redis.call('DEL', record)
  return 1
end
-- Never deleted and made anew: in a slot that is moving, a key that is gone cannot be written here.
redis.call('HSET', record, 'state', 'settled')
redis.call('HDEL', record, 'admission', 'holds', 'answer', 'taken', 'at', 'events')
redis.call('PEXPIRE', record, SETTLED_TTL_MS)
if state == 'open' then
  redis.call('XADD', events, '*', 'admission', admission, 'ending', ending, 'at', at)
else
  redis.call('XADD', events, '*', 'admission', admission, 'ending', ending)
end
return 1
