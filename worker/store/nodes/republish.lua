-- Have a node publish again what it has of each of its servers, with its next report. ARGV: node. Answers how many.
local servers = redis.call('SMEMBERS', 'node:' .. ARGV[1] .. ':servers')
for _, id in ipairs(servers) do redis.call('HSET', 'server:' .. id, 'unpublished', '1') end
return #servers
