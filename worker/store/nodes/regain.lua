-- include: records, nodes
-- A node says that a snapshot which was lost is whole on its disks again. ARGV: node, owner, server id, snapshot id, size_mb.
-- While a job holds the server nothing is decided. Answers 1 if it changed.
if not owns_lease(ARGV[1], ARGV[2]) then return 0 end
if redis.call('HGET', 'server:' .. ARGV[3], 'job') then return 0 end
local key, id = 'snapshot:' .. ARGV[4], ARGV[4]
local snapshot = read(key)
if not snapshot or snapshot.server ~= ARGV[3] or not snapshot.lost or snapshot.status ~= 'failed' then return 0 end
redis.call('HSET', key, 'status', 'completed', 'size_mb', ARGV[5])
redis.call('HDEL', key, 'lost')
redis.call('ZREM', 'snapshots:failed', id)
redis.call('SADD', 'server:' .. snapshot.server .. ':counted', id)
redis.call('HSETNX', 'server:' .. snapshot.server .. ':names', snapshot.name, id)
return 1
