-- include: records, nodes, snapshots, claims
-- A node reports that a lost snapshot is complete on its disks again. While a job holds the server, nothing is changed.
-- ask: {node, owner, server, snapshot, size_mb: text}
-- Answers {1} if the snapshot became completed, {0}, {'not_here', why} or {'claim_refused', reason}.
local ask = cjson.decode(ARGV[1])
if not owns_lease(ask.node, ask.owner) then return {0} end
local server = read('server:' .. ask.server)
local refused = refuse_elsewhere(ask, 'regain', ask.server, server)
if refused then return refused end
if server.job then return {0} end
local key = 'snapshot:' .. ask.snapshot
local snapshot = read(key)
if not snapshot then return {0} end
if snapshot.server ~= ask.server then
  return refuse_claim(ask, 'regain', 'other_server', 'snapshot:' .. ask.snapshot)
end
if not is_size(ask.size_mb) then return refuse_claim(ask, 'regain', 'malformed', 'snapshot:' .. ask.snapshot) end
if not snapshot.lost or snapshot.status ~= 'failed' then return {0} end
redis.call('HSET', key, 'status', 'completed', 'size_mb', ask.size_mb)
redis.call('HDEL', key, 'lost')
redis.call('ZREM', 'snapshots:failed', ask.snapshot)
take_slot(ask.snapshot, snapshot)
return {1}
