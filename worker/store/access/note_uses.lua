-- include: token_names
-- Note when tokens were used last. One of an earlier version, which listed no names, gets into the list of names, too.
-- ask: {used: {token: moment in ms, as text}}
-- Answers 1, without a meaning.
local ask = cjson.decode(ARGV[1])
for token, moment in pairs(ask.used) do
  local key = redis.call('HGET', 'tokens', token)
  if key then
    redis.call('HSET', 'tokens:used', token, moment)
    local name = redis.call('HGET', key, 'name')
    if name then list_token(token, name) end
  end
end
return 1
