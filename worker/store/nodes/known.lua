-- include: records, nodes, snapshots, claims
-- Show the store's records of one server's snapshots.
-- ask: {node, owner, server, snapshots: IDs found on its disks}
-- Answers {'known', job that holds the server or '', {{field, value, ...} of each of the IDs; {'elsewhere', '1'} for
-- another server's}, {id, status, ...} of all that the customer sees, job of the restore that can be undone or ''},
-- {'lease_lost'}, {'not_here', why} or {'claim_refused', reason}.
local ask = cjson.decode(ARGV[1])
local MOST, MOST_BYTES = 1000, 8 * 2 ^ 20 -- of the records: more than those of 100 complete snapshots
if not owns_lease(ask.node, ask.owner) then return {'lease_lost'} end
local server = read('server:' .. ask.server)
local refused = refuse_elsewhere(ask, 'known', ask.server, server)
if refused then return refused end
if #ask.snapshots > MOST then return refuse_claim(ask, 'known', 'too_many', 'server:' .. ask.server) end
local asked, listed, bytes = {}, {}, 0
for i, id in ipairs(ask.snapshots) do
  local key = 'snapshot:' .. id
  if redis.call('HGET', key, 'server') == ask.server then
    asked[i] = redis.call('HGETALL', key)
    for _, text in ipairs(asked[i]) do bytes = bytes + #text end
    if bytes > MOST_BYTES then return refuse_claim(ask, 'known', 'too_many', 'server:' .. ask.server) end
  else
    asked[i] = redis.call('EXISTS', key) == 1 and {'elsewhere', '1'} or {}
  end
end
for _, id in ipairs(redis.call('ZRANGE', 'server:' .. ask.server .. ':snapshots', 0, -1)) do
  local owner, status, name = unpack(redis.call('HMGET', 'snapshot:' .. id, 'server', 'status', 'name'))
  if owner == ask.server then
    -- a snapshot of an earlier version is in no list by name; for the others this writes nothing
    if name then redis.call('ZADD', NAMES, 0, by_name(id, name)) end
    listed[#listed + 1] = id
    listed[#listed + 1] = status or ''
  end
end
return {'known', server.job or '', asked, listed, server.undoable or ''}
