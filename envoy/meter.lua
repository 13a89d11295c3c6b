-- How much of a stream has passed? Runs in Envoy for every chunk of a Server-Sent Events answer.
--
-- Counts the events, notes when the first one passed, and removes the usage event that the gateway asked the Router
-- for when the client did not (docs/envoy.md). Holds nothing back but a partial event while it removes: an event that
-- is incomplete at the end of a stream is void (WHATWG HTML, 9.2.6: "the incomplete event is not dispatched").
--
-- Writes gateway.stream {first_event_ms, events, bytes} inside the loop: after it would be too late when the client
-- leaves. A write costs as much as all the rest, so from the eighth event on only every eighth is marked: `events` and
-- `bytes` are those of the last mark, from which the end is reckoned (extproc/ending.py). Empties gateway.admission
-- {told} of every answer.

local EVERY = 8
local EVENT_END = "\n\r?\n"
-- The last event of stream_options.include_usage: no choices, and the usage of the whole stream.
local WHOLE = EVENT_END .. "$"
local USAGE = '"usage"%s*:%s*{'
local NO_CHOICES = '"choices"%s*:%s*%[%s*%]'

local function is_usage_event(event)
  return event:find(USAGE) ~= nil and event:find(NO_CHOICES) ~= nil
end

-- Splits text into its complete events without usage events, how many events there were, and the partial rest.
local function without_usage(text)
  local kept, events, from = {}, 0, 1
  while true do
    local _, stop = text:find(EVENT_END, from)
    if stop == nil then
      return table.concat(kept), events, text:sub(from)
    end
    local event = text:sub(from, stop)
    if not is_usage_event(event) then
      kept[#kept + 1] = event
      events = events + 1
    end
    from = stop + 1
  end
end

-- Counts the event ends in text, and returns what may be the beginning of one.
local function count_events(text)
  local _, events = text:gsub(EVENT_END, "")
  if text:find(WHOLE) then
    return events, ""
  end
  return events, text:match("\n\r?$") or ""
end

local function is_event_stream(handle)
  local content_type = handle:headers():get("content-type")
  return content_type ~= nil and content_type:find("text/event-stream", 1, true) == 1
end

function envoy_on_response(handle)
  -- The headers stand on the answer by now: what they told need not fill the access log.
  handle:streamInfo():dynamicMetadata():set("gateway.admission", "told", "")
  if not is_event_stream(handle) then
    return
  end
  local admission = handle:streamInfo():dynamicMetadata():get("gateway.admission")
  local removes_usage = admission ~= nil and admission["strip_usage"] == "yes"
  local events, bytes, rest, marked = 0, 0, "", 0
  for chunk in handle:bodyChunks() do
    local text = rest .. chunk:getBytes(0, chunk:length())
    local passed
    -- A chunk of whole events without usage, as nearly all are, is counted and left as it is.
    if removes_usage and (rest ~= "" or text:find(USAGE) ~= nil or text:find(WHOLE) == nil) then
      local kept
      kept, passed, rest = without_usage(text)
      chunk:setBytes(kept)
    else
      passed, rest = count_events(text)
    end
    events = events + passed
    bytes = bytes + chunk:length()
    if events > marked and (events < EVERY or events - marked >= EVERY) then
      -- Fetched anew for each chunk: Envoy invalidates the object at every yield.
      local metadata = handle:streamInfo():dynamicMetadata()
      if marked == 0 then
        metadata:set("gateway.stream", "first_event_ms", handle:timestamp())
      end
      marked = events
      metadata:set("gateway.stream", "events", events)
      metadata:set("gateway.stream", "bytes", bytes)
    end
  end
end
