-- Say which share of the work this replica wants shed, and keep the highest that any replica wants.
--
-- KEYS[1] replicas (hash: replica -> "<share> <until, milliseconds>")   KEYS[2] the highest share, expires with its wish
-- ARGV[1] replica   ARGV[2] share, thousandths; 0 for none   ARGV[3] milliseconds for which it holds
--
-- Returns the highest share.

local replicas, highest_key = KEYS[1], KEYS[2]
local replica, share, hold_ms = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3])

local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)

if share > 0 then
  redis.call('HSET', replicas, replica, string.format('%d %.0f', share, now + hold_ms))
  redis.call('PEXPIRE', replicas, hold_ms)
else
  redis.call('HDEL', replicas, replica)
end

local highest, highest_until = 0, 0
local wishes = redis.call('HGETALL', replicas)
for index = 1, #wishes, 2 do
  local wanted, ends = string.match(wishes[index + 1], '^(%d+) (%d+)$')
  wanted, ends = tonumber(wanted), tonumber(ends)
  if ends <= now then
    redis.call('HDEL', replicas, wishes[index])
  elseif wanted > highest or (wanted == highest and ends > highest_until) then
    highest, highest_until = wanted, ends
  end
end

if highest > 0 then
  redis.call('SET', highest_key, highest, 'PX', highest_until - now)
else
  redis.call('DEL', highest_key)
end
return highest
