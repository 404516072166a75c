-- include: clock, records, nodes, show, walk, account_limits
-- List servers for operators.
-- Only reads.
-- ask: {silent_ms, server} for one, or {silent_ms, node, account, stranded, off, no_snapshot_ms, limit, after (see
-- `walk`)} for a page; all but silent_ms and limit may be missing. stranded, off: only those servers, longest first.
-- no_snapshot_ms: only servers without a completed snapshot in that time
-- Answers {number of servers if every server of a list matches, else -1, after, server, ...}; a server is {id, {field,
-- value, ...}, kind of the job that holds it or '', state of that job or '', snapshots that take a slot, its findings
-- as JSON or '', since when its guest is off for a job or '', snapshots that it may have, the silence of
-- its node (see `silence_of`)}.
local ask = cjson.decode(ARGV[1])
local since = ask.no_snapshot_ms and now_ms() - ask.no_snapshot_ms

local function has_snapshot(id)
  for _, snapshot in ipairs(redis.call('SMEMBERS', 'server:' .. id .. ':counted')) do
    look_further(1)
    local status, created_ms = unpack(redis.call('HMGET', 'snapshot:' .. snapshot, 'status', 'created_ms'))
    if status == 'completed' and (number(created_ms) or 0) >= since then return true end
  end
  return false
end

local function show(id)
  local record = read('server:' .. id)
  if not record then return nil end
  local server, holding = show_server(id)
  return {id, server, holding, holding ~= '' and redis.call('HGET', 'job:' .. record.job, 'state') or '',
    redis.call('SCARD', 'server:' .. id .. ':counted'),
    redis.call('HGET', 'node:' .. record.node .. ':findings', id) or '', redis.call('ZSCORE', 'servers:off', id) or '',
    snapshots_max(record.account), silence_of(record.node, ask.silent_ms)}
end

if ask.server then return {-1, {}, show(ask.server)} end
local lists = {'servers'}
if ask.node then lists[#lists + 1] = 'servers:node:' .. ask.node end
if ask.account then lists[#lists + 1] = 'servers:account:' .. ask.account end
local only = ask.stranded and 'servers:stranded' or ask.off and 'servers:off'
if only then lists[#lists + 1] = only end
-- such a server may be missing from the other lists, if its domain no longer exists
local list = only or shortest(lists)
local page = walk(ask, list, 'server:', function(id)
  local account, node, stranded = unpack(redis.call('HMGET', 'server:' .. id, 'account', 'node', 'stranded'))
  local is_other = ask.node and node ~= ask.node or ask.account and account ~= ask.account
  if is_other or ask.stranded and not stranded then return nil end
  if ask.off and not redis.call('ZSCORE', 'servers:off', id) then return nil end
  if since and has_snapshot(id) then return nil end
  return show(id)
end)
local counts = #lists <= 2 and not since and not (ask.stranded and ask.off)
return {counts and redis.call('ZCARD', list) or -1, unpack(page)}
