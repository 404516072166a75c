-- include: records, idempotency, bounds, token_names
-- Create a token.
-- ask: {key, record: {field: text}, lifetime_ms (missing: it never ends), salt, idempotency (see `replay`)}
-- Answers {'admitted', {field, value, ...}, salt} or {'refused', code, ...}.
local ask = cjson.decode(ARGV[1])

-- A refusal if the account has too many tokens. Expired tokens are removed from its list only here.
local function refuse_token(mine)
  local most = bound('tokens_per_account')
  if redis.call('SCARD', mine) < most then return nil end
  for _, key in ipairs(redis.call('SMEMBERS', mine)) do
    if redis.call('EXISTS', key) == 0 then redis.call('SREM', mine, key) end
  end
  if redis.call('SCARD', mine) >= most then return {'refused', 'token_limit_reached', tostring(most)} end
end

local function put()
  if ask.record.account ~= '' then -- a service token belongs to the provider
    local mine = 'tokens:account:' .. ask.record.account
    local refused = refuse_token(mine)
    if refused then return refused end
    redis.call('SADD', mine, ask.key)
  end
  write(ask.key, ask.record)
  if ask.lifetime_ms then redis.call('PEXPIRE', ask.key, ask.lifetime_ms) end
  redis.call('HSET', 'tokens', ask.record.id, ask.key)
  list_token(ask.record.id, ask.record.name)
  return {'admitted', redis.call('HGETALL', ask.key), ask.salt}
end

return replay(ask) or remember(ask, put())
