-- include: clock, records, nodes, queue, findings, conclude
-- A node says which servers it has, and from time to time what it runs on. ARGV: node, owner, silent_ms,
-- JSON [{id, account, name, power}, ...] (all as text), JSON result of a job whose server has left its node,
-- JSON of the node or '', the least free bytes of its pools.
-- Answers {conflicts, fresh, gone, moment at which an operator asked for a reconciliation, or ''}: conflicts are the ids
-- that a living other node claims as well (those keep their node: a migration is at its end, or a person must look), fresh are those whose snapshots
-- the node must publish before one can be added: new here, or Redis lost its data; gone are those that it had before.
if not owns_lease(ARGV[1], ARGV[2]) then return 'lease_lost' end
local node, silent_ms = ARGV[1], ARGV[3]
local mine = 'node:' .. node .. ':servers'
local conflicts, fresh, gone, present = {}, {}, {}, {}
local LISTED = '2' -- version of a record that is in the operators' lists too

local function move_account(server_id, from, to)
  for _, id in ipairs(redis.call('ZRANGE', 'server:' .. server_id .. ':snapshots', 0, -1)) do
    redis.call('HSET', 'snapshot:' .. id, 'account', to)
    redis.call('ZREM', 'account:' .. from .. ':snapshots', id)
    redis.call('ZADD', 'account:' .. to .. ':snapshots', redis.call('HGET', 'snapshot:' .. id, 'created_ms'), id)
  end
  redis.call('HDEL', 'server:' .. server_id, 'undoable')
end

-- The server has come from another node, which is silent or has lost it: that one ends nothing of it any more.
local function take_over(server_id, server)
  redis.call('SREM', 'node:' .. server.node .. ':servers', server_id)
  redis.call('HDEL', 'node:' .. server.node .. ':findings', server_id)
  local job = server.job and read('job:' .. server.job)
  if job then
    conclude(server.job, job, cjson.decode(ARGV[5]))
    forget_queued(server.job, job)
  elseif server.job then
    redis.call('HDEL', 'server:' .. server_id, 'job')
  end
  local deleting = 'node:' .. server.node .. ':deleting'
  for _, id in ipairs(redis.call('ZRANGE', deleting, 0, -1)) do
    if redis.call('HGET', 'snapshot:' .. id, 'server') == server_id then
      redis.call('ZREM', deleting, id)
      redis.call('HSET', 'snapshot:' .. id, 'node', node)
      redis.call('ZADD', 'node:' .. node .. ':deleting', now_ms(), id)
    end
  end
end

-- Whether a server that another node has may be ours now. That node has lost it or is silent; or the guest runs here, and
-- there it is off or nobody looks after it: a guest runs at one place only, where its disks are locked.
local function may_come(found, known)
  if not known.node or known.node == node or known.missing or node_is_silent(known.node, silent_ms) then return true end
  if found.power ~= 'on' then return false end
  local lease_until_ms = tonumber(redis.call('HGET', 'node:' .. known.node, 'lease_until_ms')) or 0
  return lease_until_ms <= now_ms() or (known.power == 'off' and not known.job)
end

local function lists_of(server)
  return {'servers', 'servers:node:' .. (server.node or ''), 'servers:account:' .. (server.account or '')}
end

-- In the operators' lists, in the order of the ids.
local function list(found, known)
  if known.v == LISTED and known.node == node and known.account == found.account and not known.missing then return end
  for _, key in ipairs(lists_of(known)) do redis.call('ZREM', key, found.id) end
  for _, key in ipairs(lists_of({node = node, account = found.account})) do redis.call('ZADD', key, found.id, found.id) end
end

for _, found in ipairs(cjson.decode(ARGV[4])) do
  local key = 'server:' .. found.id
  local known = read(key) or {}
  present[found.id] = true
  if not may_come(found, known) then
    conflicts[#conflicts + 1] = found.id
  else
    if known.account and known.account ~= found.account then move_account(found.id, known.account, found.account) end
    if known.node and known.node ~= node then take_over(found.id, known) end
    list(found, known)
    redis.call('HSET', key, 'v', LISTED, 'name', found.name, 'account', found.account, 'node', node, 'power', found.power)
    if not known.node or known.node ~= node then redis.call('HSET', key, 'unpublished', '1') end
    if not known.node or known.node ~= node or known.unpublished then fresh[#fresh + 1] = found.id end
    redis.call('HDEL', key, 'missing')
    redis.call('SADD', mine, found.id)
  end
end
for _, id in ipairs(redis.call('SMEMBERS', mine)) do
  if not present[id] then
    redis.call('SREM', mine, id)
    for _, key in ipairs(lists_of(read('server:' .. id) or {})) do redis.call('ZREM', key, id) end
    redis.call('HSET', 'server:' .. id, 'missing', '1')
    if redis.call('EXISTS', 'server:' .. id .. ':snapshots') == 1 then
      local found = {finding = 'missing_server', tag = '', at = string.format('%.0f', now_ms() / 1000)}
      redis.call('HSET', 'node:' .. node .. ':findings', id, cjson.encode({found}))
      redis.call('ZADD', 'findings', now_ms(), id)
    else
      forget_findings(node, id)
    end
    gone[#gone + 1] = id
  end
end
if ARGV[6] ~= '' then
  redis.call('HSET', 'node:' .. node, 'about', ARGV[6])
  redis.call('ZADD', 'nodes:by:free', ARGV[7], node)
end
return {conflicts, fresh, gone, redis.call('HGET', 'node:' .. node, 'reconcile_ms') or ''}
