-- include: clock, records
-- Give a node a credential.
-- ask: {node, key, record: {field: text}, lifetime_ms (missing: it never ends), overlap_ms: how long those before it
-- last; missing: there must be none}
-- Answers 1, or 0 if the node has a credential already.
local ask = cjson.decode(ARGV[1])
local index = 'node:' .. ask.node .. ':credentials'
for id, key in pairs(read(index) or {}) do
  if redis.call('EXISTS', key) == 0 or not string.find(key, '^credential:') then
    redis.call('HDEL', index, id)
  elseif not ask.overlap_ms then
    return 0
  elseif redis.call('PTTL', key) < 0 or redis.call('PTTL', key) > ask.overlap_ms then
    redis.call('PEXPIRE', key, ask.overlap_ms)
    redis.call('HSET', key, 'ends_ms', now_ms() + ask.overlap_ms)
  end
end
if ask.lifetime_ms then ask.record.ends_ms = tostring(now_ms() + ask.lifetime_ms) end
ask.record.created_ms = tostring(now_ms())
write(ask.key, ask.record)
if ask.lifetime_ms then redis.call('PEXPIRE', ask.key, ask.lifetime_ms) end
redis.call('HSET', index, ask.record.id, ask.key)
redis.call('SADD', 'nodes:credentials', ask.node)
return 1
