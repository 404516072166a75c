-- Record when tokens were last used.
-- ask: {used: {token: time in ms, as text}}
-- Answers 1 always.
local ask = cjson.decode(ARGV[1])
for token, moment in pairs(ask.used) do
  if redis.call('HEXISTS', 'tokens', token) == 1 then redis.call('HSET', 'tokens:used', token, moment) end
end
return 1
