-- include: records, show, walk, account_limits
-- Servers as operators see them.
-- Only reads.
-- ask: {server} for one, or {node, account, stranded, limit, after (see `walk`)} for a page; node, account and stranded
-- may be missing
-- Answers {number of servers if every server of a list matches, else -1, after, server, ...}; a server is {id, {field,
-- value, ...}, kind of the job that holds it or '', snapshots that take a slot, its findings as JSON or '',
-- snapshots that it may have}.
local ask = cjson.decode(ARGV[1])

local function show(id)
  local record = read('server:' .. id)
  if not record then return nil end
  local node, server, holding = record.node, show_server(id)
  return {id, server, holding, redis.call('SCARD', 'server:' .. id .. ':counted'),
    redis.call('HGET', 'node:' .. node .. ':findings', id) or '', snapshots_max(record.account)}
end

if ask.server then return {-1, {}, show(ask.server)} end
local lists = {'servers'}
if ask.node then lists[#lists + 1] = 'servers:node:' .. ask.node end
if ask.account then lists[#lists + 1] = 'servers:account:' .. ask.account end
if ask.stranded then lists[#lists + 1] = 'servers:stranded' end
-- a stranded server may be missing from the other lists, if its domain no longer exists
local list = ask.stranded and 'servers:stranded' or shortest(lists)
local page = walk(ask, list, 'server:', function(id)
  local account, node, stranded = unpack(redis.call('HMGET', 'server:' .. id, 'account', 'node', 'stranded'))
  if ask.node and node ~= ask.node or ask.account and account ~= ask.account or ask.stranded and not stranded then
    return nil
  end
  return show(id)
end)
return {#lists <= 2 and redis.call('ZCARD', list) or -1, unpack(page)}
