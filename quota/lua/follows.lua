-- A part of settle.lua and renew.lua: whether a request in this stage may take the step that the caller names.
--
-- ARGV[first..] are the stages that the step may follow. A record of an older version has no stage.
local function follows(stage, first)
  if not stage or stage == '' then
    return true
  end
  for place = first, #ARGV do
    if ARGV[place] == stage then
      return true
    end
  end
  return false
end
