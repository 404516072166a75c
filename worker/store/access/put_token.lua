-- include: records, idempotency
-- Create a token.
-- ask: {key, record: {field: text}, expires_ms (missing: never), salt, idempotency (see `replay`)}
-- Answers {'admitted', {field, value, ...}, salt} or {'refused', code}.
local ask = cjson.decode(ARGV[1])

local function put()
  write(ask.key, ask.record)
  if ask.expires_ms then redis.call('PEXPIREAT', ask.key, ask.expires_ms) end
  redis.call('HSET', 'tokens', ask.record.id, ask.key)
  return {'admitted', redis.call('HGETALL', ask.key), ask.salt}
end

return replay(ask) or remember(ask, put())
