-- include: clock, records, states, stats
-- Outcomes of a node's jobs in the last hour, to within five minutes: a hash of counts per five minutes. The places of
-- nodes in the operators' lists.

local HOUR = 3600000 / STATS_MS
local FAILING_FROM = 2 -- jobs, because a single one may have failed because of its own server

-- {completed, failed, stranded}: jobs of the last hour. Stranded ones are included in the failed ones.
local function ended_lately(node)
  local first, sums = math.floor(now_ms() / STATS_MS) - HOUR + 1, {completed = 0, failed = 0, stranded = 0}
  for field, count in pairs(named(redis.call('HGETALL', 'node:' .. node .. ':ended'))) do
    local period, outcome = string.match(field, '^(%d+):(%a+)$')
    if sums[outcome] and tonumber(period) >= first then sums[outcome] = sums[outcome] + (number(count) or 0) end
  end
  return sums
end

-- Whether all its jobs of the last hour have failed.
local function is_failing(ended)
  return ended.completed == 0 and ended.failed >= FAILING_FROM
end

-- Update the node's place in the operators' list by the current counts. A silent node keeps its place.
local function rank_by_failures(node)
  redis.call('ZADD', 'nodes:by:failed', ended_lately(node).failed, node)
end

-- The same for its queued jobs: at its heartbeat, and when one of them ends that has not begun, because the node may be
-- silent.
local function rank_by_queue(node)
  redis.call('ZADD', 'nodes:by:queued', redis.call('ZCARD', 'jobs:node:' .. node .. ':queued'), node)
end

-- Count the end of a job, except cancelled jobs and dry runs.
local function note_end(job, result)
  if result.failure_code == 'cancelled' or ONLY_LOOKS[job.kind] then return end
  local ended, period = 'node:' .. job.node .. ':ended', math.floor(now_ms() / STATS_MS)
  local is_first = redis.call('HINCRBY', ended, period .. ':' .. result.state, '1') == 1
  if result.stranded == '1' then redis.call('HINCRBY', ended, period .. ':stranded', 1) end
  if is_first then
    for _, field in ipairs(redis.call('HKEYS', ended)) do
      if (tonumber(string.match(field, '^%d+')) or 0) <= period - HOUR then redis.call('HDEL', ended, field) end
    end
    redis.call('PEXPIRE', ended, 3600000 + STATS_MS)
  end
  if result.state == 'failed' then rank_by_failures(job.node) end
end
