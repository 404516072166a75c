-- include: clock, walk, pause
-- One page of nodes with counts, sorted by name.
-- Only reads.
-- ask: {limit, after (see `walk`)}
-- Answers {now_ms, after, node, ...}; a node is {name, heartbeat_ms, 1 if it is paused, queued jobs, queued_ms of the
-- oldest of them or '', jobs in progress, servers}.
local ask = cjson.decode(ARGV[1])

local function show(name)
  local heartbeat = redis.call('HGET', 'node:' .. name, 'heartbeat_ms')
  if not heartbeat then return nil end
  local queued = 'jobs:node:' .. name .. ':queued'
  return {
    name, heartbeat, is_paused(name) and 1 or 0, redis.call('ZCARD', queued),
    redis.call('ZRANGE', queued, 0, 0, 'WITHSCORES')[2] or '',
    redis.call('ZCARD', 'jobs:node:' .. name .. ':in_progress'), redis.call('ZCARD', 'servers:node:' .. name),
  }
end

return {now_ms(), unpack(walk(ask, 'nodes:by:name', 'node:', show))}
