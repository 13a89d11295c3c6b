-- Count one more failure of a source. Its window begins with the first, and no later one prolongs it.
--
-- KEYS[1] counter of the source
-- ARGV[1] window, ms
--
-- Returns {failures in this window, ms until it ends}.

local failures = redis.call('INCR', KEYS[1])
local left = redis.call('PTTL', KEYS[1])
if left < 0 then
  left = tonumber(ARGV[1])
  redis.call('PEXPIRE', KEYS[1], left)
end
return {failures, left}
