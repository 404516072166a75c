-- include: clock, records, nodes, conclude
-- A node reports that a listed snapshot is not on its disks. The snapshot becomes failed: it can't be restored and
-- holds no slot. While a job holds the server nothing is changed.
-- ask: {node, owner, server, snapshot}
-- Answers 1 if the snapshot became failed, else 0.
local ask = cjson.decode(ARGV[1])
if not owns_lease(ask.node, ask.owner) then return 0 end
if redis.call('HGET', 'server:' .. ask.server, 'job') then return 0 end
local key = 'snapshot:' .. ask.snapshot
local snapshot = read(key)
if not snapshot or snapshot.server ~= ask.server then return 0 end
if snapshot.status ~= 'completed' and snapshot.status ~= 'in_progress' then return 0 end
settle_create(ask.snapshot, snapshot, {snapshot_status = 'failed', size_mb = ''}, now_ms())
if snapshot.status == 'completed' then redis.call('HSET', key, 'lost', '1') end -- it may be found again
return 1
