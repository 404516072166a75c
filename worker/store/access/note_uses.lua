-- include: token_names
-- Record when tokens were last used, and list their names: an earlier version did not list them.
-- ask: {used: {token: time in ms, as text}}
-- Answers 1 always.
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
