-- One page of the snapshots of an account, or of one of its servers, newest first.
-- ARGV: account, server or '', first rank, number
-- Answers {total, {id, server, name, status, size_mb, created_ms, description, server's name}, ...}.
local account, server, first, number = unpack(ARGV)
local list = server == '' and 'account:' .. account .. ':snapshots' or 'server:' .. server .. ':snapshots'
local page = {redis.call('ZCARD', list)}
for _, id in ipairs(redis.call('ZREVRANGE', list, first, first + number - 1)) do
  local fields = redis.call('HMGET', 'snapshot:' .. id, 'server', 'name', 'status', 'size_mb', 'created_ms',
    'description', 'account')
  if fields[7] == account then
    fields[7] = redis.call('HGET', 'server:' .. fields[1], 'name')
    page[#page + 1] = {id, unpack(fields)}
  end
end
return page
