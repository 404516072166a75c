-- include: records
-- End all credentials of a node at once.
-- ask: {node}
-- Answers how many were valid.
local ask = cjson.decode(ARGV[1])
local index = 'node:' .. ask.node .. ':credentials'
local ended = 0
for _, key in pairs(read(index) or {}) do ended = ended + redis.call('DEL', key) end
redis.call('DEL', index)
redis.call('SREM', 'nodes:credentials', ask.node)
return ended
