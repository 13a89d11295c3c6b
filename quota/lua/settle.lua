-- End a request: free its slots, put the fact in place of its reservation, append the event. Only the first call does.
--
-- KEYS[1] record of the request   KEYS[2] leases of the shard   KEYS[3] settled events of the shard (stream)
-- ARGV[1] request id
-- ARGV[2] tokens really used; "" lets the reservation stand
-- ARGV[3] ending, opaque
-- ARGV[4] the caller's copy of the admission, for a record that Redis has lost; "" for none
-- ARGV[5] "1": only when the lease has run out
-- ARGV[6] "settle", or "release": undo the reservation, requests included, without an event
--
-- Returns 1 when this call did it, 0 when there was nothing to do.
--
-- The keys of the windows and slots stand in the record: limits may have changed since they were taken. They carry
-- the hash tag of the record, so they are on the same node of a Redis Cluster.

local SETTLED_TTL_MS = 3600000  -- for how long a late second settlement is recognised here; the ledger does for ever

local record, leases, events = KEYS[1], KEYS[2], KEYS[3]
local request, tokens, ending, copy = ARGV[1], ARGV[2], ARGV[3], ARGV[4]
local release = ARGV[6] == 'release'

local known = redis.call('HMGET', record, 'state', 'admission', 'holds')
local state, admission = known[1], known[2]
if state == 'settled' or (not state and (copy == '' or release)) then
  return 0
end

if state == 'open' then
  if ARGV[5] == '1' then
    local time = redis.call('TIME')
    local lease_end = redis.call('ZSCORE', leases, request)
    if lease_end and tonumber(lease_end) > time[1] * 1000 + math.floor(time[2] / 1000) then
      return 0
    end
  end
  for _, hold in ipairs(cjson.decode(known[3])) do
    local key, unit, slice, amount = hold[1], hold[2], hold[3], hold[4]
    if slice < 0 then
      redis.call('ZREM', key, request)
    else
      local fact = amount
      if release then
        fact = 0
      elseif unit == 'tokens' and tokens ~= '' then
        fact = tonumber(tokens)
      end
      -- A slice that has left its window took its amount with it.
      if fact ~= amount and redis.call('HEXISTS', key, slice) == 1 then
        redis.call('HINCRBY', key, slice, fact - amount)
        redis.call('HINCRBY', key, 'sum', fact - amount)
      end
    end
  end
  redis.call('ZREM', leases, request)
else
  admission = copy
end

redis.call('DEL', record)
if release then
  return 1
end
redis.call('HSET', record, 'state', 'settled')
redis.call('PEXPIRE', record, SETTLED_TTL_MS)
redis.call('XADD', events, '*', 'admission', admission, 'ending', ending)
return 1
