-- A part of reserve.lua and standings.lua: which of the periods in a calendar window's facts counts (see reserve.lua).
--
-- `first` is the slice that the counter holds, 0 for none. Returns the place of the period's beginning among the facts;
-- nil when now is in none of them. What stands under a later period was counted before Redis's clock was set back.
local function period_of(fact, first, now)
  local place = nil
  for period = 6, 8 do
    if now >= fact[period] and now < fact[period + 1] or place and first == fact[period] then
      place = period
    end
  end
  return place
end
