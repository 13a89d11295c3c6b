-- End a request: free its slots, put the fact in place of its reservation, append the event. Only the first call does.
--
-- KEYS[1] record of the request   KEYS[2] leases of the shard   KEYS[3] settled events of the shard (stream)
-- KEYS[4] log of the shard (stream)   KEYS[5] live requests of the tenant; none to release, the record names them
-- ARGV[1] request id
-- ARGV[2] msgpack: what it really counts for: {requests, input tokens, output tokens, tokens, micro-dollars}
-- ARGV[3] ending, opaque
-- ARGV[4] the caller's copy of the admission, which may know more than the record, and outlives it; "" for none
-- ARGV[5] "settle"; "overdue": only when the lease has run out; "release": undo the reservation, without an event
-- ARGV[6] prefix of the tallies' keys, same hash tag   ARGV[7] stage from now on   ARGV[8] event for the log; "" for none
-- ARGV[9..] the stages that it may follow
--
-- Returns 1 when this call did it, 0 when there was nothing to do, or the request's stage may not precede this one.
--
-- Until the ledger has it, the record keeps the admission and the ending, and the tenant's live requests the id.
-- A tally (hash: rows, requests, tokens, cost; since: id of its first event) counts what was appended to the settled
-- events on a day, UTC by their ids.
--
-- The keys of the counters stand in the record: limits may have changed since room was taken. They carry the hash tag
-- of the record, so they are on the same node of a Redis Cluster. The event says `at`, epoch ms of the reservation,
-- only when there was one. Integers only, below 2^53; `level` is units x window ms.

local SETTLED_TTL_MS = 3600000  -- for how long a late second settlement is recognised here; the ledger does for ever
local RELEASED_TTL_MS = 60000   -- for how long a reservation may come after its release
local RECORD_TTL_MS = 172800000 -- as in reserve.lua
local DAY_MS = 86400000
local TALLY_TTL_MS = 3456000000 -- 40 days: a month can be compared with the ledger when it is over
local LOG_LENGTH = 10000        -- as in reserve.lua
local PLACES = {requests = 1, input_tokens = 2, output_tokens = 3, tokens = 4, cost = 5}

local record, leases, events = KEYS[1], KEYS[2], KEYS[3]
local request, ending, copy, release = ARGV[1], ARGV[3], ARGV[4], ARGV[5] == 'release'

local known = redis.call('HMGET', record, 'state', 'admission', 'holds', 'at', 'stage', 'live')
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


-- include follows.lua

if not release and not follows(known[5], 9) then
  return 0
end
local live = known[6] or KEYS[5]

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

local charges, day, tally = cmsgpack.unpack(ARGV[2]), nil, nil
if not release then
  day = ARGV[6] .. math.floor(now / DAY_MS)
  tally = redis.call('HMGET', day, 'rows', 'requests', 'tokens', 'cost')
end
if state == 'open' then
  if ARGV[5] == 'overdue' then
    local lease_end = redis.call('ZSCORE', leases, request)
    if lease_end and tonumber(lease_end) > now then
      return 0
    end
  end
  local holds, held = holds_of(known[3]), {}
  -- All is read before anything is written: of a cluster whose slot is moving, a node that lacks a counter by now
  -- fails here, with nothing done.
  for index, hold in ipairs(holds) do
    held[index] = held_under(hold)
  end
  if release and live then
    redis.call('ZSCORE', live, request)
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
  if live then
    redis.call('ZREM', live, request)
  end
  redis.call('DEL', record)
  return 1
end
-- Never deleted and made anew: in a slot that is moving, a key that is gone cannot be written here.
redis.call('HSET', record, 'state', 'settled', 'stage', ARGV[7], 'admission', admission, 'ending', ending)
redis.call('HDEL', record, 'holds', 'answer', 'taken', 'stopping', 'step')
redis.call('PEXPIRE', record, SETTLED_TTL_MS)
if not known[6] then
  redis.call('ZADD', live, at or now, request)
  redis.call('PEXPIRE', live, RECORD_TTL_MS)
end

local id
if state == 'open' then
  id = redis.call('XADD', events, '*', 'admission', admission, 'ending', ending, 'at', at)
else
  id = redis.call('XADD', events, '*', 'admission', admission, 'ending', ending)
end
-- The id may be of a later day than now was: midnight has passed, or Redis's clock was set back.
local id_ms = tonumber(string.match(id, '^%d+'))
if math.floor(id_ms / DAY_MS) ~= math.floor(now / DAY_MS) then
  day = ARGV[6] .. math.floor(id_ms / DAY_MS)
  tally = redis.call('HMGET', day, 'rows', 'requests', 'tokens', 'cost')
end
redis.call('HSET', day, 'rows', (tally[1] or 0) + 1, 'requests', (tally[2] or 0) + charges[1],
           'tokens', (tally[3] or 0) + charges[4], 'cost', (tally[4] or 0) + charges[5])
if not tally[1] then
  redis.call('HSET', day, 'since', id)
  redis.call('PEXPIRE', day, TALLY_TTL_MS)
end
if ARGV[8] ~= '' then
  redis.call('XADD', KEYS[4], 'MAXLEN', '~', LOG_LENGTH, '*', 'event', ARGV[8])
end
return 1
