-- What the store knows of one server's snapshots. ARGV: node, server id, snapshot id, ... (those found on its disks).
-- Answers {job that holds the server or '', {{field, value, ...} of each id asked for}, {id, status, ...} of all listed}.
local asked, listed = {}, {}
for i = 3, #ARGV do asked[#asked + 1] = redis.call('HGETALL', 'snapshot:' .. ARGV[i]) end
for _, id in ipairs(redis.call('ZRANGE', 'server:' .. ARGV[2] .. ':snapshots', 0, -1)) do
  listed[#listed + 1] = id
  listed[#listed + 1] = redis.call('HGET', 'snapshot:' .. id, 'status') or ''
end
return {redis.call('HGET', 'server:' .. ARGV[2], 'job') or '', asked, listed}
