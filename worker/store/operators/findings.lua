-- include: walk
-- One page of the servers with findings, newest first.
-- ask: {limit, after (see `walk`)}
-- Answers {servers with findings, after, {server id, name, account, node, findings as JSON}, ...}.
local ask = cjson.decode(ARGV[1])
ask.descending = true
return {redis.call('ZCARD', 'findings'), unpack(walk(ask, 'findings', 'server:', function(id)
  local name, account, node = unpack(redis.call('HMGET', 'server:' .. id, 'name', 'account', 'node'))
  local found = node and redis.call('HGET', 'node:' .. node .. ':findings', id)
  return found and {id, name, account, node, found} or nil
end))}
