-- include: records, nodes, placement
-- Set a server's node and account. An unknown server is declared.
-- ask: {server, node, account (each may be missing), silent_ms, left: result (see `conclude`) of a job whose server has
-- left its node}
-- Answers {'admitted'} or {'refused', code, ...}.
local ask = cjson.decode(ARGV[1])
local key = 'server:' .. ask.server
local known = read(key)

-- A node is known if its worker has reported or if it has a credential.
local function knows_node(node)
  return redis.call('SISMEMBER', 'nodes', node) == 1 or redis.call('SISMEMBER', 'nodes:credentials', node) == 1
end

local function refuse()
  if ask.node and not knows_node(ask.node) then return {'refused', 'node_not_found', ask.node} end
  if not known or not known.node then
    return not (ask.node and ask.account) and {'refused', 'server_not_found'} or nil
  end
  local moves = ask.node and ask.node ~= known.node
  if moves and not known.missing and not node_is_silent(known.node, ask.silent_ms) then
    return {'refused', 'server_on_live_node', known.node}
  end
  local changes = ask.account and ask.account ~= known.account
  return changes and not moves and known.job and {'refused', 'server_busy', known.job} or nil
end

-- Its snapshots move with it. The data that a restore overwrote may belong to the former owner.
local function give_to(account)
  for _, id in ipairs(redis.call('ZRANGE', key .. ':snapshots', 0, -1)) do
    local server, created_ms = unpack(redis.call('HMGET', 'snapshot:' .. id, 'server', 'created_ms'))
    if server == ask.server then
      redis.call('HSET', 'snapshot:' .. id, 'account', account)
      redis.call('ZREM', 'account:' .. known.account .. ':snapshots', id)
      redis.call('ZADD', 'account:' .. account .. ':snapshots', number(created_ms) or 0, id)
    end
  end
  redis.call('HDEL', key, 'undoable', 'consistency', 'labels')
  redis.call('HSET', key, 'account_before', known.account)
end

local refused = refuse()
if refused then return refused end
known = known or {}
local node, account = ask.node or known.node, ask.account or known.account
if known.node and known.node ~= node then move_to_node(ask.server, known, node, ask.left) end
if known.account and known.account ~= account then give_to(account) end
forget_report(node)
list_server(ask.server, known, node, account, known.name or ask.server)
redis.call('HSET', key, 'v', LISTED, 'node', node, 'account', account)
if known.node ~= node then -- missing until the node reports it
  redis.call('HSET', key, 'missing', '1', 'unpublished', '1', 'placed', '1')
  redis.call('HSETNX', key, 'name', ask.server)
  redis.call('HSETNX', key, 'power', 'off')
end
return {'admitted'}
