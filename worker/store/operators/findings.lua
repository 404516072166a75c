-- include: records, walk
-- One page of the servers with findings, newest first.
-- Only reads.
-- ask: {limit, after, since_ms, until_ms (see `walk`)}
-- Answers {servers with findings in that time, after, {server ID, name, account, node, findings as JSON}, ...}.
local ask = cjson.decode(ARGV[1])
ask.descending = true
return {count_within(ask, 'findings'), unpack(walk(ask, 'findings', 'server:', function(id)
  local server = read('server:' .. id)
  local found = server and redis.call('HGET', 'node:' .. server.node .. ':findings', id)
  return found and {id, server.name, server.account, server.node, found} or nil
end))}
