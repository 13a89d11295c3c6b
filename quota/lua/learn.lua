-- Take in what a process has learned of models, and say what is now known of each. Old lessons fade, few models stay.
--
-- KEYS[1] facts (hash: model -> cjson {n, b, t, a}: lessons, bytes, millitokens, answers by bucket)
-- KEYS[2] estimates (hash: model -> "<thousandths of a byte to a token> <bucket>", -1 for what is not known yet)
-- KEYS[3] models (sorted set: model -> when it was last learned, milliseconds)
-- ARGV[1] cjson list of [model, lessons, bytes, millitokens, {bucket: answers}]
-- ARGV[2] fewest lessons that tell something
-- ARGV[3] most lessons that count: beyond it all are halved
-- ARGV[4] share of the answers, in thousandths, that the bucket told is to cover
-- ARGV[5] last bucket
-- ARGV[6] most models
-- ARGV[7] milliseconds after which a model that nobody learns is forgotten
--
-- Returns the number of models known. Learned twice when sent twice.

local facts_key, estimates_key, models_key = KEYS[1], KEYS[2], KEYS[3]
local fewest, most, share = tonumber(ARGV[2]), tonumber(ARGV[3]), tonumber(ARGV[4])
local last_bucket, most_models, keep_ms = tonumber(ARGV[5]), tonumber(ARGV[6]), tonumber(ARGV[7])

local function halve(number)
  return math.floor(number / 2)
end

local function total(answers)
  local sum = 0
  for _, count in pairs(answers) do
    sum = sum + count
  end
  return sum
end

local function fade(facts)
  if facts.n > most then
    facts.n, facts.b, facts.t = halve(facts.n), halve(facts.b), halve(facts.t)
  end
  if total(facts.a) > most then
    for bucket, count in pairs(facts.a) do
      facts.a[bucket] = count > 1 and halve(count) or nil
    end
  end
end

local function bucket_of(answers)
  local sum = total(answers)
  if sum < fewest then
    return -1
  end
  local below = 0
  for bucket = 0, last_bucket do
    below = below + (answers[tostring(bucket)] or 0)
    if below * 1000 >= sum * share then
      return bucket
    end
  end
  return last_bucket
end

local function forget(models)
  if #models > 0 then
    redis.call('ZREM', models_key, unpack(models))
    redis.call('HDEL', facts_key, unpack(models))
    redis.call('HDEL', estimates_key, unpack(models))
  end
end

local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)

for _, delta in ipairs(cjson.decode(ARGV[1])) do
  local model = delta[1]
  local known = redis.call('HGET', facts_key, model)
  local facts = known and cjson.decode(known) or { n = 0, b = 0, t = 0, a = {} }
  facts.n, facts.b, facts.t = facts.n + delta[2], facts.b + delta[3], facts.t + delta[4]
  for bucket, count in pairs(delta[5]) do
    facts.a[bucket] = (facts.a[bucket] or 0) + count
  end
  fade(facts)
  local millibytes = -1
  if facts.n >= fewest and facts.t > 0 then
    millibytes = math.floor(facts.b * 1000000 / facts.t)
  end
  redis.call('HSET', facts_key, model, cjson.encode(facts))
  redis.call('HSET', estimates_key, model, string.format('%d %d', millibytes, bucket_of(facts.a)))
  redis.call('ZADD', models_key, now, model)
end

forget(redis.call('ZRANGEBYSCORE', models_key, '-inf', now - keep_ms))
local excess = redis.call('ZCARD', models_key) - most_models
if excess > 0 then
  forget(redis.call('ZRANGE', models_key, 0, excess - 1))
end
for _, key in ipairs(KEYS) do
  redis.call('PEXPIRE', key, keep_ms)
end
return redis.call('ZCARD', models_key)
