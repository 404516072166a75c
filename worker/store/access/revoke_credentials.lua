-- include: records
-- Revoke all credentials of a node.
-- ask: {node}
-- Answers how many were valid.
local ask = cjson.decode(ARGV[1])
local index = 'node:' .. ask.node .. ':credentials'
local ended = 0
for _, key in pairs(read(index) or {}) do
  if string.find(key, '^credential:') then ended = ended + redis.call('DEL', key) end
end
redis.call('DEL', index)
redis.call('SREM', 'nodes:credentials', ask.node)
return ended
