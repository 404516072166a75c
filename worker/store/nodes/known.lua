-- What the store knows of one server's snapshots.
-- Only reads.
-- ask: {server, snapshots: ids found on its disks}
-- Answers {job that holds the server or '', {{field, value, ...} of each of the ids}, {id, status, ...} of all that the
-- customer sees, job of the restore that can be undone or ''}.
local ask = cjson.decode(ARGV[1])
local asked, listed = {}, {}
for i, id in ipairs(ask.snapshots) do asked[i] = redis.call('HGETALL', 'snapshot:' .. id) end
for _, id in ipairs(redis.call('ZRANGE', 'server:' .. ask.server .. ':snapshots', 0, -1)) do
  listed[#listed + 1] = id
  listed[#listed + 1] = redis.call('HGET', 'snapshot:' .. id, 'status') or ''
end
local server = 'server:' .. ask.server
return {redis.call('HGET', server, 'job') or '', asked, listed, redis.call('HGET', server, 'undoable') or ''}
