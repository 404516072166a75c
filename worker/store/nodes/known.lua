-- include: records, nodes, snapshots, claims
-- Show the store's records of one server's snapshots.
-- ask: {node, owner, server, snapshots: ids found on its disks}
-- Answers {'known', job that holds the server or '', {{field, value, ...} of each of the ids; {'elsewhere', '1'} for
-- another server's}, {id, status, ...} of all that the customer sees, job of the restore that can be undone or ''},
-- {'lease_lost'}, {'not_here', why} or {'claim_refused', reason}.
local ask = cjson.decode(ARGV[1])
local MOST = 1000
if not owns_lease(ask.node, ask.owner) then return {'lease_lost'} end
local server = read('server:' .. ask.server)
local refused = refuse_elsewhere(ask, 'known', ask.server, server)
if refused then return refused end
if #ask.snapshots > MOST then return refuse_claim(ask, 'known', 'too_many', 'server:' .. ask.server) end
local asked, listed = {}, {}
for i, id in ipairs(ask.snapshots) do
  local record = redis.call('HGETALL', 'snapshot:' .. id)
  if #record > 0 and redis.call('HGET', 'snapshot:' .. id, 'server') ~= ask.server then record = {'elsewhere', '1'} end
  asked[i] = record
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
