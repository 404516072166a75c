-- include: clock, stats
-- The cell at a glance. ARGV: silent_ms, number of the five minutes from which on counts are wanted.
-- Answers {now_ms, jobs that wait, jobs in progress, {oldest waiting job and its moment} or {}, stranded servers, nodes,
-- nodes that are alive, nodes that are paused, servers with findings, {{five minutes' number, {field, value, ...}}, ...} of
-- the last day, oldest first}.
local now = now_ms()
local last, stats = math.floor(now / STATS_MS), {}
for number = math.max(last - 86400000 / STATS_MS + 1, tonumber(ARGV[2])), last do
  local counted = redis.call('HGETALL', string.format('stats:%.0f', number))
  if #counted > 0 then stats[#stats + 1] = {number, counted} end
end
return {
  now, redis.call('ZCARD', 'jobs:state:queued'), redis.call('ZCARD', 'jobs:state:in_progress'),
  redis.call('ZRANGE', 'jobs:state:queued', 0, 0, 'WITHSCORES'), redis.call('ZCARD', 'servers:stranded'),
  redis.call('ZCARD', 'nodes:by:name'), redis.call('ZCOUNT', 'nodes:by:heartbeat', now - ARGV[1], '+inf'),
  redis.call('SCARD', 'nodes:paused'), redis.call('ZCARD', 'findings'), stats,
}
