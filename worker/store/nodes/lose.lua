-- include: clock, records, nodes, conclude
-- A node says that a listed snapshot is not on its disks. It becomes failed: it can't be restored, and holds no slot.
-- ARGV: node, owner, server id, snapshot id. While a job holds the server nothing is decided. Answers 1 if it changed.
if not owns_lease(ARGV[1], ARGV[2]) then return 0 end
if redis.call('HGET', 'server:' .. ARGV[3], 'job') then return 0 end
local snapshot = read('snapshot:' .. ARGV[4])
if not snapshot or snapshot.server ~= ARGV[3] then return 0 end
if snapshot.status ~= 'completed' and snapshot.status ~= 'in_progress' then return 0 end
settle_create(ARGV[4], snapshot, {snapshot_status = 'failed', size_mb = ''}, now_ms())
if snapshot.status == 'completed' then redis.call('HSET', 'snapshot:' .. ARGV[4], 'lost', '1') end -- it may turn up again
return 1
