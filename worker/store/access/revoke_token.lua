-- include: records
-- Revoke a token.
-- Also when full.
-- ask: {token: its ID}
-- Answers 1, or 0 where there is no such token.
local ask = cjson.decode(ARGV[1])
local key = redis.call('HGET', 'tokens', ask.token)
-- Written and removed: a request that is repeated then waits for the replicas, too, although nothing is left to revoke.
redis.call('HSET', 'tokens:used', ask.token, '')
redis.call('HDEL', 'tokens:used', ask.token)
redis.call('HDEL', 'tokens', ask.token)
if not key or not string.find(key, '^token:%x+$') then return 0 end
local token = look_up(key) or {}
if token.name then redis.call('ZREM', 'tokens:by:name', string.lower(token.name) .. '\0' .. ask.token) end
local account = token.account or ''
if account ~= '' then redis.call('SREM', 'tokens:account:' .. account, key) end
return redis.call('DEL', key)
