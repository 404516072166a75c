-- include: clock, stats
-- Show an overview of the cell.
-- Only reads.
-- ask: {silent_ms, since: number of the first period of five minutes to read}
-- Answers {now_ms, queued jobs, jobs in progress, {oldest queued job, its queued_ms} or {}, stranded servers, nodes,
-- nodes that are alive, paused nodes, servers whose guests are off for a job, servers with findings, servers, webhooks
-- with a due delivery, unreadable records, {{number of the five minutes, {field, value, ...}}, ...} of the last day,
-- oldest first}.
local ask = cjson.decode(ARGV[1])
local now = now_ms()
local last, stats = math.floor(now / STATS_MS), {}
for period = math.max(last - 86400000 / STATS_MS + 1, ask.since), last do
  local counted = redis.call('HGETALL', string.format('stats:%.0f', period))
  if #counted > 0 then stats[#stats + 1] = {period, counted} end
end
return {
  now, redis.call('ZCARD', 'jobs:state:queued'), redis.call('ZCARD', 'jobs:state:in_progress'),
  redis.call('ZRANGE', 'jobs:state:queued', 0, 0, 'WITHSCORES'), redis.call('ZCARD', 'servers:stranded'),
  redis.call('ZCARD', 'nodes:by:name'), redis.call('ZCOUNT', 'nodes:by:heartbeat', now - ask.silent_ms, '+inf'),
  redis.call('SCARD', 'nodes:paused'), redis.call('ZCARD', 'servers:off'), redis.call('ZCARD', 'findings'),
  redis.call('ZCARD', 'servers'),
  redis.call('ZCOUNT', 'webhooks:due', '-inf', now) + redis.call('SCARD', 'webhooks:ready'),
  redis.call('ZCARD', 'unreadable'), stats,
}
