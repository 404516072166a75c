-- include: clock, stats
-- Show the counts of the last week, by hour.
-- Only reads.
-- ask: {since: number of the first hour to read}
-- Answers {now_ms, {{number of the hour, {field, value, ...}}, ...}, oldest first}.
local ask = cjson.decode(ARGV[1])
local now = now_ms()
local last, stats = math.floor(now / STATS_HOUR_MS), {}
for hour = math.max(last - 7 * 24 + 1, ask.since), last do
  local counted = redis.call('HGETALL', string.format('stats:hour:%.0f', hour))
  if #counted > 0 then stats[#stats + 1] = {hour, counted} end
end
return {now, stats}
