-- One snapshot. ARGV: account, id
-- Answers {id, server, name, status, size_mb, created_ms, description, server's name}, or nothing if it has none.
local account, id = unpack(ARGV)
local row = redis.call('HMGET', 'snapshot:' .. id, 'server', 'name', 'status', 'size_mb', 'created_ms', 'description',
  'account')
if row[7] ~= account then return {} end
row[7] = redis.call('HGET', 'server:' .. row[1], 'name')
return {id, unpack(row)}
