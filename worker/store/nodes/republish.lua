-- Make a node publish all its servers again with its next report.
-- ask: {node, owner (not checked, because a command calls this, not the worker that holds the lease)}
-- Answers the number of servers.
local ask = cjson.decode(ARGV[1])
local servers = redis.call('SMEMBERS', 'node:' .. ask.node .. ':servers')
for _, id in ipairs(servers) do redis.call('HSET', 'server:' .. id, 'unpublished', '1') end
redis.call('DEL', 'node:' .. ask.node .. ':reported')
return #servers
