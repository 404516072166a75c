-- include: clock, records
-- Take or keep the lease of a node, and beat its heart. ARGV: node, owner, machine, who (for people), lease_ms.
-- The same machine may take over at once: its lock file has proved that the process before is dead.
-- Answers {1, 0} or {0, milliseconds left, who}. lease_ms 0 gives the lease back.
local key = 'node:' .. ARGV[1]
local node = read(key) or {}
local now = now_ms()
local left = (tonumber(node.lease_until_ms) or 0) - now
if node.owner ~= ARGV[2] and node.machine ~= ARGV[3] and left > 0 then return {0, left, node.who} end
redis.call('SADD', 'nodes', ARGV[1])
redis.call('ZADD', 'nodes:by:name', 0, ARGV[1])
redis.call('ZADD', 'nodes:by:heartbeat', now, ARGV[1])
for _, order in ipairs({'queued', 'free'}) do redis.call('ZADD', 'nodes:by:' .. order, 'NX', 0, ARGV[1]) end
redis.call('HSET', key, 'owner', ARGV[2], 'machine', ARGV[3], 'who', ARGV[4],
  'lease_until_ms', now + ARGV[5], 'heartbeat_ms', now)
return {1, 0}
