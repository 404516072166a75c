-- Note when tokens were used last.
-- ask: {used: {token: moment in ms, as text}}
-- Answers 1, without a meaning.
local ask = cjson.decode(ARGV[1])
for token, moment in pairs(ask.used) do
  if redis.call('HEXISTS', 'tokens', token) == 1 then redis.call('HSET', 'tokens:used', token, moment) end
end
return 1
