-- include: clock, records, nodes, findings, snapshots, conclude
-- The node and the account of a server.

local LISTED = '3' -- version of a record that is in the operators' lists

local function lists_of(server)
  return {'servers', 'servers:node:' .. (server.node or ''), 'servers:account:' .. (server.account or '')}
end

local function unlist_server(server_id, known)
  for _, key in ipairs(lists_of(known)) do redis.call('ZREM', key, server_id) end
  if known.name then redis.call('ZREM', 'servers:by:name', by_name(server_id, known.name)) end
end

-- Add it to the operators' lists, sorted by ID and by name. known: the record; `node`, `account` and `name` have
-- the new values.
local function list_server(server_id, known, node, account, name)
  local is_same = known.node == node and known.account == account and known.name == name
  if known.v == LISTED and is_same and not known.missing then return end
  unlist_server(server_id, known)
  for _, key in ipairs(lists_of({node = node, account = account})) do redis.call('ZADD', key, server_id, server_id) end
  redis.call('ZADD', 'servers:by:name', 0, by_name(server_id, name))
end

local DELETING_LOOKED_AT = 2000 -- of a node; those that are due first
local deleting_of = {}

-- The deleted snapshots of a server whose space the node has not freed. Read once for all servers of a script.
local function deleting_on(node, server_id)
  if not deleting_of[node] then
    local found = {}
    for _, id in ipairs(redis.call('ZRANGE', 'node:' .. node .. ':deleting', 0, DELETING_LOOKED_AT - 1)) do
      local server = redis.call('HGET', 'snapshot:' .. id, 'server') or ''
      found[server] = found[server] or {}
      table.insert(found[server], id)
    end
    deleting_of[node] = found
  end
  return deleting_of[node][server_id] or {}
end

-- The server moves to another node. Its former node is silent or no longer reports it, and will not end its jobs.
-- left: result (see `conclude`) of the job that holds it
local function move_to_node(server_id, server, node, left)
  forget_report(server.node)
  redis.call('SREM', 'node:' .. server.node .. ':servers', server_id)
  forget_findings(server.node, server_id)
  local job = server.job and look_up('job:' .. server.job)
  if job and job.server == server_id then attempt('job:' .. server.job, conclude, server.job, job, left) end
  redis.call('HDEL', 'server:' .. server_id, 'job') -- also an unreadable job, which belongs to the former node
  for _, id in ipairs(deleting_on(server.node, server_id)) do
    redis.call('ZREM', 'node:' .. server.node .. ':deleting', id)
    redis.call('HSET', 'snapshot:' .. id, 'node', node)
    redis.call('ZADD', 'node:' .. node .. ':deleting', now_ms(), id)
  end
  redis.call('HSET', 'server:' .. server_id, 'moved_from', server.node, 'moved_ms', now_ms())
end
