-- A part of repair.lua and charge.lua: the fields of a window (see reserve.lua), after one of its slices was changed.
--
-- Drops slices that have left the window, and makes what stands beside the others anew. A calendar window, whose oldest
-- slice is its only one, may hold a later one too: that of another time zone, which the tenant had before.
local function make_whole(key, slice, oldest)
  local held, fields = {}, redis.call('HGETALL', key)
  for at = 1, #fields, 2 do
    held[fields[at]] = tonumber(fields[at + 1])
  end
  local sum, reserved, first, last = 0, 0, nil, nil
  for field, amount in pairs(held) do
    local number = tonumber(field)
    if number and (number < oldest or oldest == slice and number ~= slice) then
      redis.call('HDEL', key, field, 'r' .. field)
    elseif number then
      sum, reserved = sum + amount, reserved + (held['r' .. field] or 0)
      first, last = math.min(first or number, number), math.max(last or number, number)
    end
  end
  redis.call('HSET', key, 'sum', sum, 'reserved', reserved, 'first', first, 'last', last)
end
