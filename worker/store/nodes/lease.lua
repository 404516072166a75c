-- include: clock, records, health, pause
-- Take or renew the lease of a node, and record its heartbeat. The same machine may take it over at once, because its
-- lock file proves that the previous process is dead.
-- Also when full.
-- ask: {node, owner, machine, who: for people, lease_ms: 0 releases the lease}
-- Answers {1, 0}, or {0, milliseconds left, who} if another process holds it.
local ask = cjson.decode(ARGV[1])
local LEASE_MOST_MS = 600000
local key = 'node:' .. ask.node
local node = look_up(key)
if not node then redis.call('DEL', key) end -- a damaged record must not stop the node
node = node or {}
local now = now_ms()
local left = (number(node.lease_until_ms) or 0) - now
if node.owner ~= ask.owner and node.machine ~= ask.machine and left > 0 then return {0, left, node.who} end
redis.call('SADD', 'nodes', ask.node)
redis.call('ZADD', 'nodes:by:name', 0, ask.node)
redis.call('ZADD', 'nodes:by:heartbeat', now, ask.node)
redis.call('ZADD', 'nodes:by:free', 'NX', 0, ask.node)
redis.call('HSET', key, 'owner', ask.owner, 'machine', ask.machine, 'who', ask.who,
  'lease_until_ms', now + math.min(ask.lease_ms, LEASE_MOST_MS), 'heartbeat_ms', now)
rank_by_failures(ask.node)
rank_by_queue(ask.node)
still_paused(ask.node)
return {1, 0}
