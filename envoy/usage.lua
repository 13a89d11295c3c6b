-- What does a JSON answer say of usage? Runs in Envoy for every chunk of it, and holds none back.
--
-- Finds the member "usage" of the outermost object, wherever that stands, and writes its numbers to gateway.usage, under
-- the keys that sse_to_metadata uses for streams (envoy.yaml). Envoy's own json_to_metadata holds the whole answer until
-- its end: one that is longer than a connection's buffer becomes a 500.

-- What stands in front of the object; a string's value cannot, for no colon follows it.
local KEY = '[^\\]"usage"%s*:%s*$'
local KEY_BYTES = 64
local MAX_USAGE_BYTES = 8192
local QUOTE, BACKSLASH, OPENING, CLOSING = ('"\\{}'):byte(1, 4)
local OPENING_LIST = ("["):byte()
local NUMBERS = {
  prompt_tokens = "prompt", input_tokens = "input",
  completion_tokens = "output", output_tokens = "output",
  cache_read_input_tokens = "cache_read", cache_creation_input_tokens = "cache_written",
}
local DETAILS = {
  prompt_tokens_details = {cached_tokens = "cached"},
  input_tokens_details = {cached_tokens = "cached"},
  completion_tokens_details = {reasoning_tokens = "reasoning"},
  output_tokens_details = {reasoning_tokens = "reasoning"},
}

-- Writes the numbers of an object, but not of those in it.
local function write(metadata, object, keys)
  local flat = object:sub(2, -2):gsub("%b{}", "{}"):gsub("%b[]", "[]")
  for name, text in flat:gmatch('"([%w_]+)"%s*:%s*(%-?%d[%d.eE+-]*)') do
    local number = tonumber(text)
    if keys[name] ~= nil and number ~= nil then
      metadata:set("gateway.usage", keys[name], number)
    end
  end
end

local function write_usage(handle, usage)
  local metadata = handle:streamInfo():dynamicMetadata()
  write(metadata, usage, NUMBERS)
  for name, keys in pairs(DETAILS) do
    local details = usage:match('"' .. name .. '"%s*:%s*(%b{})')
    if details ~= nil then
      write(metadata, details, keys)
    end
  end
end

-- A bracket outside of strings: counts the depth, and knows where the usage begins and ends.
local function take_bracket(reader, text, at)
  local byte = text:byte(at)
  if byte == OPENING or byte == OPENING_LIST then
    if reader.depth == 1 and byte == OPENING then
      local before = reader.tail .. text:sub(math.max(1, at - KEY_BYTES), at - 1)
      if before:find(KEY) then
        reader.usage, reader.from = "", at
      end
    end
    reader.depth = reader.depth + 1
    return false
  end
  reader.depth = reader.depth - 1
  return reader.usage ~= nil and byte == CLOSING and reader.depth == 1
end

-- Follows a chunk from bracket to bracket and from string to string; returns the usage once it is whole.
local function follow(reader, text)
  local at = 1 + reader.skip
  reader.from = 1
  while true do
    local stop = text:find(reader.in_string and '["\\]' or '["{}%[%]]', at)
    if stop == nil then
      break
    end
    at = stop + 1
    local byte = text:byte(stop)
    if byte == QUOTE then
      reader.in_string = not reader.in_string
    elseif byte == BACKSLASH then
      at = stop + 2
    elseif take_bracket(reader, text, stop) then
      return reader.usage .. text:sub(reader.from, stop)
    end
  end
  reader.skip = math.max(0, at - #text - 1)
  reader.tail = (reader.tail .. text:sub(-KEY_BYTES)):sub(-KEY_BYTES)
  if reader.usage ~= nil then
    reader.usage = reader.usage .. text:sub(reader.from)
    if #reader.usage > MAX_USAGE_BYTES then
      reader.usage = nil
    end
  end
  return nil
end

local function is_plain_json(handle)
  local content_type = handle:headers():get("content-type")
  return content_type ~= nil and content_type:find("application/json", 1, true) == 1
    and (handle:headers():get("content-encoding") or "identity") == "identity"
end

function envoy_on_response(handle)
  if not is_plain_json(handle) then
    return
  end
  local reader = {depth = 0, in_string = false, skip = 0, tail = "", usage = nil, from = 1}
  for chunk in handle:bodyChunks() do
    local usage = follow(reader, chunk:getBytes(0, chunk:length()))
    if usage ~= nil then
      write_usage(handle, usage)
      return
    end
  end
end
