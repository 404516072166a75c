-- include: records, nodes, snapshots
-- A node reports that a lost snapshot is whole on its disks again. While a job holds the server nothing is changed.
-- ask: {node, owner, server, snapshot, size_mb}
-- Answers 1 if the snapshot became completed, else 0.
local ask = cjson.decode(ARGV[1])
if not owns_lease(ask.node, ask.owner) then return 0 end
if redis.call('HGET', 'server:' .. ask.server, 'job') then return 0 end
local key = 'snapshot:' .. ask.snapshot
local snapshot = read(key)
if not snapshot or snapshot.server ~= ask.server or not snapshot.lost or snapshot.status ~= 'failed' then return 0 end
redis.call('HSET', key, 'status', 'completed', 'size_mb', ask.size_mb)
redis.call('HDEL', key, 'lost')
redis.call('ZREM', 'snapshots:failed', ask.snapshot)
take_slot(ask.snapshot, snapshot)
return 1
