-- Admit a create, restore or delete and write its essentials: the snapshot, the job, its place in the node's queue, the
-- lists of the account and of the server, one event; without a caller, a limit, an idempotency key or an audit entry.
-- ARGV: kind, account, id (of the server for a create, else of the snapshot), job, name, description
-- Answers {'ok', id, server, server's name, name, created_ms, description} or {code}.
local kind, account, id, job, name, description = unpack(ARGV)
local time = redis.call('TIME')
local now = string.format('%.0f', time[1] * 1000 + math.floor(time[2] / 1000))

local snapshot, created_ms, status = id, now, nil
local server = id
if kind ~= 'create' then
  local owner
  owner, server, name, description, status, created_ms =
    unpack(redis.call('HMGET', 'snapshot:' .. id, 'account', 'server', 'name', 'description', 'status', 'created_ms'))
  if owner ~= account or status == 'deleting' then return {'snapshot_not_found'} end
  if kind == 'restore' and status ~= 'completed' then return {'snapshot_not_ready'} end
end
local key = 'server:' .. server
local owner, server_name, node, held = unpack(redis.call('HMGET', key, 'account', 'name', 'node', 'job'))
if owner ~= account then return {'server_not_found'} end
if now - (redis.call('HGET', 'node:' .. node, 'heartbeat_ms') or 0) > 60000 then return {'node_unavailable'} end
if held then return {'server_busy'} end

if kind == 'create' then
  if redis.call('SCARD', key .. ':counted') >= 5 then return {'snapshot_limit_reached'} end
  if redis.call('HEXISTS', key .. ':names', name) == 1 then return {'name_taken'} end
  snapshot = string.format('%.0f', redis.call('INCR', 'snapshots:last_id'))
  redis.call('HSET', 'snapshot:' .. snapshot, 'v', '1', 'server', server, 'account', account, 'node', node, 'name', name,
    'description', description, 'status', 'in_progress', 'size_mb', '', 'created_ms', now)
  redis.call('ZADD', 'account:' .. account .. ':snapshots', now, snapshot)
  redis.call('ZADD', key .. ':snapshots', now, snapshot)
  redis.call('SADD', key .. ':counted', snapshot)
  redis.call('HSET', key .. ':names', name, snapshot)
elseif kind == 'delete' then
  redis.call('ZREM', 'account:' .. account .. ':snapshots', snapshot)
  redis.call('ZREM', key .. ':snapshots', snapshot)
  redis.call('SREM', key .. ':counted', snapshot)
  redis.call('HDEL', key .. ':names', name)
  redis.call('HSET', 'snapshot:' .. snapshot, 'status', 'deleting')
end
redis.call('HSET', 'job:' .. job, 'v', '1', 'kind', kind, 'state', 'queued', 'account', account, 'server', server,
  'server_name', server_name, 'node', node, 'snapshot', snapshot, 'snapshot_name', name, 'queued_ms', now)
redis.call('HSET', key, 'job', job)
redis.call('ZADD', 'account:' .. account .. ':jobs', now, job)
redis.call('ZADD', 'jobs:server:' .. server, now, job)
redis.call('ZADD', 'arq:queue:' .. node, now, job)
redis.call('LPUSH', 'arq:queue:' .. node .. ':wake', '1')
redis.call('LTRIM', 'arq:queue:' .. node .. ':wake', 0, 0)
redis.call('XADD', 'account:' .. account .. ':events', 'MAXLEN', '~', 1000, '*', 'job', job, 'server', server, 'snapshot',
  snapshot, 'kind', kind, 'state', 'queued')
return {'ok', snapshot, server, server_name, name, created_ms, description}
