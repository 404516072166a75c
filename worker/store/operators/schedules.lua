-- include: schedules, walk
-- One page of the cell's enabled schedules, by their next run.
-- Only reads.
-- ask: {account, server, limit, after, since_ms, until_ms (see `walk`)}; all but limit may be missing
-- Answers {number of schedules if every one between the bounds matches, else -1, after, schedule (see `show_schedule`),
-- ...}.
local ask = cjson.decode(ARGV[1])
local page = walk(ask, 'schedules:due', 'schedule:', function(id)
  local account, server = unpack(redis.call('HMGET', 'schedule:' .. id, 'account', 'server'))
  if not account or ask.account and account ~= ask.account or ask.server and server ~= ask.server then return nil end
  return show_schedule(id)
end)
return {(ask.account or ask.server) and -1 or count_within(ask, 'schedules:due'), unpack(page)}
