-- include: records, idempotency
-- Create a token.
-- ask: {key, record: {field: text}, lifetime_ms (missing: without end), salt, idempotency (see `replay`)}
-- Answers {'admitted', {field, value, ...}, salt} or {'refused', code}.
local ask = cjson.decode(ARGV[1])

local function put()
  write(ask.key, ask.record)
  if ask.lifetime_ms then redis.call('PEXPIRE', ask.key, ask.lifetime_ms) end
  redis.call('HSET', 'tokens', ask.record.id, ask.key)
  return {'admitted', redis.call('HGETALL', ask.key), ask.salt}
end

return replay(ask) or remember(ask, put())
