-- include: records
-- Set whether creates stop a server by default.
-- ask: {account, id, consistency: 'stop', 'live' or '' (the provider's default)}
-- Answers {1}; nil if the account has no such server.
local ask = cjson.decode(ARGV[1])
local key = 'server:' .. ask.id
local server = read_of(ask.account, key)
if not server or server.missing then return nil end
if ask.consistency == '' then
  redis.call('HDEL', key, 'consistency')
else
  redis.call('HSET', key, 'consistency', ask.consistency)
end
return {1}
