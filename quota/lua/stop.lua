-- Note that a request is to be stopped. The first reason stays.
--
-- KEYS[1] record of the request   ARGV[1] why
--
-- Returns 1, or 0 when the request is not open.
--
-- A script, because the end may come between the look and the note.

if redis.call('HGET', KEYS[1], 'state') ~= 'open' then
  return 0
end
redis.call('HSETNX', KEYS[1], 'stopping', ARGV[1])
return 1
