-- include: nodes, walk, health, pause
-- List nodes for operators.
-- Only reads.
-- ask: {node, silent_ms} for one, or {sort, descending, state or nil, silent_ms, limit, after (see `walk`)} for a page
-- Answers {after, node, ...}; a node is {name, {field, value, ...}, 1 if it is silent, queued jobs, jobs in progress,
-- servers, servers with findings, {completed, failed, stranded jobs of the last hour}, 1 if all of them failed}.
local ask = cjson.decode(ARGV[1])

local function show(name)
  local silent, ended = node_is_silent(name, ask.silent_ms), ended_lately(name)
  if ask.state == 'failing' and not is_failing(ended) then return nil end
  if ask.state == 'alive' and silent or ask.state == 'silent' and not silent then return nil end
  if ask.state == 'paused' and not is_paused(name) then return nil end
  return {
    name, node_as_paused(name), silent and 1 or 0,
    redis.call('ZCARD', 'jobs:node:' .. name .. ':queued'), redis.call('ZCARD', 'jobs:node:' .. name .. ':in_progress'),
    redis.call('ZCARD', 'servers:node:' .. name), redis.call('HLEN', 'node:' .. name .. ':findings'),
    {ended.completed, ended.failed, ended.stranded}, is_failing(ended) and 1 or 0,
  }
end

if ask.node then return redis.call('SISMEMBER', 'nodes', ask.node) == 1 and {{}, show(ask.node)} or {{}} end
-- the other nodes have no failures
if ask.state == 'failing' and ask.sort == 'failed' and ask.descending then ask.since_ms = 1 end
return walk(ask, 'nodes:by:' .. ask.sort, 'node:', show)
