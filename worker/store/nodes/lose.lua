-- include: clock, records, nodes, snapshots, conclude, claims
-- A node reports that a listed snapshot is not on its disks. The snapshot becomes failed: it cannot be restored
-- and does not count toward the limit. While a job holds the server, nothing is changed. A server has a bounded number
-- of lost ones, because they stay listed.
-- ask: {node, owner, server, snapshot}
-- Answers {1} if the snapshot became failed, {0}, {'not_here', why} or {'claim_refused', reason}.
local ask = cjson.decode(ARGV[1])
if not owns_lease(ask.node, ask.owner) then return {0} end
local server = read('server:' .. ask.server)
local refused = refuse_elsewhere(ask, 'lose', ask.server, server)
if refused then return refused end
if server.job then return {0} end
local key = 'snapshot:' .. ask.snapshot
local snapshot = read(key)
if not snapshot then return {0} end
if snapshot.server ~= ask.server then
  return refuse_claim(ask, 'lose', 'other_server', 'snapshot:' .. ask.snapshot)
end
if snapshot.status ~= 'completed' and snapshot.status ~= 'in_progress' then return {0} end
if is_list_full(ask.server) then return refuse_claim(ask, 'lose', 'too_many', 'server:' .. ask.server) end
settle_create(ask.snapshot, snapshot, {snapshot_status = 'failed', size_mb = ''}, now_ms())
if snapshot.status == 'completed' then redis.call('HSET', key, 'lost', '1') end -- it may be found again
return {1}
