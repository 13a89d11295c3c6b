-- How much of a stream has passed? Runs in Envoy for every chunk of a Server-Sent Events answer.
--
-- Counts the events, notes when the first one passed and that the stream's own end has, and takes out what is not the
-- client's: the usage event that the gateway asked the Router for (docs/envoy.md), and the Router's words on its
-- decision and its cost. extproc/sse.py does the same in line. An event that may have to be removed is held back while
-- it is partial: incomplete at the end of a stream it is void (WHATWG HTML, 9.2.6: "the incomplete event is not
-- dispatched").
--
-- Writes gateway.stream {first_event_ms, events, bytes, done, failed} and gateway.router {decision, cost} inside the
-- loop: after it would be too late when the client leaves. A write costs as much as all the rest, so from the eighth
-- event on only every eighth is marked, and the end: `events` and `bytes` are those of the last mark, from which the
-- rest is reckoned (extproc/log_entry.py). Empties gateway.admission {told} of every answer.

local EVERY = 8
local EVENT_END = "\n\r?\n"
local WHOLE = "[^\r\n]\r?\n\r?\n$"
-- Longer than any event of a model: a body without event ends is passed on unread.
local MAX_PARTIAL = 1048576
-- The last event of stream_options.include_usage: no choices, and the usage of the whole stream.
local USAGE = '"usage"%s*:%s*{'
local NO_CHOICES = '"choices"%s*:%s*%[%s*%]'
-- A comment of the Router, told in its last events: `: x-router-cost {"total_usd": "0.0013"}`.
local WORD = "^: x%-router%-(%a+) (.-)\r?\n$"
local WORD_BEGINS = ": x-router-"
local IS_WORD = {decision = true, cost = true}
local MAX_WORD_BYTES = 8192
-- A byte that is no UTF-8 would cost the access log a whole message of entries: a word has none of them.
local NO_ASCII = "[^\t -~]"
local COLON = (":"):byte()
-- Each after a line feed: at the beginning of a line, where no text of a model can stand, for JSON has no raw newline.
local PING = "\nevent: ?ping[ \t\r]*\n"
local DONE = "\ndata: ?%[DONE%][ \t\r]*\n"
local STOPPED = "\nevent: ?message_stop[ \t\r]*\n"
local RESPONSE = "\nevent: ?response%.(%a+)[ \t\r]*\n"
local ENDS_RESPONSE = {completed = true, incomplete = true, failed = true}

local function has(text, plain)
  return text:find(plain, 1, true) ~= nil
end

local function is_usage_event(event)
  return event:find(USAGE) ~= nil and event:find(NO_CHOICES) ~= nil
end

local function may_end_response(text)
  return has(text, "response.")
    and (has(text, "response.completed") or has(text, "response.incomplete") or has(text, "response.failed"))
end

-- Whether text is whole events with no more in them than an answer's text: nearly all are.
local function is_plain(text, removes_usage)
  return text:find(WHOLE, -5) ~= nil
    and text:byte(1) ~= COLON and not has(text, "\n:")
    and not has(text, "[DONE]") and not has(text, "ping")
    and not has(text, "message_stop") and not may_end_response(text)
    and not (removes_usage and text:find(USAGE) ~= nil)
end

local function may_be_word(line)
  local bytes = math.min(#line, #WORD_BEGINS)
  return bytes > 0 and line:sub(1, bytes) == WORD_BEGINS:sub(1, bytes)
end

-- Whole lines without the Router's words, which are put into `words`.
local function without_words(lines, words)
  if lines:byte(1) ~= COLON and not has(lines, "\n:") then
    return lines
  end
  local kept = {}
  for line in lines:gmatch("[^\n]*\n") do
    local name, value = line:match(WORD)
    if not IS_WORD[name] then
      kept[#kept + 1] = line
    elseif #value <= MAX_WORD_BYTES and not value:find(NO_ASCII) then
      words[name] = value
    end
  end
  return table.concat(kept)
end

-- What the client gets of a whole event, and whether it counts.
local function read_event(meter, event)
  if event:byte(1) == COLON or has(event, "\n:") then
    event = without_words(event, meter.words)
    if not ("\n" .. event):find("\n[^:\r\n]") then
      return (event == "\n" or event == "\r\n") and "" or event, false
    end
  end
  if meter.removes_usage and is_usage_event(event) then
    return "", false
  end
  local lines = "\n" .. event
  if lines:find(PING) then
    return event, false
  end
  local response = lines:match(RESPONSE)
  if lines:find(DONE) or lines:find(STOPPED) or ENDS_RESPONSE[response] then
    meter.done, meter.failed = true, response == "failed"
  end
  return event, true
end

-- Of a partial event, what the client may have already: nothing while it may be the usage event, else all but a last
-- line that may be a word of the Router.
local function visible(meter, partial)
  if meter.removes_usage then
    return ""
  end
  local lines, last = partial:match("^(.*\n)(.*)$")
  if lines == nil then
    lines, last = "", partial
  end
  return without_words(lines, {}) .. (may_be_word(last) and "" or last)
end

-- Takes a chunk behind the partial event: returns what the client gets now. `sent` is how much of that event's visible
-- part it has already.
local function take(meter, chunk)
  local text, kept, from = meter.partial .. chunk, {}, 1
  -- An end may begin in what was held, at most two bytes before the new ones.
  local search = math.max(1, #meter.partial - 1)
  while true do
    local _, stop = text:find(EVENT_END, search)
    if stop == nil then
      break
    end
    local event, counts = text:sub(from, stop), true
    if not meter.unread then
      event, counts = read_event(meter, event)
    end
    kept[#kept + 1] = event:sub(meter.sent + 1)
    meter.events = meter.events + (counts and 1 or 0)
    meter.unread, meter.sent = false, 0
    from, search = stop + 1, stop + 1
  end
  local partial = text:sub(from)
  if meter.unread or #partial > MAX_PARTIAL then
    local shown = meter.unread and partial or without_words(partial, {})
    kept[#kept + 1] = shown:sub(meter.sent + 1)
    meter.unread, meter.partial = true, partial:match("\n\r?$") or ""
    meter.sent = #meter.partial
  else
    local shown = visible(meter, partial)
    kept[#kept + 1] = shown:sub(meter.sent + 1)
    meter.partial, meter.sent = partial, #shown
  end
  return table.concat(kept)
end

-- Fetched anew for each chunk: Envoy invalidates the object at every yield.
local function mark(handle, meter)
  local metadata = handle:streamInfo():dynamicMetadata()
  if meter.marked == 0 then
    metadata:set("gateway.stream", "first_event_ms", handle:timestamp())
  end
  meter.marked = meter.events
  metadata:set("gateway.stream", "events", meter.events)
  metadata:set("gateway.stream", "bytes", meter.bytes)
end

local function note(handle, meter)
  local metadata = handle:streamInfo():dynamicMetadata()
  if meter.done then
    metadata:set("gateway.stream", "done", "yes")
  end
  if meter.failed then
    metadata:set("gateway.stream", "failed", "yes")
  end
  for name, value in pairs(meter.words) do
    metadata:set("gateway.router", name, value)
  end
end

local function is_event_stream(handle)
  local content_type = handle:headers():get("content-type")
  return content_type ~= nil and content_type:find("text/event-stream", 1, true) == 1
end

-- What is metered in line passes the sidecar, unless the Router had compressed it (docs/envoy.md).
local function passes_the_sidecar(handle)
  return handle:filterContext():get("metering") == "inline"
    and handle:streamInfo():dynamicMetadata():get("gateway.coding") == nil
end

function envoy_on_response(handle)
  -- The headers stand on the answer by now: what they told need not fill the access log.
  handle:streamInfo():dynamicMetadata():set("gateway.admission", "told", "")
  if not is_event_stream(handle) then
    return
  end
  -- Here or in line, something may be taken out: a client that knows the length would wait for it.
  handle:headers():remove("content-length")
  if passes_the_sidecar(handle) then
    return
  end
  local admission = handle:streamInfo():dynamicMetadata():get("gateway.admission")
  local meter = {
    removes_usage = admission ~= nil and admission["strip_usage"] == "yes",
    partial = "", sent = 0, unread = false, events = 0, bytes = 0, marked = 0, words = {},
  }
  for chunk in handle:bodyChunks() do
    local text = chunk:getBytes(0, chunk:length())
    if meter.partial == "" and not meter.unread and is_plain(text, meter.removes_usage) then
      local _, passed = text:gsub(EVENT_END, "")
      meter.events = meter.events + passed
    else
      local kept = take(meter, text)
      if kept ~= text then
        chunk:setBytes(kept)
      end
      if meter.done or next(meter.words) ~= nil then
        note(handle, meter)
        meter.words = {}
      end
    end
    meter.bytes = meter.bytes + chunk:length()
    local unmarked = meter.events - meter.marked
    if unmarked > 0 and (meter.done or meter.events < EVERY or unmarked >= EVERY) then
      mark(handle, meter)
    end
  end
  if meter.events > meter.marked then
    mark(handle, meter)
  end
end
