-- include: records
-- Revoke all credentials of a node.
-- Also when full.
-- ask: {node}
-- Answers how many were valid.
local ask = cjson.decode(ARGV[1])
local index = 'node:' .. ask.node .. ':credentials'
local ended = 0
for _, key in pairs(read(index) or {}) do
  if string.find(key, '^credential:') then ended = ended + redis.call('DEL', key) end
end
redis.call('DEL', index)
-- Written and removed: a request that is repeated then waits for the replicas, too, although nothing is left to revoke.
redis.call('SADD', 'nodes:credentials', ask.node)
redis.call('SREM', 'nodes:credentials', ask.node)
return ended
