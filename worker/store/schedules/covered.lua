-- include: records, walk, windows
-- One page of the servers that a schedule covers now, by ID, each with its run in the current or latest window.
-- Only reads.
-- ask: {account, id, limit, after (see `walk`)}
-- Answers {after, {server, its name, moment of its planned run or '', JSON {ms, job, error} of its run or ''}, ...};
-- nil if the account has no such schedule.
local ask = cjson.decode(ARGV[1])
local schedule = read_of(ask.account, 'schedule:' .. ask.id)
if not schedule then return nil end
local labels = labels_wanted(ask.id, schedule)

local function show(server_id)
  local is_covered, name = covers(schedule, labels, server_id)
  if not is_covered then return nil end
  return {server_id, name or '', redis.call('ZSCORE', RUNS, ask.id .. ':' .. server_id) or '',
    redis.call('HGET', 'schedule:' .. ask.id .. ':runs', server_id) or ''}
end

if labels then return walk(ask, 'servers:account:' .. ask.account, 'server:', show) end
return {{}, attempt('server:' .. schedule.server, show, schedule.server)}
