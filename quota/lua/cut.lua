-- Read counters and the place in the stream of settled events at one moment: what had been settled then.
--
-- KEYS[1] token of the shard's repairs (string)   KEYS[2] settled events of the shard (stream)
-- KEYS[3] requests charged afterwards (zset: request id -> place among them)   KEYS[4] epoch of the shard
-- KEYS[5..] counters of windows (hash, see reserve.lua)
-- ARGV[1] a new token, taken when there is none
--
-- Returns {now ms, token, last id of the stream, last place of a request charged afterwards, epoch or "", counter, ...},
--         each counter as HGETALL gives it
--
-- The token goes with a flush, and changes with every repair: who repairs by a cut shows it, and is refused when
-- somebody else was faster.

local TOKEN_TTL_MS = 900000  -- a repair is made within seconds of its cut

local token, events, charged, epoch = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local time = redis.call('TIME')

redis.call('SET', token, ARGV[1], 'NX')
redis.call('PEXPIRE', token, TOKEN_TTL_MS)

local last_id = '0-0'
if redis.call('EXISTS', events) == 1 then
  local told = redis.call('XINFO', 'STREAM', events)
  for index = 1, #told, 2 do
    if told[index] == 'last-generated-id' then
      last_id = told[index + 1]
    end
  end
end

local answer = {
  time[1] * 1000 + math.floor(time[2] / 1000),
  redis.call('GET', token),
  last_id,
  redis.call('ZREVRANGE', charged, 0, 0, 'WITHSCORES')[2] or '0',
  redis.call('GET', epoch) or '',
}
for index = 5, #KEYS do
  answer[index + 1] = redis.call('HGETALL', KEYS[index])
end
return answer
