-- include: clock, records, idempotency
-- Give a node a credential.
-- ask: {node, key, record: {field: text}, salt, lifetime_ms (missing: it never ends), overlap_ms: how long former ones
-- stay valid; missing: the node must have no credential, may_be_first: with overlap_ms, the node may also have none,
-- idempotency (see `replay`)}
-- Answers {'admitted', {field, value, ...}, salt} or {'refused', code}.
local ask = cjson.decode(ARGV[1])
local index = 'node:' .. ask.node .. ':credentials'

-- The node's valid credentials.
local function valid()
  local keys = {}
  for id, key in pairs(read(index) or {}) do
    local is_valid = string.find(key, '^credential:') and redis.call('EXISTS', key) == 1
    if is_valid then keys[#keys + 1] = key else redis.call('HDEL', index, id) end
  end
  return keys
end

local function put()
  local former = valid()
  if redis.call('EXISTS', ask.key) == 1 and redis.call('HGET', ask.key, 'node') ~= ask.node then
    return {'refused', 'credential_exists'}
  end
  for _, key in ipairs(former) do
    if key == ask.key then return {'admitted', redis.call('HGETALL', key), ask.salt} end
  end
  if ask.overlap_ms and #former == 0 and not ask.may_be_first then return {'refused', 'credential_not_found'} end
  if not ask.overlap_ms and #former > 0 then return {'refused', 'credential_exists'} end
  if ask.lifetime_ms then ask.record.ends_ms = tostring(now_ms() + ask.lifetime_ms) end
  ask.record.created_ms = now_text()
  write(ask.key, ask.record)
  if ask.lifetime_ms then redis.call('PEXPIRE', ask.key, ask.lifetime_ms) end
  redis.call('HSET', index, ask.record.id, ask.key)
  for _, key in ipairs(former) do
    if redis.call('PTTL', key) < 0 or redis.call('PTTL', key) > ask.overlap_ms then
      redis.call('PEXPIRE', key, ask.overlap_ms)
      redis.call('HSET', key, 'ends_ms', now_ms() + ask.overlap_ms)
    end
  end
  redis.call('SADD', 'nodes:credentials', ask.node)
  return {'admitted', redis.call('HGETALL', ask.key), ask.salt}
end

return replay(ask) or remember(ask, put())
