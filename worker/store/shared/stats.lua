-- include: records
-- What the operators' charts count.

local STATS_MS, STATS_KEPT_MS = 300000, 25 * 3600 * 1000

-- Count an end for the operators' charts: a hash for each five minutes. Durations are counted in bins a tenth apart.
local function count_end(job, result, now)
  local key = 'stats:' .. math.floor(now / STATS_MS)
  local function count(what, ms)
    local bin = ms and ':' .. math.floor(math.log(math.max(ms, 1)) / math.log(1.1)) or ''
    redis.call('HINCRBY', key, job.kind .. ':' .. what .. bin, 1)
  end
  -- what was cancelled did not fail: someone wanted it so
  count(result.failure_code == 'cancelled' and 'cancelled' or result.state)
  local started_ms = number(job.started_ms)
  if result.state == 'completed' and started_ms then count('ms', now - started_ms) end
  if result.downtime_seconds ~= '' then count('downtime', tonumber(result.downtime_seconds) * 1000) end
  redis.call('PEXPIRE', key, STATS_KEPT_MS)
end
