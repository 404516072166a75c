-- include: records
-- Counts for the operators' charts.

local STATS_MS = 300000
local STATS_KEPT_MS = '90000000' -- 25 hours, as text: Redis formats each number that a script passes
local STATS_HOUR_MS = 3600000
local STATS_HOURS_KEPT_MS = '608400000' -- 169 hours

-- Count the end of a job in the hashes of the current five minutes and of the current hour. Durations are counted in
-- bins, each 10 % wider than the previous one.
local function count_end(job, result, now)
  local fields = {}
  local function count(what, ms)
    local bin = ms and ':' .. math.floor(math.log(math.max(ms, 1)) / math.log(1.1)) or ''
    fields[#fields + 1] = job.kind .. ':' .. what .. bin
  end
  -- a cancelled job is not counted as failed
  count(result.failure_code == 'cancelled' and 'cancelled' or result.state)
  local started_ms = number(job.started_ms)
  if result.state == 'completed' and started_ms then count('ms', now - started_ms) end
  if result.downtime_seconds ~= '' then count('downtime', tonumber(result.downtime_seconds) * 1000) end
  for key, kept_ms in pairs({
    ['stats:' .. math.floor(now / STATS_MS)] = STATS_KEPT_MS,
    ['stats:hour:' .. math.floor(now / STATS_HOUR_MS)] = STATS_HOURS_KEPT_MS,
  }) do
    local is_first = false
    for _, field in ipairs(fields) do is_first = redis.call('HINCRBY', key, field, '1') == 1 or is_first end
    if is_first then redis.call('PEXPIRE', key, kept_ms) end
  end
end
