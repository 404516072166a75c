-- include: records
-- Snapshot records and the lists that they are in.

local NAMES = 'snapshots:by:name'

-- The entry of a snapshot or server in the operators' list by name.
local function by_name(id, name)
  return string.lower(name) .. '\0' .. id
end

local LISTED_MOST = 300 -- of a server, with failed and lost ones: some scripts go through the whole list

-- Whether a node can add no more to the list of a server's snapshots.
local function is_list_full(server_id)
  return redis.call('ZCARD', 'server:' .. server_id .. ':snapshots') >= LISTED_MOST
end

-- Count a snapshot toward its server's limit, and reserve its name unless another snapshot has it. is_free: no snapshot
-- has the name.
local function take_slot(id, snapshot, is_free)
  redis.call('SADD', 'server:' .. snapshot.server .. ':counted', id)
  local names = 'server:' .. snapshot.server .. ':names'
  local holder = not is_free and redis.call('HGET', names, snapshot.name)
  -- a name that is reserved here for a snapshot of another server is free
  if not holder or redis.call('HGET', 'snapshot:' .. holder, 'server') ~= snapshot.server then
    redis.call('HSET', names, snapshot.name, id)
  end
end

local function free_slot(id, snapshot)
  redis.call('SREM', 'server:' .. snapshot.server .. ':counted', id)
  local names = 'server:' .. snapshot.server .. ':names'
  if redis.call('HGET', names, snapshot.name) == id then redis.call('HDEL', names, snapshot.name) end
end

-- Write a snapshot's record and add it to every list. is_free: no snapshot of the server has its name.
local function add_snapshot(id, snapshot, is_free)
  if snapshot.expires_ms then redis.call('ZADD', 'snapshots:expiring', snapshot.expires_ms, id) end
  snapshot.v = '1'
  write('snapshot:' .. id, snapshot)
  redis.call('ZADD', 'account:' .. snapshot.account .. ':snapshots', snapshot.created_ms, id)
  redis.call('ZADD', 'server:' .. snapshot.server .. ':snapshots', snapshot.created_ms, id)
  redis.call('ZADD', NAMES, '0', by_name(id, snapshot.name))
  take_slot(id, snapshot, is_free)
end

-- Remove a snapshot from every list: the customer no longer sees it.
local function hide_snapshot(id, snapshot)
  redis.call('ZREM', 'account:' .. snapshot.account .. ':snapshots', id)
  redis.call('ZREM', 'server:' .. snapshot.server .. ':snapshots', id)
  free_slot(id, snapshot)
  if snapshot.status == 'failed' then
    redis.call('ZREM', 'snapshots:failed', id)
    redis.call('ZREM', 'account:' .. snapshot.account .. ':snapshots:failed', id)
  end
  if snapshot.expires_ms then redis.call('ZREM', 'snapshots:expiring', id) end
  redis.call('ZREM', NAMES, by_name(id, snapshot.name))
end

-- Delete a snapshot for the customer. It stays in the node's list until a job of the node has freed its space.
local function retire_snapshot(id, snapshot, node, due_ms)
  hide_snapshot(id, snapshot)
  redis.call('HSET', 'snapshot:' .. id, 'status', 'deleting', 'node', node)
  redis.call('ZADD', 'node:' .. node .. ':deleting', due_ms, id)
end
