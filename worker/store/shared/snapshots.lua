-- include: records
-- Snapshot records and the lists that they are in.

-- Write a snapshot's record and put it into every list. A name that another one holds stays with that one.
local function add_snapshot(id, snapshot)
  if snapshot.expires_ms then redis.call('ZADD', 'snapshots:expiring', snapshot.expires_ms, id) end
  snapshot.v = '1'
  write('snapshot:' .. id, snapshot)
  redis.call('ZADD', 'account:' .. snapshot.account .. ':snapshots', snapshot.created_ms, id)
  redis.call('ZADD', 'server:' .. snapshot.server .. ':snapshots', snapshot.created_ms, id)
  redis.call('SADD', 'server:' .. snapshot.server .. ':counted', id)
  redis.call('HSETNX', 'server:' .. snapshot.server .. ':names', snapshot.name, id)
end

-- Take a snapshot out of every list: the customer can't see it, its name and its slot are free.
local function hide_snapshot(id, snapshot)
  redis.call('ZREM', 'account:' .. snapshot.account .. ':snapshots', id)
  redis.call('ZREM', 'server:' .. snapshot.server .. ':snapshots', id)
  redis.call('SREM', 'server:' .. snapshot.server .. ':counted', id)
  local names = 'server:' .. snapshot.server .. ':names'
  if redis.call('HGET', names, snapshot.name) == id then redis.call('HDEL', names, snapshot.name) end
  redis.call('ZREM', 'snapshots:failed', id)
  redis.call('ZREM', 'snapshots:expiring', id)
end

-- Gone for the customer. Its node frees the space with a job, and finds it here until that is done.
local function retire_snapshot(id, snapshot, node, due_ms)
  hide_snapshot(id, snapshot)
  redis.call('HSET', 'snapshot:' .. id, 'status', 'deleting', 'node', node)
  redis.call('ZADD', 'node:' .. node .. ':deleting', due_ms, id)
end
