-- What the store knows of one server's snapshots. ARGV: node, server id, snapshot id, ... (those found on its disks).
-- Answers {job that holds the server or '', {{field, value, ...} of each id asked for}, {id, status, ...} of all listed,
-- job of the restore that can be undone or ''}.
local asked, listed = {}, {}
for i = 3, #ARGV do asked[#asked + 1] = redis.call('HGETALL', 'snapshot:' .. ARGV[i]) end
for _, id in ipairs(redis.call('ZRANGE', 'server:' .. ARGV[2] .. ':snapshots', 0, -1)) do
  listed[#listed + 1] = id
  listed[#listed + 1] = redis.call('HGET', 'snapshot:' .. id, 'status') or ''
end
local server = 'server:' .. ARGV[2]
return {redis.call('HGET', server, 'job') or '', asked, listed, redis.call('HGET', server, 'undoable') or ''}
