-- include: clock, records, nodes, queue, findings, conclude
-- A node reports which servers it has and, from time to time, what it runs on.
-- ask: {node, owner, silent_ms, servers: [{id, account, name, power}] (all as text), left: result (see `conclude`) of a
-- job whose server has left its node, about: JSON of the node or '', free_bytes: of the fullest pool}
-- Answers 'lease_lost' or {conflicts, fresh, gone, moment at which an operator asked for a reconciliation, or ''}.
-- conflicts: servers that another living node claims as well; they keep their node, for a migration is ending or a
-- person must look. fresh: servers whose snapshots the node must publish before one can be created: they are new here,
-- or Redis has lost its data. gone: servers that the node had before.
local ask = cjson.decode(ARGV[1])
if not owns_lease(ask.node, ask.owner) then return 'lease_lost' end
local node, silent_ms = ask.node, ask.silent_ms
local mine = 'node:' .. node .. ':servers'
local conflicts, fresh, gone, present = {}, {}, {}, {}
local LISTED = '2' -- version of a record that is in the operators' lists

local function move_account(server_id, from, to)
  for _, id in ipairs(redis.call('ZRANGE', 'server:' .. server_id .. ':snapshots', 0, -1)) do
    redis.call('HSET', 'snapshot:' .. id, 'account', to)
    redis.call('ZREM', 'account:' .. from .. ':snapshots', id)
    local created_ms = number(redis.call('HGET', 'snapshot:' .. id, 'created_ms')) or 0
    redis.call('ZADD', 'account:' .. to .. ':snapshots', created_ms, id)
  end
  redis.call('HDEL', 'server:' .. server_id, 'undoable')
end

-- The server has come from another node, which is silent or has lost it and will end none of its jobs.
local function take_over(server_id, server)
  redis.call('SREM', 'node:' .. server.node .. ':servers', server_id)
  redis.call('HDEL', 'node:' .. server.node .. ':findings', server_id)
  local job = server.job and look_up('job:' .. server.job)
  if job then
    conclude(server.job, job, ask.left)
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

-- Whether this node may take a server that another node has: that node has lost it or is silent; or the guest runs
-- here, and on the other node it is off or no worker holds the lease. A guest runs at one place only, where its disks
-- are locked.
local function may_come(found, known)
  if not known.node or known.node == node or known.missing or node_is_silent(known.node, silent_ms) then return true end
  if found.power ~= 'on' then return false end
  local lease_until_ms = number(redis.call('HGET', 'node:' .. known.node, 'lease_until_ms')) or 0
  return lease_until_ms <= now_ms() or (known.power == 'off' and not known.job)
end

local function lists_of(server)
  return {'servers', 'servers:node:' .. (server.node or ''), 'servers:account:' .. (server.account or '')}
end

-- Put it into the operators' lists, sorted by id.
local function list(found, known)
  if known.v == LISTED and known.node == node and known.account == found.account and not known.missing then return end
  for _, key in ipairs(lists_of(known)) do redis.call('ZREM', key, found.id) end
  for _, key in ipairs(lists_of({node = node, account = found.account})) do
    redis.call('ZADD', key, found.id, found.id)
  end
end

for _, found in ipairs(ask.servers) do
  local key = 'server:' .. found.id
  local known = look_up(key) or {} -- what can't be read is written anew
  present[found.id] = true
  if not may_come(found, known) then
    conflicts[#conflicts + 1] = found.id
  else
    if known.account and known.account ~= found.account then move_account(found.id, known.account, found.account) end
    if known.node and known.node ~= node then take_over(found.id, known) end
    list(found, known)
    redis.call('HSET', key, 'v', LISTED, 'name', found.name, 'account', found.account, 'node', node,
      'power', found.power)
    if not known.node or known.node ~= node then redis.call('HSET', key, 'unpublished', '1') end
    if not known.node or known.node ~= node or known.unpublished then fresh[#fresh + 1] = found.id end
    redis.call('HDEL', key, 'missing')
    redis.call('SADD', mine, found.id)
  end
end
for _, id in ipairs(redis.call('SMEMBERS', mine)) do
  if not present[id] then
    redis.call('SREM', mine, id)
    for _, key in ipairs(lists_of(look_up('server:' .. id) or {})) do redis.call('ZREM', key, id) end
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
if ask.about ~= '' then
  redis.call('HSET', 'node:' .. node, 'about', ask.about)
  redis.call('ZADD', 'nodes:by:free', ask.free_bytes, node)
end
return {conflicts, fresh, gone, redis.call('HGET', 'node:' .. node, 'reconcile_ms') or ''}
