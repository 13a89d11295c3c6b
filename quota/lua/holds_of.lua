-- A part of settle.lua and renew.lua: the `holds` of a record (see reserve.lua).
--
-- A record of the version before this has its holds in JSON.
local function holds_of(text)
  return string.byte(text) == string.byte('[') and cjson.decode(text) or cmsgpack.unpack(text)
end
