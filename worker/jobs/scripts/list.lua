-- One page of a customer's snapshots, newest first. ARGV: account, server id or '', offset, limit.
-- Answers {total, {id, {server name}, {field, value, ...}}, ...}.
local index = 'account:' .. ARGV[1] .. ':snapshots'
if ARGV[2] ~= '' then
  index = 'server:' .. ARGV[2] .. ':snapshots'
  -- another account's server looks like one without snapshots
  if redis.call('HGET', 'server:' .. ARGV[2], 'account') ~= ARGV[1] then return {0} end
end
local page = {redis.call('ZCARD', index)}
for _, id in ipairs(redis.call('ZREVRANGE', index, ARGV[3], ARGV[3] + ARGV[4] - 1)) do
  local snapshot = redis.call('HGETALL', 'snapshot:' .. id)
  local server = redis.call('HGET', 'snapshot:' .. id, 'server')
  page[#page + 1] = {id, redis.call('HGET', 'server:' .. server, 'name') or '', snapshot}
end
return page
