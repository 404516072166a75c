-- include: clock, kept
-- Store the bounds of accounts, and delete the dry runs that ended more than an hour ago.
-- Also when full.
-- ask: {bounds: {name: number}, limit}
-- Answers the number of dry runs that were deleted.
local ask = cjson.decode(ARGV[1])
for name, most in pairs(ask.bounds) do
  local text = string.format('%.0f', most)
  if redis.call('HGET', 'bounds', name) ~= text then redis.call('HSET', 'bounds', name, text) end
end
return forget_dry_runs('dry_runs', now_ms() - DRY_RUN_KEPT_MS, ask.limit)
